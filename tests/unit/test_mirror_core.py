# SPDX-License-Identifier: Apache-2.0
"""One mirror node, event by event: what it does, in which order, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from farmd.mirror.acks import Gate, Mode, Standing, may_return
from farmd.mirror.arbiter import Answer, Claim, Occasion, Register, decide, decide_by_operator, followed
from farmd.mirror.commands import (
    Cas,
    ClearJournal,
    Command,
    Disconnect,
    Flush,
    Inherit,
    OrderDone,
    OrderRefused,
    Persist,
    ReadRegister,
    Say,
    SetGate,
    StartAccepting,
    StopAccepting,
    StopReceiving,
    Tell,
    Verify,
)
from farmd.mirror.core import Node
from farmd.mirror.events import (
    ClaimAnswered,
    Flushed,
    Ordered,
    PeerConnected,
    PeerLost,
    PeerSaid,
    Recovered,
    RegisterRead,
    ResyncDrained,
    Settled,
    Stopped,
    VerifyEnded,
)
from farmd.mirror.generation import BLANK, Cause, Era, Generation, Relation, relation
from farmd.mirror.meeting import Meeting, meet
from farmd.mirror.messages import Done, Enter, Hello, Plan, Ready, Resigned, UpToDate
from farmd.mirror.orders import Accept, Check, Demote, GiveUp, Promote
from farmd.mirror.record import Record
from farmd.mirror.state import Link, Phase, Settings
from farmd.model.nodes import NodeId

MIRROR = bytes(range(16))
ONE, TWO = NodeId(1), NodeId(2)
G1, G2, OTHER = Generation(1, 11), Generation(2, 22), Generation(2, 99)
SETTINGS = Settings(MIRROR, ONE, TWO)


def _era(generation: Generation, node: NodeId = ONE) -> Era:
    return Era(generation, node, 0, Cause.PROMOTED)


RECORD = Record(MIRROR, ONE, generation=G1, uptodate=True, history=(_era(G1),))
PEER = Hello(MIRROR, TWO, G1, (_era(G1),), uptodate=True, primary=False, claiming=False, log_usable=True)


def _tags() -> Iterator[int]:
    yield from range(1000, 2000)


def _node(record: Record | None = RECORD) -> Node:
    tags = _tags()
    node = Node(SETTINGS, record, lambda: next(tags))
    node.handle(0, Recovered(True))
    return node


def _claim(commands: list[Command]) -> Claim:
    return next(command.claim for command in commands if isinstance(command, Cas))


def _primary() -> Node:
    node = _node()
    claim = _claim(node.handle(0, Ordered(Promote())))
    node.handle(0, ClaimAnswered(claim, Answer(True, Register(claim.new, ONE, 2))))
    return node


def _synced() -> Node:
    node = _primary()
    node.handle(0, PeerConnected(1))
    node.handle(0, PeerSaid(1, PEER))
    node.handle(0, PeerSaid(1, Ready()))
    node.handle(0, ResyncDrained(1))
    node.handle(0, PeerSaid(1, UpToDate(node.record.generation)))
    return node


def _kinds(commands: list[Command]) -> list[type]:
    return [type(command) for command in commands]


def _refusal(commands: list[Command]) -> str:
    return str(next(command.error for command in commands if isinstance(command, OrderRefused)))


# ---- promotion ----


def test_a_claim_is_durable_before_it_is_sent() -> None:
    kinds = _kinds(_node().handle(0, Ordered(Promote())))

    assert kinds.index(Persist) < kinds.index(Cas)


def test_a_promoted_node_inherits_before_it_serves() -> None:
    node = _node()
    claim = _claim(node.handle(0, Ordered(Promote())))
    commands = node.handle(0, ClaimAnswered(claim, Answer(True, Register(claim.new, ONE, 2))))
    kinds = _kinds(commands)

    assert [
        kinds.index(each) for each in (StopReceiving, Inherit, Persist, SetGate, StartAccepting, OrderDone)
    ] == sorted(kinds.index(each) for each in (StopReceiving, Inherit, Persist, SetGate, StartAccepting, OrderDone))
    assert (node.phase, node.record.generation) == (Phase.PRIMARY, claim.new)
    assert node.record.bases == {G1}


def test_a_stale_copy_is_refused_and_the_text_says_what_would_be_lost() -> None:
    node = _node()
    claim = _claim(node.handle(0, Ordered(Promote())))
    commands = node.handle(0, ClaimAnswered(claim, Answer(False, Register(G2, TWO, 2))))

    assert "stale" in _refusal(commands)
    assert "would be lost" in _refusal(commands)
    assert (node.phase, node.record.claim) == (Phase.WAITING, None)


def test_a_copy_newer_than_the_arbiter_is_refused_as_such() -> None:
    node = _node(replace(RECORD, generation=OTHER))
    claim = _claim(node.handle(0, Ordered(Promote())))

    assert "only knows" in _refusal(node.handle(0, ClaimAnswered(claim, Answer(False, Register(G1, TWO, 2)))))


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (replace(RECORD, uptodate=False), "half-synced"),
        (None, "holds nothing"),
    ],
)
def test_a_copy_that_is_not_whole_is_refused_without_asking_the_arbiter(record: Record | None, text: str) -> None:
    commands = _node(record).handle(0, Ordered(Promote()))

    assert text in _refusal(commands)
    assert Cas not in _kinds(commands)


def test_a_half_synced_copy_is_promoted_only_by_the_word_that_names_it() -> None:
    record = replace(RECORD, uptodate=False)

    assert "half-synced" in _refusal(_node(record).handle(0, Ordered(Promote(Accept.STALE))))
    assert _claim(_node(record).handle(0, Ordered(Promote(Accept.INCONSISTENT)))).forced


def test_an_accepted_loss_claims_above_everything_and_trusts_no_journal() -> None:
    node = _node()
    claim = _claim(node.handle(0, Ordered(Promote(Accept.STALE))))
    forced = _claim(node.handle(0, ClaimAnswered(claim, Answer(False, Register(Generation(7, 7), TWO, 2)))))
    assert (forced.new.epoch, forced.forced) == (8, True)

    node.handle(0, ClaimAnswered(forced, Answer(True, Register(forced.new, ONE, 3))))
    assert (node.record.bases, node.record.history[-1].cause) == (frozenset(), Cause.FORCED)


def test_a_claim_of_an_earlier_life_is_asked_about_and_never_repeated_unasked() -> None:
    claim = Claim(G1, G2, Occasion.ALONE)
    node = Node(SETTINGS, replace(RECORD, claim=claim), lambda: 5)
    kinds = _kinds(node.handle(0, Recovered(True)))
    assert (ReadRegister in kinds, Cas in kinds) == (True, False)

    node.handle(0, RegisterRead(Register(G1, TWO, 1)))
    open_claim = node.record.claim
    assert open_claim == claim, "it may still be under way"
    node.handle(0, RegisterRead(Register(G2, ONE, 2)))
    assert (node.record.generation, node.record.claim) == (G1, claim), "nothing was done under it"
    assert Cas(claim, True) in node.handle(0, Ordered(Promote()))
    node.handle(0, ClaimAnswered(claim, Answer(True, Register(G2, ONE, 2))))
    assert (node.record.generation, node.phase) == (G2, Phase.PRIMARY)


def test_a_claim_that_nothing_was_done_under_gives_way_to_the_administrators_choice() -> None:
    """History 149 of the model: the primary died between its own register and its record; the other was promoted."""
    node = Node(SETTINGS, replace(RECORD, claim=Claim(G1, G2, Occasion.ALONE)), lambda: 5)
    node.handle(0, Recovered(True))
    node.handle(0, RegisterRead(Register(G2, ONE, 2)))
    node.handle(0, PeerConnected(1))
    theirs = replace(PEER, generation=OTHER, history=(_era(G1), _era(OTHER, TWO)), primary=True)
    commands = node.handle(0, PeerSaid(1, theirs))
    assert (node.record.claim, node.status().split) == (None, False)
    assert Say(1, Ready()) in commands + node.handle(0, PeerSaid(1, Enter(OTHER, Plan.LOG, G1)))


def test_a_late_reading_of_the_register_denies_nobody() -> None:
    """The model's aim `late_reading`: the claim was forgotten and then granted, and no node could be started."""
    node = _synced()
    claim = _claim(node.handle(0, PeerLost(1, "cut")))
    node.handle(0, RegisterRead(Register(BLANK, TWO, 0)))
    assert (node.phase, node.record.claim) == (Phase.PRIMARY, claim)


