# SPDX-License-Identifier: Apache-2.0
"""The secondary's part: becoming a target, becoming up to date, and taking over in the planned way."""

from __future__ import annotations

from farmd.mirror import claims
from farmd.mirror.arbiter import Occasion
from farmd.mirror.commands import ClearJournal, News, SendCover, StartReceiving, StopReceiving
from farmd.mirror.messages import Done, Enter, Plan, Ready, Resigned, UpToDate
from farmd.mirror.orders import Promote
from farmd.mirror.state import FAR_NS, Phase, State

_FOLLOWERS = {Phase.WAITING, Phase.CLAIMING, Phase.SECONDARY, Phase.TARGET}


def on_enter(state: State, message: Enter) -> None:
    """Become the peer's target. The record says so before anything of our copy is overwritten."""
    if state.phase not in _FOLLOWERS or state.session is None or state.record.claim is not None:
        return
    state.phase, state.finishing = Phase.TARGET, None
    compared = {"generation": message.base, "history": ()} if message.plan is Plan.COMPARE else {}
    state.persist(uptodate=False, **compared)
    state.out += [StartReceiving(state.session), SendCover(state.session)]
    state.say(Ready())
    state.tell(News.RESYNC_STARTED, f"{state.peer_name} brings this copy up to date", plan=str(message.plan))


def on_done(state: State, message: Done) -> None:
    """Everything is here; make it durable before it counts."""
    if state.phase in {Phase.TARGET, Phase.SECONDARY}:
        state.finishing = message
        state.flush()


def on_flushed(state: State) -> None:
    """Durable: now the record may say so, and only now our own journal may be forgotten."""
    done = state.finishing
    if done is None or state.phase not in {Phase.TARGET, Phase.SECONDARY}:
        return
    state.finishing = None
    state.persist(
        generation=done.generation,
        history=done.history,
        uptodate=True,
        was_primary=False,
        peer_stale=False,
        claim=None,
        bases=frozenset(),
    )
    state.out.append(ClearJournal())
    state.log_usable = True
    state.say(UpToDate(done.generation))
    if state.phase is Phase.TARGET:
        state.phase = Phase.SECONDARY
        state.tell(News.SECONDARY, "this copy is up to date", generation=str(done.generation))


def on_lost(state: State) -> None:
    """The primary is gone. A secondary keeps its right to be promoted; a target has none."""
    if state.phase in {Phase.TARGET, Phase.SECONDARY}:
        state.phase, state.finishing = Phase.WAITING, None
        state.out.append(StopReceiving())


def on_resigned(state: State, now_ns: int, message: Resigned) -> None:
    """The primary has stopped in the planned way."""
    if state.phase is not Phase.SECONDARY or message.generation != state.record.generation:
        return
    state.phase, state.deadline_ns = Phase.WAITING, FAR_NS
    state.out.append(StopReceiving())
    if message.handover:
        state.phase, state.order = Phase.CLAIMING, Promote()
        claims.claim(state, now_ns, Occasion.START)
