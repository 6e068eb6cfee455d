# SPDX-License-Identifier: Apache-2.0
"""The rules of `farmd.membership.core`, one by one, on a single node."""

from __future__ import annotations

import pytest

from farmd.membership.commands import EventType, Phase, Send, WriteLease
from farmd.membership.messages import (
    Ask,
    Fetch,
    Goodbye,
    Heartbeat,
    PreVote,
    PreVoteReply,
    Promise,
    Propose,
    Start,
)
from farmd.membership.requests import Drain, Leave
from farmd.membership.settings import Settings
from farmd.model.nodes import BootId, NodeId, Role
from farmd.model.view import NO_BALLOT
from tests.unit.playbook import ALL, BOOTS, EMPTY, MS, N0, N1, N2, RESTART_MS, TIMING, WEIGHTS, Playbook, ballot, view

B1, B2, B3 = ballot(1), ballot(2), ballot(3)


class TestHeartbeat:
    """Rule 1."""

    def test_it_is_sent_to_everybody_every_interval(self) -> None:
        play = Playbook().wait(500)
        beats = [one for one in play.did if isinstance(one, Send) and isinstance(one.message, Heartbeat)]
        assert len(beats) == 6
        assert all(one.to is None for one in beats)

    def test_it_lists_whom_we_hear_and_forgets_the_silent(self) -> None:
        play = Playbook().wait(50).hear(N0)
        assert [one.node for one in play.wait(100).heartbeat().heard] == [N0]
        assert play.wait(400).heartbeat().heard == ()

    def test_a_copy_or_an_older_one_changes_nothing(self) -> None:
        play = Playbook().wait(50)
        play.hear(N0, established=7)
        play.hear(N0, established=8, seq=1)
        assert play.node.status(play.now_ns).peers[0].established == 7

    def test_strangers_are_not_heard(self) -> None:
        play = Playbook().wait(50)
        assert play.receive(NodeId(9), Fetch()).did == []

    def test_connection_counts_ride_on_it(self) -> None:
        play = Playbook()
        play.node.report_connections(12, 3)
        beat = play.wait(1).heartbeat()
        assert (beat.established, beat.held) == (12, 3)


class TestSupport:
    """Rule 2."""

    def test_a_node_that_hears_us_under_our_view_is_supported(self) -> None:
        play = Playbook().serving()
        entry = next(one for one in play.wait(100).heartbeat().heard if one.node == N0)
        assert entry.supported
        assert entry.seq == play.seqs[N0]

    def test_a_node_that_does_not_hear_us_is_not(self) -> None:
        play = Playbook().serving()
        supported = play.seqs[N0]
        play.hear(N0, B1, hears_me=False)
        entry = next(one for one in play.wait(100).heartbeat().heard if one.node == N0)
        assert entry.seq == supported, "the newer heartbeat is not echoed"

    def test_a_node_under_another_view_is_not(self) -> None:
        play = Playbook().serving()
        play.hear(N0, B2)
        entry = next(one for one in play.wait(100).heartbeat().heard if one.node == N0)
        assert entry.seq == play.seqs[N0] - 1


class TestLease:
    """Rule 3."""

    def test_it_runs_from_the_sending_of_the_echoed_heartbeat(self) -> None:
        play = Playbook().serving()
        seq = play.wait(100).heartbeat().seq
        sent_ns = play.now_ns - play.now_ns % TIMING.heartbeat_ns
        play.sleep(60).hear(N0, B1, echo=seq, clear=True, started=True)
        assert play.did == [WriteLease(sent_ns + TIMING.lease_ns)]

    def test_an_echo_by_an_unclear_voter_extends_nothing(self) -> None:
        play = Playbook().serving()
        seq = play.wait(100).heartbeat().seq
        assert play.hear(N0, B1, echo=seq, clear=False).lease() is None

    def test_an_echo_under_another_view_extends_nothing(self) -> None:
        play = Playbook().serving()
        seq = play.wait(100).heartbeat().seq
        assert play.hear(N0, B2, echo=seq, clear=True).lease() is None

    def test_when_it_is_over_everything_closes_by_itself(self) -> None:
        play = Playbook().serving().wait(600)
        assert play.lease() == 0
        assert play.own() == play.held() == 0
        assert EventType.LEASE_LOST in [event.type for event in play.events()]
        assert play.node.status(play.now_ns).phase is Phase.WAITING

    def test_it_is_regained_under_the_same_view(self) -> None:
        play = Playbook().serving().wait(600)
        seq = play.wait(100).heartbeat().seq
        play.hear(N0, B1, echo=seq, clear=True)
        assert play.own() == view(1).share(0, N2)
        assert EventType.LEASE_REGAINED in [event.type for event in play.events()]


