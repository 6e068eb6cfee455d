# SPDX-License-Identifier: Apache-2.0
"""Generations of a mirror's data: who wrote it alone, and which came from which.

Every promotion, and every primary that goes on without its peer, begins a new generation. Its epoch is one above that
of the data it continues. Its tag is random, so that two generations that two nodes began under the same epoch, by an
operator's mistake, are never taken for one. DRBD keeps the same bookkeeping as generation identifiers ("DRBD User's
Guide", chapter on internals).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from farmd.model.nodes import NodeId

MAX_HISTORY = 64
"""Generations that a node remembers. A peer older than the oldest is compared by the administrator's word only."""


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """One continuous history of writes. Epochs only rise; `tag` has 64 bits, 0 only in BLANK."""

    epoch: int
    tag: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.tag:016x}" if self.tag else f"{self.epoch}"


BLANK = Generation(0, 0)
"""A copy that holds nothing of the mirror yet, or was given up."""


class Cause(StrEnum):
    """Why a generation began."""

    FIRST = "first"
    """The administrator named this node's files as the mirror's first content."""
    PROMOTED = "promoted"
    ALONE = "alone"
    """A primary lost its peer and went on."""
    FORCED = "forced"
    """The administrator accepted a loss."""


@dataclass(frozen=True, slots=True)
class Era:
    """One generation in a node's history, for the rules and for people."""

    generation: Generation
    node: NodeId
    """The node that began it."""
    at_s: int
    """When, in seconds of CLOCK_REALTIME of that node; only for people."""
    cause: Cause


History = tuple[Era, ...]
"""Oldest first; the last entry is the generation of the data itself, if it is not BLANK."""


class Relation(StrEnum):
    """How my data stands to a peer's."""

    EQUAL = "equal"
    AHEAD = "ahead"
    """Mine continues the peer's: the peer may follow and loses nothing that anybody was promised."""
    BEHIND = "behind"
    DIVERGED = "diverged"
    """Each has a generation that the other does not know: split brain."""


def relation(mine: Generation, my_history: History, theirs: Generation, their_history: History) -> Relation:
    """Compare two copies by their histories."""
    if mine == theirs:
        return Relation.EQUAL
    if theirs == BLANK or knows(my_history, theirs):
        return Relation.AHEAD
    if mine == BLANK or knows(their_history, mine):
        return Relation.BEHIND
    return Relation.DIVERGED


def knows(history: History, generation: Generation) -> bool:
    """Whether `generation` is one of `history`."""
    return any(era.generation == generation for era in history)


def extended(history: History, era: Era) -> History:
    """`history` with one more generation, the oldest forgotten when there are too many."""
    return (*history, era)[-MAX_HISTORY:]
