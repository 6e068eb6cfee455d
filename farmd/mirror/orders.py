# SPDX-License-Identifier: Apache-2.0
"""What the administrator, or later the module around a mirror, may order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Accept(IntEnum):
    """Which loss the administrator accepts. Each includes the ones before it."""

    NOTHING = 0
    FIRST = 1
    """This node's files, whatever they are, become the mirror's first content."""
    STALE = 2
    """The peer may have acknowledged what this copy lacks: that is given up."""
    INCONSISTENT = 3
    """This copy is a half-synced one, a mixture of old and new."""


@dataclass(frozen=True, slots=True)
class Promote:
    """Become primary."""

    accept: Accept = Accept.NOTHING


@dataclass(frozen=True, slots=True)
class Demote:
    """Stop serving in the planned way; both copies stay up to date if both were. `handover`: the peer takes over."""

    handover: bool = False


@dataclass(frozen=True, slots=True)
class Resync:
    """Compare everything with the peer and send what differs, whatever the journals say. On the primary."""


@dataclass(frozen=True, slots=True)
class Check:
    """Verify: compare both copies while they are in use. On the primary."""

    repair: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Give up this copy and take the peer's: the administrator's choice of a side after a split brain."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End this node's part; a primary resigns first."""


Order = Promote | Demote | Resync | Check | GiveUp | Stop
