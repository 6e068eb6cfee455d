# SPDX-License-Identifier: Apache-2.0
"""What a node shows of itself; the engine adds its counters (lag, dirty bytes, progress)."""

from __future__ import annotations

from dataclasses import dataclass

from farmd.mirror.acks import Gate
from farmd.mirror.generation import Generation, History
from farmd.mirror.state import Link, Phase, State


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """A frozen picture of one node."""

    phase: Phase
    gate: Gate
    link: Link
    generation: Generation
    uptodate: bool
    half_synced: bool
    peer_stale: bool
    claiming: bool
    split: bool
    connected: bool
    history: History
    peer_history: History
    why: str
    """In one sentence, why both copies are, or are not, in sync."""


def picture(state: State) -> MirrorStatus:
    """The node as it is now."""
    record = state.record
    return MirrorStatus(
        phase=state.phase,
        gate=state.gate,
        link=state.link,
        generation=record.generation,
        uptodate=record.uptodate,
        half_synced=record.half_synced,
        peer_stale=record.peer_stale,
        claiming=record.claim is not None,
        split=state.split,
        connected=state.session is not None,
        history=record.history,
        peer_history=state.theirs.history if state.theirs else (),
        why=_why(state),
    )


def _why(state: State) -> str:
    peer = state.peer_name
    if state.split:
        return "split brain: each copy has writes that the other does not know; choose a side"
    if state.phase is Phase.PRIMARY:
        return _why_primary(state)
    if state.phase is Phase.SECONDARY:
        return "in sync: this copy may be promoted"
    if state.phase is Phase.TARGET:
        return f"not in sync: {peer} is bringing this copy up to date"
    if state.record.half_synced:
        return f"not in sync: a resync was interrupted; start {peer}"
    if not state.record.uptodate:
        return "not in sync: this copy holds nothing of the mirror yet"
    if state.session is None:
        return f"not known: {peer} is not connected; this copy is whole as of its generation"
    return "nobody is primary"


def _why_primary(state: State) -> str:
    peer = state.peer_name
    if state.link is Link.SYNCED:
        return f"in sync with {peer}"
    if state.holding:
        return f"not in sync: {peer} is lost and the arbiter has not answered; operations wait"
    if state.link is Link.NONE:
        return f"not in sync: serving alone; {peer} is not connected or waits"
    return f"not in sync: {peer} is being brought up to date"