# ---- losing the peer ----


def test_a_primary_without_its_peer_holds_until_the_arbiter_grants() -> None:
    node = _synced()
    commands = node.handle(0, PeerLost(1, "cut"))
    assert SetGate not in _kinds(commands)
    assert node.record.peer_stale

    commands = node.handle(0, ClaimAnswered(_claim(commands), Answer(True, Register(G2, ONE, 3))))
    assert SetGate(Gate.ALONE) in commands


def test_a_primary_that_loses_the_claim_steps_down_at_once() -> None:
    node = _synced()
    claim = _claim(node.handle(0, PeerLost(1, "cut")))
    commands = node.handle(0, ClaimAnswered(claim, Answer(False, Register(OTHER, TWO, 3))))

    assert [each for each in commands if isinstance(each, SetGate | StopAccepting)] == [
        SetGate(Gate.CLOSED),
        StopAccepting(drain=False),
    ]
    assert node.phase is Phase.WAITING


def test_operations_hang_no_longer_than_the_configured_time() -> None:
    node = _synced()
    node.handle(0, PeerLost(1, "cut"))

    assert StopAccepting(drain=False) not in node.tick(SETTINGS.hold_ns - 1)
    assert StopAccepting(drain=False) in node.tick(SETTINGS.hold_ns)


