# SPDX-License-Identifier: Apache-2.0
"""Which leave would darken the farm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from farmd.daemon.refusals import refuse_dark_leave
from farmd.daemon.report import EngineReport
from farmd.model.config import Profile
from farmd.model.errors import Refused
from farmd.model.nodes import MemberState, NodeId
from tests.unit import farms

ONE, TWO, THREE = farms.NODES
FARM = farms.config()


def seen(states: Mapping[NodeId, MemberState], drained: frozenset[NodeId] = frozenset()) -> EngineReport:
    """Node 0's report: the others in these states, up unless said; who is silent is in no view."""
    silent = {MemberState.FAILED, MemberState.LEFT, MemberState.UNSEEN}
    members = frozenset(node for node in farms.NODES if states.get(node) not in silent)
    report = farms.report(farms.view(members, drained))
    peers = tuple(replace(peer, state=states.get(peer.id, MemberState.UP)) for peer in report.peers)
    return replace(report, peers=peers)


def test_one_of_three_may_go() -> None:
    refuse_dark_leave(FARM, seen({}))


@pytest.mark.parametrize("state", [MemberState.FAILED, MemberState.LEFT, MemberState.UNSEEN])
def test_the_second_of_three_voters_may_not(state: MemberState) -> None:
    with pytest.raises(Refused) as caught:
        refuse_dark_leave(FARM, seen({THREE: state}))
    assert str(caught.value) == (
        "leave of node1: 1 of 3 voters would stay, 2 must agree, so the farm would go dark. "
        "Bring node3 back first, or use --force"
    )


def test_a_voter_that_is_only_not_let_in_yet_votes() -> None:
    refuse_dark_leave(FARM, seen({THREE: MemberState.JOINING}))
    refuse_dark_leave(FARM, seen({THREE: MemberState.UNFIT}))


def test_who_has_no_vote_takes_none_away() -> None:
    farm = replace(FARM, voters=frozenset({TWO, THREE}))
    refuse_dark_leave(farm, seen({}))


def test_the_last_server_may_not_go() -> None:
    others_drained = seen({}, drained=frozenset({TWO, THREE}))
    with pytest.raises(Refused, match="no other node would serve group default"):
        refuse_dark_leave(FARM, others_drained)


def test_two_of_the_profile_available_part_in_peace() -> None:
    farm = replace(FARM, profile=Profile.AVAILABLE, voters=frozenset({ONE, TWO}), members=FARM.members[:2])
    refuse_dark_leave(farm, replace(seen({}), peers=seen({}).peers[:2]))


def test_a_dark_farm_holds_nobody() -> None:
    alone = seen({TWO: MemberState.FAILED, THREE: MemberState.FAILED})
    refuse_dark_leave(FARM, replace(alone, deadline_ns=0))
    refuse_dark_leave(FARM, replace(alone, view=None))
