# SPDX-License-Identifier: Apache-2.0
"""The primary's part of a resync: ENTER, the copying, the switch, DONE.

The order at the end is the point of it (rule 6): *first* the primary stops acknowledging without the peer, *then* it
says DONE. The other way round there is a moment in which the target may already be promoted while an operation that
it never saw is acknowledged here.
"""

from __future__ import annotations

from farmd.mirror import claims
from farmd.mirror.acks import Gate
from farmd.mirror.arbiter import Occasion
from farmd.mirror.commands import CompareAll, Disconnect, News, StartResync, Tell
from farmd.mirror.generation import Generation
from farmd.mirror.messages import Done, Enter, Hello, Plan, Ready, UpToDate
from farmd.mirror.state import FAR_NS, Link, State


def lead(state: State, now_ns: int, theirs: Hello) -> None:
    """Bring the peer's copy up to date from this one."""
    if state.link is not Link.NONE:
        return
    record = state.record
    known = theirs.generation in record.bases or theirs.generation == record.generation
    logs = known and state.log_usable and theirs.log_usable and not state.compare_next
    base = theirs.generation
    if not logs:
        # From here on everything is marked, so a copy that is known by this very base is resumed by the journal.
        base = Generation(0, state.draw_tag())
        state.out.append(CompareAll())
        state.persist(bases=frozenset({base}))
        state.log_usable, state.compare_next = True, False
    plan = Plan.LOG if logs else Plan.COMPARE
    state.link = Link.ENTERING
    # The target follows only whom it knows to be primary.
    state.greet()
    state.deadline_ns = now_ns + state.settings.answer_ns
    state.say(Enter(record.generation, plan, base))
    state.tell(News.RESYNC_STARTED, f"bringing {state.peer_name} up to date", plan=str(plan))


def on_ready(state: State, message: Ready) -> None:
    """The target cannot be promoted any more, and its journal's cover is here."""
    if state.link is Link.ENTERING and state.session is not None:
        state.link = Link.COPYING
        state.deadline_ns = FAR_NS
        state.out.append(StartResync(state.session))


def on_drained(state: State, now_ns: int) -> None:
    """Nothing is left to send: the switch."""
    if state.link is Link.COPYING:
        state.link = Link.CLOSING
        state.deadline_ns = now_ns + state.settings.answer_ns
        state.set_gate(Gate.PEER)
        state.say(Done(state.record.generation, state.record.history))


def on_uptodate(state: State, message: UpToDate) -> None:
    """The peer may be promoted from now on, and our journal is valid against nothing older."""
    if state.link not in {Link.CLOSING, Link.SYNCED}:
        return
    if message.generation != state.record.generation:
        # Our claim was granted meanwhile.
        state.say(Done(state.record.generation, state.record.history))
        return
    first = state.link is Link.CLOSING
    state.link, state.deadline_ns, state.hold_until_ns = Link.SYNCED, FAR_NS, FAR_NS
    state.persist(bases=frozenset(), peer_stale=False)
    if first:
        state.tell(News.RESYNC_DONE, f"{state.peer_name} is up to date", generation=str(message.generation))


def on_lost(state: State, now_ns: int) -> None:
    """The peer is gone. Nothing is acknowledged alone before the arbiter has granted it (rule 3)."""
    state.link, state.deadline_ns = Link.NONE, FAR_NS
    if state.gate is Gate.PEER:
        if state.hold_until_ns == FAR_NS:
            state.hold_until_ns = now_ns + state.settings.hold_ns
            state.out.append(Tell(News.HOLDING, f"{state.peer_name} is lost: operations wait for the arbiter", {}))
        claims.claim(state, now_ns, Occasion.ALONE)


def compare_everything(state: State) -> None:
    """The administrator's resync: leave the peer behind as if it were lost, then compare all."""
    state.compare_next = True
    if state.session is not None:
        state.out.append(Disconnect(state.session, "a full comparison was ordered"))
