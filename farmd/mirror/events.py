# SPDX-License-Identifier: Apache-2.0
"""What the shell tells the core. `session` numbers connections upwards; what comes from an earlier one is ignored."""

from __future__ import annotations

from dataclasses import dataclass

from farmd.mirror.arbiter import Answer, Claim, Register
from farmd.mirror.messages import Message
from farmd.mirror.orders import Order


@dataclass(frozen=True, slots=True)
class Recovered:
    """The page cache is flushed and the journal read. `log_usable` False: it could not be trusted."""

    log_usable: bool


@dataclass(frozen=True, slots=True)
class Ordered:
    """The administrator's order."""

    order: Order


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A connection to the right peer: certificates and mirror identity are checked by the transport."""

    session: int


@dataclass(frozen=True, slots=True)
class PeerSaid:
    """A message came over this connection, and over no earlier one; see `Say` for its order beside the data."""

    session: int
    message: Message


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The connection ended, timed out or carried nonsense. The engine takes nothing from it any more."""

    session: int
    cause: str


@dataclass(frozen=True, slots=True)
class ClaimAnswered:
    """The arbiter answered a claim."""

    claim: Claim
    answer: Answer


@dataclass(frozen=True, slots=True)
class RegisterRead:
    """What the arbiter holds."""

    register: Register


@dataclass(frozen=True, slots=True)
class ResyncDrained:
    """Everything that the peer lacked is in the stream of this connection."""

    session: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A Checkpoint ended: both copies are equal and durable."""

    session: int


@dataclass(frozen=True, slots=True)
class Flushed:
    """The Flush of this number ended."""

    number: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """No application is in any more, and no operation is under way."""


@dataclass(frozen=True, slots=True)
class VerifyEnded:
    """A Verify ended; how many blocks or names differ."""

    session: int
    differences: int


@dataclass(frozen=True, slots=True)
class LocalFailure:
    """The local disk refused what it must not refuse; this node cannot go on as it is."""

    cause: str


Event = (
    Recovered
    | Ordered
    | PeerConnected
    | PeerSaid
    | PeerLost
    | ClaimAnswered
    | RegisterRead
    | ResyncDrained
    | Settled
    | Flushed
    | Stopped
    | VerifyEnded
    | LocalFailure
)
