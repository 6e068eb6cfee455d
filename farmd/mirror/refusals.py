# SPDX-License-Identifier: Apache-2.0
"""Why an order was refused, in words for people: the object, the cause with what would be lost, the next step."""

from __future__ import annotations

from farmd.mirror.arbiter import Register
from farmd.mirror.generation import BLANK, History
from farmd.mirror.state import State
from farmd.model.errors import Refused


def denied(state: State, register: Register) -> Refused:
    """The arbiter's register is not at this copy's generation."""
    mine, held = state.record.generation, register.generation
    if mine.epoch > held.epoch:
        return Refused(
            "promote",
            f"this copy has generation {mine}, the arbiter only knows {held}: it was set back, or belongs to "
            "another mirror",
            "Find out why; if this copy is the right one, promote it with --accept stale.",
        )
    return Refused(
        "promote",
        f"this copy is stale: it has generation {mine}, the mirror's data is at {held}, begun by "
        f"{state.settings.name(register.holder)}. Whatever was acknowledged since {mine} would be lost",
        f"Start {state.settings.name(register.holder)} instead; only if it is lost for good: --accept stale.",
    )


def half_synced(state: State) -> Refused:
    """This copy is a mixture of old and new."""
    return Refused(
        "promote",
        f"this copy is half-synced: a resync from {state.peer_name} was interrupted, so its files are a mixture "
        "of two times",
        f"Start {state.peer_name} and let the resync end; only if it is lost for good: --accept inconsistent.",
    )


def blank(state: State) -> Refused:
    """This copy was never part of the mirror's data."""
    return Refused(
        "promote",
        "this copy holds nothing of the mirror yet",
        f"Promote {state.peer_name}; to begin the mirror with the files of this node: --accept first.",
    )


def not_first(state: State) -> Refused:
    """A first promotion of a mirror that has content."""
    return Refused(
        "promote",
        f"the mirror has content: this copy's generation is {state.record.generation}",
        "Promote without --accept first.",
    )


def peer_serves(state: State) -> Refused:
    """The peer is primary and connected."""
    return Refused("promote", f"{state.peer_name} is primary", "Use swap: it hands over without losing anything.")


def handed_over(state: State) -> Refused:
    """The peer was told to take over and has not answered."""
    return Refused(
        "promote",
        f"{state.peer_name} was told to take over, and is about to",
        f"Wait a moment; if it does not, stop {state.peer_name} first, or accept the loss: --accept stale.",
    )


def not_handed_over(state: State) -> Refused:
    """The peer went while this node resigned."""
    return Refused(
        "swap",
        f"{state.peer_name} was lost before it could take over; nobody is primary now",
        "Promote this node again, or the other one when it is back.",
    )


def split(state: State, order: str) -> Refused:
    """Both copies have writes that the other does not know."""
    theirs = state.theirs.history if state.theirs else ()
    return Refused(
        order,
        f"split brain: this node has {listed(state.record.history)}; {state.peer_name} has {listed(theirs)}",
        "Choose the side to give up, stop it, and run resync --give-up there; its own changes are lost.",
    )


def wrong_role(order: str, role: str, next_step: str) -> Refused:
    """The order means nothing to a node in this role."""
    return Refused(order, f"this node is {role}", next_step)


def listed(history: History) -> str:
    """The last generations of a history, newest last."""
    return ", ".join(str(era.generation) for era in history[-4:]) or str(BLANK)