# ---- resync ----


def test_the_switch_comes_before_done() -> None:
    node = _primary()
    node.handle(0, PeerConnected(1))
    node.handle(0, PeerSaid(1, PEER))
    node.handle(0, PeerSaid(1, Ready()))
    commands = node.handle(0, ResyncDrained(1))
    done = next(
        number for number, each in enumerate(commands) if isinstance(each, Say) and isinstance(each.message, Done)
    )

    assert commands.index(SetGate(Gate.PEER)) < done


@pytest.mark.parametrize(
    ("theirs", "plan"),
    [
        (PEER, Plan.LOG),
        (replace(PEER, log_usable=False), Plan.COMPARE),
        (replace(PEER, generation=BLANK, history=(), uptodate=False), Plan.COMPARE),
        (replace(PEER, generation=Generation(0, 3), history=(), uptodate=False), Plan.COMPARE),
    ],
)
def test_the_journals_are_used_only_against_a_known_base(theirs: Hello, plan: Plan) -> None:
    node = _primary()
    node.handle(0, PeerConnected(1))
    commands = node.handle(0, PeerSaid(1, theirs))
    enter = next(each.message for each in commands if isinstance(each, Say) and isinstance(each.message, Enter))

    assert enter.plan is plan
    assert enter.base in node.record.bases


def test_a_target_is_not_to_be_trusted_before_anything_changes_and_trusted_only_when_durable() -> None:
    node = _node()
    node.handle(0, PeerConnected(1))
    theirs = replace(PEER, generation=G2, history=(_era(G1), _era(G2, TWO)), primary=True)
    node.handle(0, PeerSaid(1, theirs))
    commands = node.handle(0, PeerSaid(1, Enter(G2, Plan.LOG, G1)))
    assert isinstance(commands[0], Persist)
    assert not commands[0].record.uptodate

    commands = node.handle(0, PeerSaid(1, Done(G2, theirs.history)))
    assert [each for each in commands if isinstance(each, Flush | Persist)] == [Flush(1)]
    kinds = _kinds(node.handle(0, Flushed(1)))
    assert kinds.index(Persist) < kinds.index(ClearJournal) < kinds.index(Say)
    assert (node.phase, node.record.generation, node.record.uptodate) == (Phase.SECONDARY, G2, True)


