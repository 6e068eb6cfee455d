# SPDX-License-Identifier: Apache-2.0
"""The mirror with one safeguard removed at a time. A model that does not notice proves nothing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any

from farmd.mirror import claims, operator, source, target
from farmd.mirror.acks import Gate, Mode, Standing
from farmd.mirror.arbiter import Answer, Claim, Occasion, Register
from farmd.mirror.commands import ClearJournal, Flush, Persist, SendCover
from farmd.mirror.events import PeerSaid
from farmd.mirror.generation import Cause, Generation
from farmd.mirror.messages import Done, Enter, Message
from farmd.mirror.orders import Promote
from farmd.mirror.receiving import Unflushed
from farmd.mirror.state import Link, Phase, State
from farmd.mirror.tracking import Admission, Tracker
from farmd.mirror.zones import Line, Mark, Zone
from farmd.model.errors import Refused
from farmd.model.nodes import NodeId
from tests.sim.mirror import engine as engine_module
from tests.sim.mirror import world as world_module
from tests.sim.mirror.disk import Disk
from tests.sim.mirror.engine import Engine
from tests.sim.mirror.network import Frame
from tests.sim.mirror.world import Host, World
from tests.sim.patching import Patch, patched


class Mutant(StrEnum):
    """Which safeguard is missing, with its rule in `farmd.mirror.core`."""

    NO_ARBITER = "no arbiter (rule 2)"
    ACK_BEFORE_SWITCH = "DONE before the switch (rule 6)"
    LOG_IGNORED = "crashed primary's log ignored (rule 5)"
    EVICTED_EARLY = "log evicted before both are durable"
    STALE_COPY = "stale zone copy: read without the lock"
    NO_INHERITANCE = "no inheritance, nor the peer's log in one's own (rule 4)"
    ALONE_BEFORE_CAS = "alone before the compare-and-swap (rule 3)"
    CLAIM_REPLACED = "a claim forgotten in a crash (rule 8)"
    UPTODATE_BEFORE_FLUSH = "up to date before the flush (rule 6)"
    JOURNAL_CLEARED_EARLY = "a target forgets its journal before it is up to date (rule 6)"
    SETTLED_IN_CACHE = "settled when applied, not when durable"
    MARK_AFTER_WRITE = "a zone is used before its mark is durable"
    BITMAP_FORGETS = "a lost peer's unsettled blocks are not sent again"
    ANY_BASE = "a journal is taken for valid against any generation (rule 9)"
    SYNC_NOT_AWAITED = "a sync returns before it is durable on both disks"
    OVERWRITTEN_FIRST = "a target is overwritten before its record says so (rule 5)"
    DONE_OVERTAKES = "DONE overtakes the data (rule 6)"
    LATE_MESSAGES = "a message of an earlier session counts"
    OLD_FLUSH = "a flush of an earlier connection counts (rule 6)"
    CLAIM_TAKEN_UP = "an unused claim is taken up by a node that nobody asks to serve (rule 8)"
    WALK_UNTRACKED = "blocks of the walk settle without a line of their own"
    READING_BELIEVED = "a late reading of the register denies a claim under way (rule 8)"
    HANDOVER_FORGOTTEN = "who hands over may be promoted before the peer has spoken"
    REPAIR_UNMARKED = "verify does not mark what it found"


def _always(register: Register, claim: Claim, node: NodeId) -> Answer:
    return Answer(True, Register(claim.new, node, register.moves + 1))


def _done_first(state: State, now_ns: int) -> None:
    if state.link is Link.COPYING:
        state.link = Link.CLOSING
        state.deadline_ns = now_ns + state.settings.answer_ns
        state.say(Done(state.record.generation, state.record.history))
        state.set_gate(Gate.PEER)


def _ignore(self: Tracker, lines: Iterable[Line]) -> None:
    pass


def _may_always_go(self: Tracker, entry: Any) -> bool:
    return not (entry.pins or entry.issued) and (entry.hot or entry.durable != entry.unsent)


def _in_memory_only(self: Tracker, lines: Iterable[Line]) -> None:
    """Without this as well, the returning primary's own log would stand in for the zones not inherited."""
    for line in lines:
        if isinstance(line, Mark):
            self._entry(line.zone).unsent |= line.zone.full if line.hot else line.mask


def _unchecked(self: Tracker) -> None:
    pass


def _nothing_received(self: Unflushed) -> list[Line]:
    return []


_on_lost = source.on_lost


def _alone_at_once(state: State, now_ns: int) -> None:
    was_peer = state.gate is Gate.PEER
    _on_lost(state, now_ns)
    if was_peer:
        state.set_gate(Gate.ALONE)


def _not_recorded(state: State, now_ns: int, occasion: Occasion) -> None:
    """The claim is kept in memory only."""
    if state.record.claim is None:
        generation = state.record.generation
        new = Generation(generation.epoch + 1, state.draw_tag())
        state.persist(peer_stale=True, claim=Claim(generation, new, occasion))
        state.out.pop()
    claims.send(state, now_ns)


def _durable_at_once(state: State, message: Done) -> None:
    _on_done(state, message)
    if state.finishing is not None:
        state.out.pop()
        target.on_flushed(state)


_on_done = target.on_done
_on_enter = target.on_enter


