# SPDX-License-Identifier: Apache-2.0
"""Profile `available`: two nodes without a witness."""

from __future__ import annotations

import pytest

from farmd.membership.commands import EventType
from farmd.model.buckets import ALL_BUCKETS
from farmd.model.config import Profile
from farmd.model.nodes import NodeId
from tests.sim.calm import formed, status, told, wait
from tests.sim.world import MS, SECOND, Farm, World

N0, N1 = NodeId(0), NodeId(1)
BOTH_WAYS = {(N0, N1), (N1, N0)}


def two_nodes() -> World:
    world = formed(Farm(2, profile=Profile.AVAILABLE))
    for name in world.hosts:
        world.gateway(name, True)
    return world


def test_in_calm_both_serve_by_consent() -> None:
    world = two_nodes()
    wait(world, 5 * SECOND)
    assert status(world, 0).exclusive
    assert status(world, 0).planes[0].own & status(world, 1).planes[0].own == 0


def test_the_survivor_opens_everything_after_the_promise() -> None:
    world = two_nodes()
    world.power_off(N0)
    wait(world, world.farm.timing.promise_ns + 5 * MS)
    assert status(world, 1).planes[0].own == ALL_BUCKETS
    assert world.served() == 1.0
    assert not status(world, 1).exclusive
    assert EventType.ALONE_STARTED in told(world, 1)


def test_without_the_gateway_nobody_goes_alone() -> None:
    world = two_nodes()
    world.gateway(N1, False)
    world.power_off(N0)
    wait(world, 5 * SECOND)
    assert world.served() == 0.0
    world.gateway(N1, True)
    wait(world, SECOND)
    assert world.served() == 1.0
    world.gateway(N1, False)
    assert world.served() == 0.0
    assert status(world, 1).exclusive


def test_a_node_whose_own_link_comes_back_gives_its_peer_time_to_be_heard() -> None:
    world = two_nodes()
    world.network.cut |= BOTH_WAYS
    world.gateway(N0, False)
    wait(world, 3 * SECOND)
    assert status(world, 1).planes[0].own == ALL_BUCKETS
    world.gateway(N0, True)  # the gateway answers first, and only then a heartbeat of the peer comes through
    wait(world, 50 * MS)
    world.network.cut.clear()
    for _ in range(40):
        wait(world, 100 * MS)
        assert status(world, 0).planes[0].own & status(world, 1).planes[0].own == 0
    assert world.whole()


def test_both_serve_everything_when_only_their_link_is_cut_and_heal_when_it_is_back() -> None:
    world = two_nodes()
    world.network.cut |= BOTH_WAYS
    wait(world, 3 * SECOND)
    for name in (0, 1):
        assert status(world, name).planes[0].own == ALL_BUCKETS
        assert not status(world, name).exclusive
    world.network.cut.clear()
    wait(world, 400 * MS)
    assert world.whole(), "two that serve alone share at once, without a hold-down"
    for name in (0, 1):
        assert status(world, name).exclusive
        assert status(world, name).planes[0].own.bit_count() == 2048
        assert status(world, name).planes[0].held == ALL_BUCKETS & ~status(world, name).planes[0].own
    assert status(world, 0).planes[0].own & status(world, 1).planes[0].own == 0
    assert EventType.ALONE_ENDED in told(world, 0)


def test_a_node_that_hears_a_lonely_peer_does_not_open_as_well() -> None:
    world = two_nodes()
    world.network.cut.add((N0, N1))
    wait(world, 5 * SECOND)
    assert status(world, 1).planes[0].own == ALL_BUCKETS
    assert status(world, 0).planes[0].own == 0
    world.network.cut.clear()
    wait(world, 4 * SECOND)
    assert world.whole()


def test_the_peer_comes_back_after_a_power_loss() -> None:
    world = two_nodes()
    world.power_off(N0)
    wait(world, 3 * SECOND)
    world.boot(N0)
    world.gateway(N0, True)
    wait(world, 4 * SECOND)
    assert world.whole()
    assert status(world, 0).exclusive
    assert status(world, 1).exclusive


@pytest.mark.parametrize("cut_off", [0, 1])
def test_the_survivor_keeps_serving_when_its_peer_comes_back(cut_off: int) -> None:
    """Its clients must not pay for the peer's return: it lets the peer in, and is not thrown out by it."""
    world = two_nodes()
    survivor = NodeId(1 - cut_off)
    world.gateway(NodeId(cut_off), False)
    world.network.cut |= BOTH_WAYS
    wait(world, 3 * SECOND)
    assert status(world, survivor).planes[0].own == ALL_BUCKETS
    world.network.cut.clear()
    world.gateway(NodeId(cut_off), True)
    while not world.whole():
        wait(world, 10 * MS)
        planes = status(world, survivor).planes[0]
        assert planes.claims == ALL_BUCKETS, "the survivor never closes what it had"
    assert EventType.MEMBER_FAILED not in told(world, cut_off)


def test_a_single_node_starts_alone() -> None:
    world = World(1, Farm(2, profile=Profile.AVAILABLE))
    world.boot(N1)
    world.gateway(N1, True)
    wait(world, 2 * SECOND)
    assert world.served() == 1.0
