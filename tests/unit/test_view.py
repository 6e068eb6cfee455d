# SPDX-License-Identifier: Apache-2.0
"""Views and planes: what follows from a view, and the two steps of a move."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from farmd.model.buckets import ALL_BUCKETS, BUCKETS, NO_OWNERS
from farmd.model.nodes import BootId, NodeId
from farmd.model.planes import CLOSED, Planes, acquire, forget_held, release, settle
from farmd.model.view import NO_BALLOT, Ballot, View, successor, weights_table

N0, N1, N2 = NodeId(0), NodeId(1), NodeId(2)
EMPTY = View(NO_BALLOT, frozenset(), frozenset(), (weights_table({N0: 100, N1: 100, N2: 200}),) * 2, (NO_OWNERS,) * 2)
planes = st.integers(0, ALL_BUCKETS)


def ballot(counter: int) -> Ballot:
    return Ballot(counter, N0, BootId(7))


def test_ballots_are_ordered_by_counter_then_proposer_then_boot() -> None:
    assert NO_BALLOT < Ballot(1, N0, BootId(9)) < Ballot(1, N1, BootId(0)) < Ballot(2, N0, BootId(0))
    assert str(Ballot(12, N0, BootId(0xAB12))) == "12.0.ab12"


def test_a_successor_shares_by_weight_in_every_group() -> None:
    view = successor(EMPTY, ballot(1), frozenset({N0, N1, N2}))
    assert view.epoch == 1
    assert [view.share(1, node).bit_count() for node in (N0, N1, N2)] == [1024, 1024, 2048]
    assert view.shares(N2) == (view.share(0, N2), view.share(1, N2))


def test_a_drained_node_owns_nothing_and_keeps_its_weight_for_later() -> None:
    three = successor(EMPTY, ballot(1), frozenset({N0, N1, N2}))
    drained = successor(three, ballot(2), three.members, drained=frozenset({N1}))
    assert drained.weight(0, N1) == 0
    assert drained.share(0, N1) == 0
    back = successor(drained, ballot(3), three.members, drained=frozenset())
    assert back.weight(0, N1) == 100
    assert back.share(0, N1).bit_count() == 1024


def test_the_weight_of_a_node_that_is_away_stays_in_the_view() -> None:
    two = successor(EMPTY, ballot(1), frozenset({N0, N1}))
    assert two.weight(0, N2) == 0
    assert two.weights[0][N2] == 200
    owner = two.owner(0, 0)
    assert owner in (N0, N1)
    assert EMPTY.owner(0, 0) is None


@settings(derandomize=True, deadline=None, max_examples=50)
@given(planes, planes, planes, planes)
def test_a_move_keeps_the_planes_apart(own: int, held: int, share: int, elsewhere: int) -> None:
    before = Planes(own, held & ~own, own & elsewhere)
    released = release(before, share)
    assert released.own == own & share
    assert released.claims == before.claims, "what is closed is held, so its connections live on"
    acquired = acquire(released, share, elsewhere)
    assert acquired.own == share
    assert acquired.fresh == share & elsewhere
    for one in (released, acquired, forget_held(acquired, elsewhere), settle(acquired)):
        assert one.own & one.held == 0
        assert one.fresh & ~one.own == 0
    assert forget_held(acquired, ALL_BUCKETS).held == 0
    assert settle(acquired).fresh == 0


def test_closed_accepts_nothing() -> None:
    assert CLOSED.claims == CLOSED.fresh == 0
    assert ALL_BUCKETS.bit_count() == BUCKETS