def test_a_flush_of_an_earlier_connection_proves_nothing() -> None:
    node = _node()
    theirs = replace(PEER, generation=G2, history=(_era(G1), _era(G2, TWO)), primary=True)
    for session in (1, 2):
        node.handle(0, PeerConnected(session))
        node.handle(0, PeerSaid(session, theirs))
        node.handle(0, PeerSaid(session, Enter(G2, Plan.LOG, G1)))
        node.handle(0, PeerSaid(session, Done(G2, theirs.history)))
    node.handle(0, Flushed(1))

    assert node.phase is Phase.TARGET


def test_a_peer_that_owes_an_answer_is_disconnected() -> None:
    node = _primary()
    node.handle(0, PeerConnected(1))
    node.handle(0, PeerSaid(1, PEER))
    assert node.link is Link.ENTERING
    # One that has ignored ENTER, because it is being promoted itself, still owes READY.
    node.handle(0, PeerSaid(1, replace(PEER, claiming=True)))

    assert [type(each).__name__ for each in node.tick(SETTINGS.answer_ns)] == ["Disconnect"]


# ---- split brain ----


def test_a_split_brain_is_shown_with_both_histories_and_touches_nothing() -> None:
    node = _primary()
    node.handle(0, PeerConnected(1))
    commands = node.handle(0, PeerSaid(1, replace(PEER, generation=OTHER, history=(_era(G1), _era(OTHER, TWO)))))
    status = node.status()

    assert (status.split, node.link) == (True, Link.NONE)
    assert not any(isinstance(each, Say) and isinstance(each.message, Enter) for each in commands)
    assert (status.history[-1].generation, status.peer_history[-1].generation) == (node.record.generation, OTHER)


def test_the_side_given_up_becomes_a_blank_target() -> None:
    node = _node()
    node.handle(0, Ordered(GiveUp()))

    assert (node.record.generation, node.record.uptodate, node.record.history) == (BLANK, False, ())
    assert "Demote this node first" in _refusal(_primary().handle(0, Ordered(GiveUp())))


def test_a_handover_that_lost_its_peer_says_so() -> None:
    node = _synced()
    node.handle(0, Ordered(Demote(handover=True)))
    node.handle(0, PeerLost(1, "cut"))

    assert "nobody is primary" in _refusal(node.handle(0, Flushed(1)))


# ---- pure decisions ----


def _handing_over() -> Node:
    node = _synced()
    node.handle(0, PeerSaid(1, UpToDate(node.record.generation)))
    node.handle(0, Ordered(Demote(handover=True)))
    node.handle(0, Stopped())
    assert Say(1, Resigned(node.record.generation, True)) in node.handle(0, Settled(1))
    return node


def test_who_hands_over_is_not_promoted_before_the_peer_has_spoken() -> None:
    """The model's aim `second_thoughts`: with the operator's arbiter both would have served."""
    node = _handing_over()
    order = Promote()
    assert isinstance(node.handle(0, Ordered(order))[0], OrderRefused)

    claiming = replace(PEER, generation=node.record.generation, history=node.record.history, claiming=True)
    node.handle(0, PeerSaid(1, claiming))
    assert isinstance(node.handle(0, Ordered(order))[0], OrderRefused)
    node.handle(0, PeerSaid(1, replace(claiming, claiming=False)))
    assert Cas in _kinds(node.handle(0, Ordered(order)))


def test_a_handover_that_nobody_answers_ends_the_connection_and_the_wait() -> None:
    node = _handing_over()
    due = node.next_wakeup_ns()
    assert Disconnect in _kinds(node.tick(due))
    node.handle(due, PeerLost(1, "silent"))
    assert Cas in _kinds(node.handle(due, Ordered(Promote())))