class TestReleaseFirst:
    """Rule 5."""

    def test_planes_are_written_before_the_promise_is_sent(self) -> None:
        play = Playbook().serving()
        four = view(2, ALL - {N2}, view(1))
        play.receive(N0, Propose(four, False, ()))
        order = play.order()
        assert order.index("WritePlanes") < order.index("Promise") < order.index("Heartbeat")
        assert play.own() == 0
        assert play.held() == view(1).share(0, N2)

    def test_the_promise_claims_what_may_have_connections_here(self) -> None:
        play = Playbook().serving()
        play.receive(N0, Propose(view(2, ALL - {N2}, view(1)), False, ()))
        assert play.sent(Promise) == Promise(B2, True, (view(1).share(0, N2),))

    def test_after_the_deadline_everything_is_closed_first(self) -> None:
        play = Playbook().serving().sleep(600)
        play.receive(N0, Propose(view(2), False, ()))
        assert play.own() == play.held() == 0
        assert play.sent(Promise).claims == (0,)

    def test_adopting_extends_nothing(self) -> None:
        play = Playbook().serving()
        assert play.receive(N0, Propose(view(2), False, ())).lease() is None

    def test_a_repeated_proposal_is_answered_again(self) -> None:
        play = Playbook().serving()
        play.receive(N0, Propose(view(2), False, ()))
        assert play.receive(N0, Propose(view(2), False, ())).order() == ["Promise"]

    def test_a_lower_ballot_is_refused_with_the_reason(self) -> None:
        play = Playbook().serving(counter=3)
        refusal = play.receive(N0, Propose(view(2), False, ())).sent(PreVoteReply)
        assert not refusal.granted
        assert refusal.highest == B3
        assert play.node.status(play.now_ns).view.ballot == B3


class TestClearAndStart:
    """Rule 6."""

    def test_a_voter_stays_unclear_until_its_promise_to_the_silent_is_over(self) -> None:
        play = Playbook().serving()
        play.hear(N1, B1)
        promised_ns = play.now_ns + TIMING.promise_ns
        play.wait(50).receive(N0, Propose(view(2, frozenset({N0, N2}), view(1)), False, ()))
        play.hear(N0, B2)
        assert not play.heartbeat().clear if not play.silent_about(Heartbeat) else True
        play.wait((promised_ns - play.now_ns) / MS - 1)
        assert not play.heartbeat().clear
        assert play.wait(1.1).heartbeat().clear, "said at once, not with the next beat"

    def test_a_voter_is_clear_as_soon_as_all_it_supported_have_adopted_the_view(self) -> None:
        play = Playbook().serving()
        play.receive(N0, Propose(view(2), False, ()))
        assert not play.heartbeat().clear
        play.hear(N0, B2)
        assert play.hear(N1, B2).heartbeat().clear

    def test_a_higher_ballot_than_ours_releases_nothing(self) -> None:
        play = Playbook().serving()
        play.receive(N0, Propose(view(2), False, ()))
        play.hear(N0, B2)
        assert play.hear(N1, B3).silent_about(Heartbeat), "it may have kept what view 2 gives to others"

    def test_another_incarnation_releases_nothing(self) -> None:
        play = Playbook().serving()
        play.receive(N0, Propose(view(2), False, ()))
        play.hear(N0, B2)
        assert play.hear(N1, B2, boot=BootId(7)).silent_about(Heartbeat)

    def test_start_alone_opens_nothing(self) -> None:
        play = Playbook().serving()
        two = view(2, frozenset({N0, N2}), view(1))
        play.receive(N0, Propose(two, False, ()))
        play.receive(N0, Start(B2, (0,)))
        assert play.own() == view(1).share(0, N2), "only what it had anyway"

    def test_a_lease_alone_opens_nothing_and_both_together_do(self) -> None:
        play = Playbook().serving()
        two = view(2, frozenset({N0, N2}), view(1))
        seq = play.receive(N0, Propose(two, False, ())).heartbeat().seq
        play.hear(N0, B2, echo=seq, clear=True)
        play.hear(N1, B2, echo=seq, clear=True)
        assert play.own() == view(1).share(0, N2)
        play.receive(N0, Start(B2, (two.share(0, N2),)))
        planes = play.node.status(play.now_ns).planes[0]
        assert planes.own == planes.fresh == two.share(0, N2)

    def test_fresh_is_settled_when_nobody_holds_any_more(self) -> None:
        play = Playbook().serving()
        seq = play.receive(N0, Propose(view(2), False, ())).heartbeat().seq
        for other in (N0, N1):
            play.hear(other, B2, echo=seq, clear=True, holding=True)
        play.receive(N0, Start(B2, (view(2).share(0, N2),)))
        assert play.node.status(play.now_ns).planes[0].fresh
        play.hear(N0, B2)
        assert play.node.status(play.now_ns).planes[0].fresh, "node 1 still holds"
        play.hear(N1, B2)
        assert play.node.status(play.now_ns).planes[0].fresh == 0

    def test_a_peer_that_missed_the_view_is_helped(self) -> None:
        play = Playbook().serving(counter=2)
        play.hear(N1, B1)
        assert play.sent(Propose) == Propose(view(2), True, ())
        assert play.sent(Start) == Start(B2, (0,))

    def test_a_peer_that_missed_the_start_gets_it(self) -> None:
        play = Playbook().serving()
        assert play.hear(N1, B1, started=False).order().count("Start") == 1


