# SPDX-License-Identifier: Apache-2.0
"""Orders: each is carried out or refused with object, cause and next step; a refusal changes nothing."""

from __future__ import annotations

from farmd.mirror import claims, refusals, source
from farmd.mirror.acks import Gate
from farmd.mirror.arbiter import Occasion
from farmd.mirror.commands import Checkpoint, Disconnect, Halt, News, StopAccepting, StopReceiving, Verify
from farmd.mirror.generation import BLANK
from farmd.mirror.messages import Hello, Resigned
from farmd.mirror.orders import Accept, Check, Demote, GiveUp, Order, Promote, Resync, Stop
from farmd.mirror.state import FAR_NS, Link, Phase, State
from farmd.model.errors import Refused


def on_order(state: State, now_ns: int, order: Order) -> None:
    """The administrator's order."""
    match order:
        case Promote():
            _promote(state, now_ns, order)
        case Demote():
            _demote(state, order)
        case Stop():
            _stop(state, order)
        case Resync():
            _resync(state, order)
        case Check():
            _check(state, order)
        case GiveUp():
            _give_up(state, order)


# ---- promote ----


def _promote(state: State, now_ns: int, order: Promote) -> None:
    error = _why_not(state, order)
    if error is not None:
        state.refuse(order, error)
        return
    if state.is_primary:
        state.done(order)
        return
    state.order, state.phase = order, Phase.CLAIMING
    record = state.record
    if record.claim is None and (not record.uptodate or order.accept is Accept.FIRST):
        # Neither rule 2 nor the journal speaks for this copy: only the administrator does.
        claims.force(state, now_ns)
    else:
        claims.claim(state, now_ns, Occasion.START)


def _why_not(state: State, order: Promote) -> Refused | None:
    record, theirs = state.record, state.theirs
    if state.phase is Phase.STARTING:
        return refusals.wrong_role("promote", "still starting", "Try again in a moment.")
    if state.phase is Phase.CLAIMING:
        return refusals.wrong_role("promote", "being promoted already", "Wait for the arbiter's answer.")
    if state.is_primary:
        return None
    if theirs is not None and theirs.primary and not state.split:
        return refusals.peer_serves(state)
    if state.handed and order.accept < Accept.STALE:
        return refusals.handed_over(state)
    if state.split and order.accept < Accept.STALE:
        return refusals.split(state, "promote")
    if record.generation == BLANK:
        return None if order.accept is Accept.FIRST else refusals.blank(state)
    if order.accept is Accept.FIRST:
        return refusals.not_first(state)
    if record.half_synced and order.accept < Accept.INCONSISTENT:
        return refusals.half_synced(state)
    return None


# ---- demote, swap, stop ----


def _demote(state: State, order: Demote) -> None:
    if state.phase is not Phase.PRIMARY:
        state.refuse(order, refusals.wrong_role("demote", str(state.phase), "Give the order to the primary."))
    elif state.holding or state.record.claim is not None:
        cause = "waiting for the arbiter's answer"
        state.refuse(order, refusals.wrong_role("demote", cause, "Try again when status shows it alone or in sync."))
    elif order.handover and state.link is not Link.SYNCED:
        cause = f"primary without an up-to-date {state.peer_name}"
        state.refuse(order, refusals.wrong_role("swap", cause, "Wait for the end of the resync."))
    else:
        _resign(state, order)


def _stop(state: State, order: Stop) -> None:
    if state.phase is Phase.PRIMARY and not state.holding:
        _resign(state, order)
        return
    if state.is_primary:
        claims.step_down(state, "it is stopped")
    state.out.append(StopReceiving())
    _halt(state, order)


def _halt(state: State, order: Stop) -> None:
    state.phase = Phase.STOPPED
    state.claim_at_ns = state.deadline_ns = state.hold_until_ns = FAR_NS
    state.done(order)
    state.tell(News.STOPPED, "this node is stopped")
    state.out.append(Halt())


def _resign(state: State, order: Demote | Stop) -> None:
    state.phase, state.ending = Phase.RESIGNING, order
    state.out.append(StopAccepting(drain=True))


def on_stopped(state: State) -> None:
    """No application is in any more."""
    if state.phase is Phase.RESIGNING:
        _make_durable(state)


def _make_durable(state: State) -> None:
    if state.link is Link.SYNCED and state.session is not None:
        state.out.append(Checkpoint(state.session))
    else:
        state.flush()


def on_settled(state: State, now_ns: int) -> None:
    """Both copies are equal and durable: either may be promoted next."""
    if state.phase is not Phase.RESIGNING or state.link is not Link.SYNCED or state.ending is None:
        return
    handover = isinstance(state.ending, Demote) and state.ending.handover
    generation = state.record.generation
    _resigned(state, Resigned(generation, handover))
    if handover and state.session is not None:
        # Both may serve now: until the peer has spoken, nobody is asked but the peer.
        state.handed = True
        state.deadline_ns = now_ns + state.settings.answer_ns


def on_hello(state: State, hello: Hello) -> None:
    """The peer says how the handover went: it serves, or its claim has ended otherwise."""
    gave_up = state.theirs is not None and state.theirs.claiming and not hello.claiming
    if hello.primary or gave_up:
        state.handed = False


def on_flushed(state: State) -> None:
    """A primary without an up-to-date peer has resigned; only its own copy may be promoted next."""
    if state.phase is not Phase.RESIGNING or state.ending is None:
        return
    if state.link is Link.SYNCED:
        # The peer has confirmed meanwhile: resign with it after all.
        _make_durable(state)
    else:
        _resigned(state, None)


def on_lost(state: State) -> None:
    """The peer went while this node resigns: what waits for it fails, for nothing is claimed any more."""
    state.link = Link.NONE
    if state.gate is Gate.PEER:
        state.set_gate(Gate.CLOSED)
    state.out.append(StopAccepting(drain=False))
    state.flush()


def _resigned(state: State, message: Resigned | None) -> None:
    order, state.ending = state.ending, None
    state.set_gate(Gate.CLOSED)
    state.persist(was_primary=False)
    if message is not None:
        state.say(message)
    elif state.session is not None:
        state.out.append(Disconnect(state.session, "this node has resigned before the resync was done"))
    state.phase, state.link = Phase.WAITING, Link.NONE
    state.tell(News.RESIGNED, "this node has resigned in the planned way")
    if isinstance(order, Stop):
        _halt(state, order)
    elif isinstance(order, Demote) and order.handover and message is None:
        state.refuse(order, refusals.not_handed_over(state))
    elif order is not None:
        state.done(order)


# ---- resync, verify, choosing a side ----


def _resync(state: State, order: Resync) -> None:
    if state.phase is not Phase.PRIMARY:
        state.refuse(order, refusals.wrong_role("resync", str(state.phase), "Give the order to the primary."))
        return
    source.compare_everything(state)
    state.done(order)


def _check(state: State, order: Check) -> None:
    if state.phase is Phase.PRIMARY and state.link is Link.SYNCED and state.session is not None:
        state.out.append(Verify(state.session, order.repair))
        state.done(order)
        return
    state.refuse(order, refusals.wrong_role("verify", "not a primary in sync", "Wait for the end of the resync."))


def _give_up(state: State, order: GiveUp) -> None:
    if state.phase is not Phase.WAITING:
        state.refuse(order, refusals.wrong_role("resync --give-up", str(state.phase), "Demote this node first."))
        return
    state.persist(generation=BLANK, uptodate=False, history=(), bases=frozenset(), claim=None, was_primary=False)
    state.split = False
    state.done(order)
