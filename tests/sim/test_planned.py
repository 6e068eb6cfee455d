# SPDX-License-Identifier: Apache-2.0
"""Planned changes in fair weather: no lease runs out, moved buckets are dark for a few messages, connections stay."""

from __future__ import annotations

import pytest

from farmd.membership.commands import EventType
from farmd.membership.requests import Drain, Leave, Ready, SetWeight
from farmd.model.buckets import BUCKETS
from farmd.model.nodes import MemberState, NodeId
from tests.sim.calm import darkest_gap_ns, formed, status, told, wait
from tests.sim.world import MS, SECOND, Farm

N0, N1, N2 = NodeId(0), NodeId(1), NodeId(2)


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_drain_moves_every_bucket_of_a_node_within_a_few_messages(asked: int) -> None:
    world = formed(Farm(3))
    world.request(NodeId(asked), Drain(N1))
    assert darkest_gap_ns(world, SECOND) <= 5 * MS
    view = status(world, 0).view
    assert view.drained == {N1}
    assert view.members == {N0, N1, N2}
    assert view.share(0, N1) == 0
    assert EventType.REQUEST_DONE in told(world, asked)
    assert EventType.LEASE_LOST not in told(world, 1)


def test_a_drained_node_holds_its_connections_until_the_daemon_forgets_them() -> None:
    world = formed(Farm(3))
    before = status(world, 1).planes[0].own
    world.request(N0, Drain(N1))
    wait(world, SECOND)
    assert {peer.node: peer.state for peer in status(world, 0).peers}[N1] is MemberState.DRAINING, (
        "the sockets were last counted before the drain: zero says nothing yet"
    )
    world.hosts[N1].node.report_connections(7, 7)  # type: ignore[union-attr]
    wait(world, SECOND)
    assert status(world, 1).planes[0].held == before
    assert status(world, 0).planes[0].fresh | status(world, 2).planes[0].fresh == before
    assert {peer.node: peer.state for peer in status(world, 0).peers}[N1] is MemberState.DRAINING

    host = world.hosts[N1]
    assert host.node is not None
    world._execute(host, host.node.forget_held(host.clock.local(world.now_ns), 0, before))
    host.node.report_connections(0, 0)
    wait(world, SECOND)
    assert status(world, 1).planes[0].held == 0
    assert status(world, 0).planes[0].fresh == 0, "nobody holds moved connections any more, so fresh is settled"
    assert {peer.node: peer.state for peer in status(world, 0).peers}[N1] is MemberState.DRAINED


def test_held_and_fresh_end_at_the_drain_deadline() -> None:
    world = formed(Farm(3))
    for host in world.hosts.values():
        assert host.node is not None
        object.__setattr__(host.node._state.settings, "drain_deadline_ns", 5 * SECOND)
    world.request(N0, Drain(N1))
    wait(world, 4 * SECOND)
    assert status(world, 1).planes[0].held
    assert status(world, 0).planes[0].fresh
    wait(world, 2 * SECOND)
    assert status(world, 1).planes[0].held == 0
    assert status(world, 0).planes[0].fresh == 0