class TestRestart:
    """Rule 7."""

    def test_the_kernel_is_closed_before_anything_is_said(self) -> None:
        assert Playbook().wait(0).order() == ["WriteLease", "WritePlanes", "Heartbeat"]

    def test_a_voter_is_silent_for_the_promise_and_a_little_more(self) -> None:
        play = Playbook().wait(RESTART_MS - 2).hear(N0)
        assert play.receive(N0, PreVote(B1)).did == []
        assert not play.receive(N0, Propose(view(1), False, ())).sent(Promise).voting
        play.wait(3)
        assert play.receive(N0, PreVote(B2)).sent(PreVoteReply).granted


class TestProposing:
    """Rule 4, by the lowest voter."""

    def leader(self) -> Playbook:
        play = Playbook(N0).wait(RESTART_MS)
        play.hear(N1).hear(N2)
        return play.wait(50)

    def test_it_asks_before_it_proposes(self) -> None:
        play = self.leader()
        asked = play.sent(PreVote).ballot
        assert asked.counter == 1
        assert play.silent_about(Propose)
        for voter in (N1, N2):
            play.receive(voter, PreVoteReply(asked, True, NO_BALLOT, asked, ()))
        assert play.sent(Propose).view.members == ALL

    def test_it_starts_when_all_that_it_hears_have_promised(self) -> None:
        play = self.leader()
        asked = play.sent(PreVote).ballot
        for voter in (N1, N2):
            play.receive(voter, PreVoteReply(asked, True, NO_BALLOT, asked, ()))
        assert play.receive(N1, Promise(asked, True, (0,))).silent_about(Start)
        claimed = play.node.status(play.now_ns).view.share(0, N0) | 1 << 4095
        started = play.receive(N2, Promise(asked, True, (claimed,))).sent(Start)
        assert started.contested[0] == claimed & ~play.node.status(play.now_ns).view.share(0, N2)

    def test_it_repeats_what_is_not_answered(self) -> None:
        play = self.leader()
        assert play.wait(13).order().count("PreVote") == 2

    def test_a_refusal_makes_it_try_above_the_ballot_that_it_met(self) -> None:
        play = self.leader()
        asked = play.sent(PreVote).ballot
        play.receive(N1, PreVoteReply(asked, False, NO_BALLOT, ballot(8, N1), ()))
        play.wait(60)
        assert play.sent(PreVote).ballot.counter == 9

    def test_a_majority_that_knows_a_newer_view_is_asked_for_it(self) -> None:
        play = self.leader()
        asked = play.sent(PreVote).ballot
        for voter in (N1, N2):
            play.receive(voter, PreVoteReply(asked, True, ballot(1, N1), asked, ()))
        assert play.sent(Fetch) == Fetch()
        assert play.silent_about(Propose)

    def test_the_dead_are_left_out_just_before_the_last_promise_ends(self) -> None:
        play = Playbook(N0).serving()
        under = ballot(1, N1)
        play.steady(400, under, N1)
        asked = False
        for _ in range(30):
            play.wait(5)
            if not play.silent_about(PreVote):
                asked = True
                ours = play.sent(PreVote).ballot
                play.receive(N1, PreVoteReply(ours, True, under, ours, ((N2, 40_000),)))
            if not play.silent_about(Propose):
                break
            play.hear(N1, under, started=True, leased=True)
        assert asked
        assert play.sent(Propose).view.members == {N0, N1}

    def test_a_node_that_a_majority_still_hears_stays(self) -> None:
        play = Playbook(N0).serving()
        under = ballot(1, N1)
        for _ in range(200):
            play.wait(5)
            if not play.silent_about(PreVote):
                asked = play.sent(PreVote).ballot
                play.receive(N1, PreVoteReply(asked, True, under, asked, ((N2, 450_000),)))
            assert play.silent_about(Propose)
            play.hear(N1, under, started=True, leased=True, echo=1, clear=True)


