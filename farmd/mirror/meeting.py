# SPDX-License-Identifier: Apache-2.0
"""Two nodes meet: who leads, who follows, and when neither may touch the other. Pure, and the same on both sides."""

from __future__ import annotations

from enum import StrEnum

from farmd.mirror.generation import BLANK, Relation, relation
from farmd.mirror.messages import Hello


class Meeting(StrEnum):
    """What this node does about its peer."""

    LEAD = "lead"
    """I am primary and the peer's copy may be brought up to date from mine."""
    FOLLOW = "follow"
    """The peer is primary and will bring my copy up to date."""
    WAIT = "wait"
    """Nobody is primary, or the arbiter must speak first, or the peer is about to step down."""
    STEP_DOWN = "step-down"
    """I am primary, and the peer's copy continues mine: I lost."""
    SPLIT = "split"
    """Each copy has writes that the other does not know. The administrator chooses a side."""
    FOREIGN = "foreign"
    """Another mirror's node, or twice the same node."""


def meet(mine: Hello, theirs: Hello, *, alone: bool) -> Meeting:
    """The decision. `alone`: I acknowledged, or may have acknowledged, without the peer in my generation."""
    if mine.mirror != theirs.mirror or mine.node == theirs.node:
        return Meeting.FOREIGN
    stands = compare(mine, theirs)
    if stands is Relation.DIVERGED:
        return Meeting.SPLIT
    if mine.primary:
        return _as_primary(mine, theirs, stands, alone=alone)
    if theirs.primary:
        return Meeting.WAIT if stands is Relation.AHEAD else Meeting.FOLLOW
    return Meeting.WAIT


def compare(mine: Hello, theirs: Hello) -> Relation:
    """How my copy stands to theirs; a half-synced copy was given up already and holds nothing that could be lost."""
    if not theirs.uptodate and mine.uptodate:
        return Relation.AHEAD
    if not mine.uptodate and theirs.uptodate:
        return Relation.BEHIND
    if not mine.uptodate and not theirs.uptodate:
        return Relation.EQUAL
    return relation(mine.generation, mine.history, theirs.generation, theirs.history)


def _as_primary(mine: Hello, theirs: Hello, stands: Relation, *, alone: bool) -> Meeting:
    if stands is Relation.BEHIND:
        return Meeting.SPLIT if alone else Meeting.STEP_DOWN
    if theirs.primary:
        return Meeting.SPLIT if stands is Relation.EQUAL else Meeting.WAIT
    if theirs.claiming and stands is Relation.EQUAL:
        # The peer may have got the register for its own new generation and not know it.
        return Meeting.WAIT
    return Meeting.LEAD


def is_blank(hello: Hello) -> bool:
    """Whether this copy holds nothing of the mirror."""
    return hello.generation == BLANK