def test_ready_gives_the_node_its_share_back() -> None:
    world = formed(Farm(3))
    world.request(N0, Drain(N1))
    wait(world, SECOND)
    world.request(N2, Ready(N1))
    assert darkest_gap_ns(world, SECOND) <= 5 * MS
    assert status(world, 0).view.drained == frozenset()
    assert abs(status(world, 1).planes[0].own.bit_count() - BUCKETS // 3) <= 1


def test_weights_move_only_what_they_must() -> None:
    world = formed(Farm(4, groups=2))
    before = status(world, 0).view
    world.request(N2, SetWeight(N0, 50, 1))
    assert darkest_gap_ns(world, SECOND) <= 5 * MS
    view = status(world, 3).view
    assert view.owners[0] == before.owners[0]
    assert view.weights[1][0] == 50
    moved = sum(old != new for old, new in zip(before.owners[1], view.owners[1], strict=True))
    assert moved == before.share(1, N0).bit_count() - view.share(1, N0).bit_count()


@pytest.mark.parametrize("name", [0, 2])
def test_a_planned_leave_makes_nobody_wait(name: int) -> None:
    world = formed(Farm(3))
    world.request(NodeId(name), Leave())
    assert darkest_gap_ns(world, SECOND) <= 5 * MS
    assert world.hosts[NodeId(name)].halted
    rest = status(world, 1)
    assert rest.view.members == world.nodes - {NodeId(name)}
    assert {peer.node: peer.state for peer in rest.peers}[NodeId(name)] is MemberState.LEFT
    assert rest.planes[0].fresh == 0, "the leaver's connections are gone, so they must be reset, not ignored"
    assert EventType.MEMBER_LEFT in told(world, 1)
    assert EventType.MEMBER_FAILED not in told(world, 1)


def test_a_node_that_left_may_come_back() -> None:
    world = formed(Farm(3))
    world.request(N2, Leave())
    wait(world, SECOND)
    world.boot(N2)
    wait(world, 3 * SECOND)
    assert world.whole()


def test_leaving_without_a_majority_closes_all_the_same() -> None:
    world = formed(Farm(3))
    world.power_off(N0)
    world.power_off(N1)
    wait(world, 2 * SECOND)
    world.request(N2, Leave())
    wait(world, 5 * SECOND)
    assert world.hosts[N2].halted
    assert EventType.REQUEST_EXPIRED in told(world, 2)


def test_a_witness_votes_and_serves_nothing() -> None:
    world = formed(Farm(2, witness=True))
    world.power_off(N0)
    wait(world, SECOND)
    assert world.served() == 1.0
    assert status(world, 2).planes[0].claims == 0
    assert status(world, 1).planes[0].own.bit_count() == BUCKETS


@pytest.mark.parametrize("name", [0, 2])
def test_a_failed_node_comes_back_after_its_hold_down_and_later_each_time(name: int) -> None:
    """Also the lowest voter, which would propose if it were in: it does not let itself in."""
    world = formed(Farm(3))
    absences = []
    for _ in range(3):
        world.power_off(NodeId(name))
        wait(world, 2 * SECOND)
        assert status(world, 1).view.members == {N0, N1, N2} - {NodeId(name)}
        world.boot(NodeId(name))
        began_ns = world.now_ns
        while not world.whole():
            wait(world, 20 * MS)
        absences.append(world.now_ns - began_ns)
    hold_down_ns = world.farm.timing.hold_down_ns
    assert hold_down_ns <= absences[0] < 2 * hold_down_ns
    assert absences[1] >= 2 * hold_down_ns
    assert absences[2] >= 4 * hold_down_ns


def test_a_short_engine_restart_costs_no_view() -> None:
    world = formed(Farm(5))
    epoch = status(world, 0).view.epoch
    world.crash(N2)
    wait(world, 50 * MS)
    world.boot(N2)
    wait(world, 2 * SECOND)
    assert world.whole()
    assert status(world, 0).view.epoch == epoch


def test_a_node_that_was_frozen_waits_for_its_hold_down_too() -> None:
    world = formed(Farm(3))
    world.stall(N0, 2 * SECOND)
    wait(world, 2 * SECOND)
    began_ns = world.now_ns
    while not world.whole():
        wait(world, 20 * MS)
    assert world.now_ns - began_ns >= world.farm.timing.hold_down_ns


@pytest.mark.parametrize("name", [0, 2])
def test_a_node_that_clients_cannot_reach_hands_over_at_once_and_waits_to_come_back(name: int) -> None:
    world = formed(Farm(3))
    world.service(NodeId(name), False)
    assert darkest_gap_ns(world, SECOND) <= 5 * MS
    assert status(world, 1).view.members == world.nodes - {NodeId(name)}
    assert {peer.node: peer.state for peer in status(world, 1).peers}[NodeId(name)] is MemberState.UNFIT
    wait(world, 5 * SECOND)
    began_ns = world.now_ns
    world.service(NodeId(name), True)
    while not world.whole():
        wait(world, 20 * MS)
    assert world.now_ns - began_ns >= world.farm.timing.hold_down_ns


def test_a_farm_that_clients_cannot_reach_at_all_stays_as_it_is() -> None:
    world = formed(Farm(3))
    for name in sorted(world.nodes):
        world.service(name, False)
    wait(world, 2 * SECOND)
    world.service(N1, True)
    wait(world, SECOND)
    assert status(world, 0).view.members == {N1}, "now one is better than the others"


def test_a_slow_node_stays_in_the_view() -> None:
    world = formed(Farm(3))
    epoch = status(world, 0).view.epoch
    for _ in range(10):
        world.stall(N2, 350 * MS)
        wait(world, SECOND)
    assert status(world, 0).view.epoch == epoch
    assert EventType.ENGINE_STALLED in told(world, 2)


def test_a_node_that_one_voter_cannot_hear_stays_in_the_view() -> None:
    world = formed(Farm(3))
    epoch = status(world, 0).view.epoch
    world.network.cut |= {(N2, N0), (N0, N2)}
    wait(world, 5 * SECOND)
    assert world.served() == 1.0
    assert status(world, 1).view.epoch == epoch
    world.network.cut.clear()
    wait(world, SECOND)
    assert world.whole()


def test_without_a_majority_everything_closes() -> None:
    world = formed(Farm(3))
    world.power_off(N0)
    world.power_off(N1)
    wait(world, world.farm.timing.lease_ns + MS)
    assert world.served() == 0.0
    assert status(world, 2).planes[0].claims == 0
    assert EventType.LEASE_LOST in told(world, 2)
    world.boot(N0)
    wait(world, 4 * SECOND)
    assert world.served() == 1.0


def test_nodes_beyond_the_voters_serve_as_well() -> None:
    world = formed(Farm(9))
    assert NodeId(8) not in world.settings(N0).voters
    assert status(world, 8).planes[0].own.bit_count() in (455, 456)
    world.power_off(NodeId(8))
    wait(world, SECOND)
    assert world.served() == 1.0