def _cleared_first(state: State, message: Enter) -> None:
    before = len(state.out)
    _on_enter(state, message)
    for place, command in enumerate(state.out[before:], before):
        if isinstance(command, SendCover):
            # Its own cover is handed over all the same, once.
            state.out.insert(place + 1, ClearJournal())
            return


def _record_last(state: State, message: Enter) -> None:
    before = len(state.out)
    _on_enter(state, message)
    # A stable sort: all the rest in its order, then the record.
    state.out[before:] = sorted(state.out[before:], key=lambda command: isinstance(command, Persist))


def _no_flush(self: World, disk: Disk) -> None:
    pass


def _ready_at_once(self: Tracker, touches: dict[Zone, int]) -> Admission:
    for zone in touches:
        self._entry(zone).pins += 1
    return Admission.READY


def _forget_unsettled(self: Tracker) -> None:
    for entry in self._zones.values():
        entry.unsettled = 0


_lead = source.lead


def _any_base(state: State, now_ns: int, theirs: Any) -> None:
    if state.link is Link.NONE:
        object.__setattr__(state.record, "bases", state.record.bases | {theirs.generation})
    _lead(state, now_ns, theirs)


def _sync_like_a_write(mode: Mode, gate: Gate, op: Standing, *, lag_ok: bool = True) -> bool:
    if gate is Gate.CLOSED or not op.done_here:
        return False
    return gate is Gate.ALONE or op.enqueued


def _say_at_once(self: Engine, message: Message) -> None:
    self.send(Frame("message", message=message))


def _of_this_session(self: World, host: Host, number: int, message: Message) -> PeerSaid:
    return PeerSaid(self.sessions, message)


def _same_number(self: State) -> None:
    self.flushes = 1
    self.out.append(Flush(1))


_granted = claims._granted


def _taken_up(state: State, now_ns: int, claim: Claim) -> None:
    _granted(state, now_ns, claim)
    if state.phase not in {Phase.PRIMARY, Phase.CLAIMING} and not claim.forced:
        state.begin_generation(now_ns, claim, Cause.PROMOTED)


def _all_sent(self: Tracker, seq: int, zone: Zone, mask: int) -> None:
    entry = self._entry(zone)
    entry.unsent &= ~mask
    entry.unsettled |= mask
    entry.seq = max(entry.seq, seq)


def _not_repaired(self: Engine, frame: Frame) -> None:
    assert self.verifying is not None
    self.verifying.awaited -= 1
    self.verifying.differences += len(frame.cells)


def _believed(state: State, now_ns: int, register: Register) -> None:
    claim_ = state.record.claim
    if claim_ is not None and register.generation != claim_.expected:
        claims.on_answer(state, now_ns, claim_, Answer(register.generation == claim_.new, register))


_why_not = operator._why_not


def _hand_forgotten(state: State, order: Promote) -> Refused | None:
    state.handed = False
    return _why_not(state, order)


_PATCHES: dict[Mutant, list[Patch]] = {
    Mutant.NO_ARBITER: [(world_module, "decide", _always)],
    Mutant.ACK_BEFORE_SWITCH: [(source, "on_drained", _done_first)],
    Mutant.LOG_IGNORED: [(Tracker, "suspect", _ignore)],
    Mutant.EVICTED_EARLY: [(Tracker, "_may_go", _may_always_go)],
    Mutant.STALE_COPY: [],
    Mutant.NO_INHERITANCE: [
        (Unflushed, "lines", _nothing_received),
        (Tracker, "suspect", _in_memory_only),
        (Tracker, "check", _unchecked),
    ],
    Mutant.ALONE_BEFORE_CAS: [(source, "on_lost", _alone_at_once)],
    Mutant.CLAIM_REPLACED: [(claims, "claim", _not_recorded)],
    Mutant.UPTODATE_BEFORE_FLUSH: [(target, "on_done", _durable_at_once)],
    Mutant.JOURNAL_CLEARED_EARLY: [(target, "on_enter", _cleared_first)],
    Mutant.SETTLED_IN_CACHE: [(World, "flush_peer", _no_flush)],
    Mutant.MARK_AFTER_WRITE: [(Tracker, "admit", _ready_at_once)],
    Mutant.BITMAP_FORGETS: [(Tracker, "peer_lost", _forget_unsettled)],
    Mutant.ANY_BASE: [(source, "lead", _any_base)],
    Mutant.SYNC_NOT_AWAITED: [(engine_module, "may_return", _sync_like_a_write)],
    Mutant.OVERWRITTEN_FIRST: [(target, "on_enter", _record_last)],
    Mutant.DONE_OVERTAKES: [(Engine, "say", _say_at_once)],
    Mutant.LATE_MESSAGES: [(World, "late_message", _of_this_session)],
    Mutant.OLD_FLUSH: [(State, "flush", _same_number)],
    Mutant.CLAIM_TAKEN_UP: [(claims, "_granted", _taken_up)],
    Mutant.WALK_UNTRACKED: [(Tracker, "sent", _all_sent)],
    Mutant.READING_BELIEVED: [(claims, "on_register", _believed)],
    Mutant.HANDOVER_FORGOTTEN: [(operator, "_why_not", _hand_forgotten)],
    Mutant.REPAIR_UNMARKED: [(Engine, "_compared", _not_repaired)],
}


def mutated(mutant: Mutant | None) -> AbstractContextManager[None]:
    """The mirror without this safeguard, as long as the context lasts."""
    return patched(_PATCHES[mutant] if mutant else ())