class TestVoting:
    """Rule 4, a voter's part."""

    def test_after_agreeing_to_a_ballot_it_refuses_lower_ones(self) -> None:
        play = Playbook().serving()
        assert play.receive(N1, PreVote(ballot(5, N1))).sent(PreVoteReply).granted
        assert not play.receive(N0, PreVote(ballot(4))).sent(PreVoteReply).granted
        assert not play.receive(N0, Propose(view(4), False, ())).sent(PreVoteReply).granted
        assert play.receive(N0, PreVote(ballot(6))).sent(PreVoteReply).granted

    def test_a_started_view_is_adopted_all_the_same(self) -> None:
        play = Playbook().serving()
        play.receive(N1, PreVote(ballot(5, N1)))
        play.receive(N0, Propose(view(4), True, ()))
        assert play.node.status(play.now_ns).view.ballot == ballot(4)

    def test_it_says_how_long_it_stands_by_whom(self) -> None:
        play = Playbook().serving().sleep(100)
        remaining = dict(play.receive(N0, PreVote(B2)).sent(PreVoteReply).remaining)
        assert set(remaining) == {N0, N1}
        assert all(409_000 <= left <= 411_000 for left in remaining.values())


class TestLeaving:
    """Rule 9."""

    def test_a_leaver_tells_everybody_asks_and_claims_nothing(self) -> None:
        play = Playbook().serving().request(Leave())
        assert play.heartbeat().leaving
        assert play.sent(Ask).request == Leave()
        play.receive(N0, Propose(view(2, frozenset({N0, N1}), view(1)), False, ()))
        assert play.sent(Promise).claims == (0,)
        assert play.own() == play.held() == 0
        play.receive(N0, Start(B2, (0,)))
        assert play.wait(150).order()[-2:] == ["Goodbye", "Halt"]
        assert play.halted()
        assert play.hear(N0, B2).did == []

    def test_goodbye_ends_the_wait_for_a_promise(self) -> None:
        play = Playbook().serving()
        play.receive(N0, Propose(view(2, frozenset({N0, N2}), view(1)), False, ()))
        play.hear(N0, B2)
        assert play.receive(N1, Goodbye(BOOTS[N1])).heartbeat().clear

    def test_the_goodbye_of_an_older_incarnation_ends_nothing(self) -> None:
        play = Playbook().serving()
        play.receive(N0, Propose(view(2, frozenset({N0, N2}), view(1)), False, ()))
        play.hear(N0, B2)
        assert play.receive(N1, Goodbye(BootId(7))).silent_about(Heartbeat)


class TestRequests:
    def test_a_request_is_repeated_until_a_started_view_carries_it(self) -> None:
        play = Playbook().serving().request(Drain(N0))
        asked = play.sent(Ask)
        assert play.wait(450).order().count("Ask") == 2
        drained = view(2, ALL, view(1))
        play.receive(N0, Propose(drained, False, (asked.id,)))
        play.receive(N0, Start(B2, (0,)))
        assert [event.type for event in play.events()][-1] is EventType.REQUEST_DONE
        assert play.wait(1000).silent_about(Ask)

    def test_a_request_that_nobody_carries_out_expires_with_an_event(self) -> None:
        play = Playbook().serving().request(Drain(N0))
        expired = [event for event in play.wait(11_000).events() if event.type is EventType.REQUEST_EXPIRED]
        assert [event.text for event in expired] == ["given up, no view carried it out: drain node 0"]


class TestStall:
    """Rule 8."""

    def test_a_stall_is_told_and_is_nobody_elses_silence(self) -> None:
        play = Playbook().serving().sleep(400)
        commands = play.node.stalled(play.now_ns, 400 * MS)
        beats = [one.message for one in commands if isinstance(one, Send) and isinstance(one.message, Heartbeat)]
        assert {one.node for one in beats[-1].heard} == {N0, N1}

    def test_a_deadline_that_passed_meanwhile_closes_first(self) -> None:
        play = Playbook().serving().sleep(3000)
        play.did = play.node.stalled(play.now_ns, 3000 * MS)
        assert play.own() == 0
        assert EventType.ENGINE_STALLED in [event.type for event in play.events()]


def test_settings_that_make_no_farm_are_refused() -> None:
    for me, voters, weights in ((NodeId(9), ALL, WEIGHTS), (N0, frozenset(), WEIGHTS), (N0, ALL, ())):
        with pytest.raises(ValueError, match=r"farm|voters|group"):
            Settings(me, Role.NODE, frozenset(voters), ALL, frozenset(), weights, TIMING)
    assert EMPTY.members == frozenset()
