# SPDX-License-Identifier: Apache-2.0
"""Farms in fair weather, for tests of planned changes."""

from __future__ import annotations

from farmd.membership.commands import EventType, NodeStatus
from farmd.model.nodes import NodeId
from tests.sim.world import MS, SECOND, Farm, World


def formed(farm: Farm, seed: int = 1) -> World:
    """A farm that has formed and serves everything."""
    world = World(seed, farm)
    for name in world.hosts:
        world.boot(name)
    world.run(3 * SECOND)
    assert world.whole()
    return world


def status(world: World, name: int) -> NodeStatus:
    host = world.hosts[NodeId(name)]
    assert host.node is not None
    return host.node.status(host.clock.local(world.now_ns))


def wait(world: World, for_ns: int = 10 * SECOND) -> None:
    world.run(world.now_ns + for_ns)


def darkest_gap_ns(world: World, for_ns: int, step_ns: int = MS // 5) -> int:
    """The longest time within `for_ns` that some bucket was served by nobody."""
    dark_ns = longest_ns = 0
    end_ns = world.now_ns + for_ns
    while world.now_ns < end_ns:
        world.run(world.now_ns + step_ns)
        dark_ns = 0 if world.served() == 1.0 else dark_ns + step_ns
        longest_ns = max(longest_ns, dark_ns)
    return longest_ns


def told(world: World, name: int) -> list[EventType]:
    """What a node told people, in order."""
    return [event.type for _, node, event in world.events if node == name]