def test_a_comparison_of_an_earlier_connection_says_nothing() -> None:
    node = _synced()
    node.handle(0, PeerSaid(1, UpToDate(node.record.generation)))
    assert Verify(1, True) in node.handle(0, Ordered(Check(repair=True)))
    assert Tell not in _kinds(node.handle(0, VerifyEnded(0, 3)))
    assert Tell in _kinds(node.handle(0, VerifyEnded(1, 3)))


def test_histories_tell_who_continues_whom() -> None:
    one, two, other = (_era(G1),), (_era(G1), _era(G2)), (_era(G1), _era(OTHER))

    assert relation(G2, two, G1, one) is Relation.AHEAD
    assert relation(G1, one, G2, two) is Relation.BEHIND
    assert relation(G1, one, G1, one) is Relation.EQUAL
    assert relation(G2, two, OTHER, other) is Relation.DIVERGED
    assert relation(G1, one, BLANK, ()) is Relation.AHEAD


def test_meeting_is_the_same_from_both_sides() -> None:
    ahead = replace(PEER, node=ONE, generation=G2, history=(_era(G1), _era(G2)), primary=True)

    assert (meet(ahead, PEER, alone=True), meet(PEER, ahead, alone=False)) == (Meeting.LEAD, Meeting.FOLLOW)
    assert meet(replace(PEER, primary=True), replace(ahead, primary=False), alone=False) is Meeting.STEP_DOWN
    assert meet(replace(PEER, primary=True), replace(ahead, primary=False), alone=True) is Meeting.SPLIT
    assert meet(PEER, replace(ahead, mirror=bytes(16)), alone=False) is Meeting.FOREIGN
    assert meet(PEER, PEER, alone=False) is Meeting.FOREIGN
    claiming = replace(PEER, claiming=True)
    assert meet(replace(PEER, node=ONE, primary=True), claiming, alone=False) is Meeting.WAIT


def test_of_two_claims_from_one_generation_one_is_granted_and_repeated_as_often_as_asked() -> None:
    mine, theirs = Claim(G1, G2, Occasion.START), Claim(G1, OTHER, Occasion.ALONE)
    answer = decide(Register(G1, ONE, 1), mine, ONE)

    assert answer == Answer(True, Register(G2, ONE, 2))
    assert decide(answer.register, mine, ONE) == answer
    assert decide(answer.register, theirs, TWO) == Answer(False, answer.register)
    assert decide(Register(Generation(9, 9), TWO, 1), replace(mine, forced=True), ONE).granted is False


def test_the_operators_register_moves_for_a_lost_peer_and_for_orders_only() -> None:
    register = Register(G1, ONE, 1)

    assert decide_by_operator(register, Claim(G1, G2, Occasion.ALONE), ONE, ordered=False).granted
    assert not decide_by_operator(register, Claim(G1, G2, Occasion.START), ONE, ordered=False).granted
    assert decide_by_operator(register, Claim(G1, G2, Occasion.START), ONE, ordered=True).granted
    assert followed(register, G2, TWO).generation == G2
    assert followed(Register(G2, ONE, 2), G1, TWO).generation == G2


@pytest.mark.parametrize("mode", Mode)
def test_nothing_returns_through_a_closed_gate_or_without_the_peer_that_is_needed(mode: Mode) -> None:
    waiting = Standing(sync=False, done_here=True, enqueued=False, done_there=False)

    assert not may_return(mode, Gate.CLOSED, replace(waiting, enqueued=True, done_there=True))
    assert not may_return(mode, Gate.PEER, waiting)
    assert may_return(mode, Gate.ALONE, waiting)
    assert not may_return(mode, Gate.ALONE, replace(waiting, done_here=False))


def test_what_each_mode_waits_for() -> None:
    write = Standing(sync=False, done_here=True, enqueued=True, done_there=False)
    sync = replace(write, sync=True)
    returned = {mode: (may_return(mode, Gate.PEER, write), may_return(mode, Gate.PEER, sync)) for mode in Mode}

    assert returned == {Mode.STRICT: (False, False), Mode.BARRIER: (True, False), Mode.ASYNC: (True, True)}
    assert not may_return(Mode.ASYNC, Gate.PEER, write, lag_ok=False)
