# SPDX-License-Identifier: Apache-2.0
"""Claiming the arbiter's register: to become primary, or to go on without the peer.

A claim is made durable before it is sent and stays open until it is answered, over crashes too: as long as nobody
knows the answer, neither node may be sure. An open claim is repeated as it is; a new one is made only when there is
none.
"""

from __future__ import annotations

from farmd.mirror.acks import Gate
from farmd.mirror.arbiter import Answer, Claim, Occasion, Register
from farmd.mirror.commands import (
    Cas,
    Disconnect,
    Inherit,
    News,
    ReadRegister,
    StartAccepting,
    StopAccepting,
    StopReceiving,
)
from farmd.mirror.generation import BLANK, Cause, Generation, knows
from farmd.mirror.messages import Done
from farmd.mirror.orders import Accept
from farmd.mirror.refusals import denied
from farmd.mirror.state import FAR_NS, Link, Phase, State


def claim(state: State, now_ns: int, occasion: Occasion) -> None:
    """Begin, or repeat, a claim. The record says from now on that the peer may be left behind (rule 3)."""
    record = state.record
    if record.claim is None:
        generation = record.generation
        new = Generation(generation.epoch + 1, state.draw_tag())
        state.persist(claim=Claim(generation, new, occasion), peer_stale=True)
    send(state, now_ns)


def send(state: State, now_ns: int) -> None:
    """Ask the arbiter, and again after a while if it does not answer."""
    if state.record.claim is not None:
        state.claim_at_ns = now_ns + state.settings.claim_retry_ns
        # Whoever wants nothing now only reads: repeating the claim could take the register from a better copy.
        state.out.append(Cas(state.record.claim, state.order is not None) if _claims(state) else ReadRegister())


def _claims(state: State) -> bool:
    """Whether this node wants the register now."""
    return state.phase in {Phase.CLAIMING, Phase.PRIMARY}


def on_answer(state: State, now_ns: int, answered: Claim, answer: Answer) -> None:
    """The arbiter answered."""
    if answered != state.record.claim:
        return
    state.claim_at_ns = FAR_NS
    if answer.granted:
        _granted(state, now_ns, answered)
    elif state.phase is Phase.PRIMARY:
        state.persist(claim=None)
        step_down(state, "the arbiter has a newer generation: the other node took over")
    elif state.phase is Phase.CLAIMING and state.accepts(Accept.STALE):
        force(state, now_ns, answer.register)
    else:
        _denied(state, answer.register)


def on_register(state: State, now_ns: int, register: Register) -> None:
    """What the arbiter holds settles a claim that nobody waits for any more, unless it was never executed.

    Who claims gets an answer of its own. A reading may be older than the claim, and would deny what is granted.
    """
    claim_ = state.record.claim
    if claim_ is None or register.generation == claim_.expected or _claims(state):
        return
    on_answer(state, now_ns, claim_, Answer(register.generation == claim_.new, register))


def drop_dead(state: State) -> None:
    """The peer's history went past what our claim expects, so it can never be granted any more."""
    claim_, theirs = state.record.claim, state.theirs
    if claim_ is None or theirs is None or theirs.generation in (claim_.expected, claim_.new):
        return
    if knows(theirs.history, claim_.expected) and not knows(theirs.history, claim_.new) and not claim_.forced:
        state.persist(claim=None)
        state.claim_at_ns = FAR_NS
        if state.phase is Phase.CLAIMING:
            _denied(state, Register(theirs.generation, theirs.node))


def step_down(state: State, why: str) -> None:
    """Serve no more, at once. What was not acknowledged fails; the journal keeps what it touched."""
    state.set_gate(Gate.CLOSED)
    state.out.append(StopAccepting(drain=False))
    if state.link is not Link.NONE and state.session is not None:
        state.out.append(Disconnect(state.session, why))
    state.phase, state.link = Phase.WAITING, Link.NONE
    state.hold_until_ns = state.deadline_ns = FAR_NS
    state.tell(News.STEPPED_DOWN, f"this node serves no more: {why}", cause=why)


def _granted(state: State, now_ns: int, claim_: Claim) -> None:
    if state.phase is Phase.PRIMARY:
        state.begin_generation(now_ns, claim_, Cause.ALONE)
        _go_on(state)
    elif state.phase is Phase.CLAIMING:
        _become_primary(state, now_ns, claim_)
    elif claim_.forced:
        # The administrator gave the other side up, whether or not we are asked to serve this one again.
        state.begin_generation(now_ns, claim_, Cause.FORCED)
    # Else a claim of an earlier incarnation, or one that came too late: nothing was done under it. It stays open until
    # this node is asked to serve. Taking it up now would be a split brain, if the administrator has made the other node
    # continue from where we left off.


def _go_on(state: State) -> None:
    """A primary got its new generation: without the peer, or with it if it came back meanwhile."""
    state.hold_until_ns = FAR_NS
    if state.link is Link.SYNCED:
        state.say(Done(state.record.generation, state.record.history))
    elif state.link is not Link.CLOSING:
        state.set_gate(Gate.ALONE)
        state.tell(News.ALONE, f"going on without {state.peer_name}: what changes is noted for its return")


def _become_primary(state: State, now_ns: int, claim_: Claim) -> None:
    cause = Cause.PROMOTED
    if claim_.forced:
        cause = Cause.FIRST if claim_.expected == BLANK else Cause.FORCED
    state.out += [StopReceiving(), Inherit()]
    # What a forced generation skipped over is not in its journal: only a comparison finds it.
    skipped = {"bases": frozenset[Generation]()} if claim_.forced else {}
    state.begin_generation(now_ns, claim_, cause, uptodate=True, was_primary=True, **skipped)
    state.phase, state.link = Phase.PRIMARY, Link.NONE
    state.set_gate(Gate.ALONE)
    state.out.append(StartAccepting())
    state.tell(News.PRIMARY, "this node is primary", generation=str(claim_.new), cause=str(cause))
    if state.order is not None:
        state.done(state.order)
        state.order = None


def force(state: State, now_ns: int, register: Register | None = None) -> None:
    """The administrator accepts the loss: a generation above everything that the arbiter has seen."""
    mine = state.record.generation
    seen = register.generation.epoch if register else 0
    new = Generation(max(seen, mine.epoch) + 1, state.draw_tag())
    state.persist(claim=Claim(mine, new, Occasion.START, forced=True))
    send(state, now_ns)


def _denied(state: State, register: Register) -> None:
    if state.record.claim is not None:
        state.persist(claim=None)
    if state.phase is not Phase.CLAIMING:
        return
    state.phase = Phase.WAITING
    if state.order is not None:
        state.refuse(state.order, denied(state, register))
        state.order = None
