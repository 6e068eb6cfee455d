# SPDX-License-Identifier: Apache-2.0
"""How long a node's buckets stay dark when it goes away in calm weather, in simulated time."""

from __future__ import annotations

from enum import StrEnum

from farmd.model.config import Timing
from farmd.model.nodes import NodeId
from tests.sim.world import MS, SECOND, Farm, World


class Loss(StrEnum):
    """How a node goes away."""

    POWER = "power loss"
    LINK = "link loss"
    DEAF = "deaf"
    """It can send but not receive."""
    MUTE = "mute"
    """It can receive but not send."""


def takeover_ns(seed: int, timing: Timing, loss: Loss, nodes: int, victim: int) -> int:
    """From the fault until others serve every bucket that the victim served."""
    world = World(seed, Farm(nodes, timing=timing))
    for name in world.hosts:
        world.boot(name)
    world.run(3 * SECOND + world.random.randrange(100 * MS))
    assert world.whole()
    name = NodeId(victim)
    lost = world.hosts[name].planes[0].own
    others = world.everyone - {name}
    at_ns = world.now_ns
    if loss is Loss.POWER:
        world.power_off(name)
    if loss in (Loss.LINK, Loss.MUTE):
        world.network.cut |= {(name, other) for other in others}
    if loss in (Loss.LINK, Loss.DEAF):
        world.network.cut |= {(other, name) for other in others}
    while world.now_ns < at_ns + 10 * SECOND:
        world.run(world.now_ns + MS)
        opened = 0
        for other in others:
            for own in world.hosts[other].open_planes(world.now_ns) or ():
                opened |= own
        if lost & ~opened == 0:
            return world.now_ns - at_ns
    raise AssertionError(f"seed {seed}: nobody took over within 10 s")
