# SPDX-License-Identifier: Apache-2.0
"""What the core asks its shell to do. Commands are executed strictly one after the other, in the order given.

A crash may come before, between and after any of them: `Persist` and `Inherit` return only when what they wrote is
durable, and nothing behind them is begun before. Commands that end later (`Cas`, `Flush`, ...) are answered by an
event of `farmd.mirror.events`; the next command does not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from farmd.mirror.acks import Gate
from farmd.mirror.arbiter import Claim
from farmd.mirror.messages import Message
from farmd.mirror.orders import Order
from farmd.mirror.record import Record
from farmd.model.errors import FarmError


@dataclass(frozen=True, slots=True)
class Recover:
    """Flush what an earlier incarnation left in the page cache, read the journal. Answer: Recovered."""


@dataclass(frozen=True, slots=True)
class Persist:
    """Make the node's record durable."""

    record: Record


@dataclass(frozen=True, slots=True)
class Cas:
    """Ask the arbiter. `ordered`: the administrator gave the order. Answer: ClaimAnswered, or nothing."""

    claim: Claim
    ordered: bool


@dataclass(frozen=True, slots=True)
class ReadRegister:
    """Ask the arbiter what it holds. Answer: RegisterRead, or nothing."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Keep trying to reach the peer. Events: PeerConnected, PeerLost."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close this connection. Event: PeerLost."""

    session: int
    cause: str


@dataclass(frozen=True, slots=True)
class Say:
    """Send a message to the peer, behind all earlier ones of this connection; nothing if the connection is over.

    Messages may travel beside the data, overtake it and be overtaken, with one exception: the peer's core is not told
    of DONE before every frame that went out before it is applied there. What a resync sends in front of READY (see
    `SendCover`) counts as a message.
    """

    session: int
    message: Message


@dataclass(frozen=True, slots=True)
class SetGate:
    """From now on acknowledge by this gate.

    Setting PEER, even again, also puts what waits for an answer into the stream. Setting CLOSED ends the forwarding:
    a connection outlives a tenure, and the next one begins with its own StartResync.
    """

    gate: Gate


@dataclass(frozen=True, slots=True)
class StartAccepting:
    """Let applications in: mount."""


@dataclass(frozen=True, slots=True)
class StopAccepting:
    """Let nobody in any more. `drain`: operations under way go on, and an event tells their end: Stopped.

    Without, they fail, and on return none of them touches the disk any more; no event tells it.
    """

    drain: bool


@dataclass(frozen=True, slots=True)
class StartReceiving:
    """Apply and answer data frames of this connection."""

    session: int


@dataclass(frozen=True, slots=True)
class StopReceiving:
    """Apply no frame from now on, whatever is still in the socket."""


@dataclass(frozen=True, slots=True)
class Inherit:
    """Put the zones received and not flushed into the journal, as blocks that the peer lacks. Durable on return."""


@dataclass(frozen=True, slots=True)
class SendCover:
    """Put this node's journal into the stream: there its copy may differ too. Followed by READY."""

    session: int


@dataclass(frozen=True, slots=True)
class CompareAll:
    """Mark all of the tree. Durable on return."""


@dataclass(frozen=True, slots=True)
class StartResync:
    """Begin to forward writes, and send what the peer lacks. Event when nothing is left: ResyncDrained."""

    session: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Flush both nodes, settle, tidy the journal. Event: Settled."""

    session: int


@dataclass(frozen=True, slots=True)
class Flush:
    """Make durable here all that was applied up to now. Event: Flushed, with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class ClearJournal:
    """Nothing differs any more: begin an empty journal. Durable on return."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Compare both copies while they are in use. Event: VerifyEnded.

    With `repair` send what differs, and tell the end when it is durable on both: until then a power loss brings back
    what was wrong, and the copy that has it may be the one that serves.
    """

    session: int
    repair: bool


class News(StrEnum):
    """What happened, for people and for scripts."""

    STARTED = "mirror.started"
    PRIMARY = "mirror.primary"
    SECONDARY = "mirror.secondary"
    HOLDING = "mirror.holding"
    ALONE = "mirror.alone"
    RESYNC_STARTED = "mirror.resync.started"
    RESYNC_DONE = "mirror.resync.done"
    IN_SYNC = "mirror.in-sync"
    STEPPED_DOWN = "mirror.stepped-down"
    RESIGNED = "mirror.resigned"
    SPLIT_BRAIN = "mirror.split-brain"
    PEER_REFUSED = "mirror.peer-refused"
    VERIFIED = "mirror.verified"
    STOPPED = "mirror.stopped"


@dataclass(frozen=True, slots=True)
class Tell:
    """Record what happened: one sentence for people, and the same as JSON-ready data."""

    news: News
    text: str
    data: dict[str, object]


@dataclass(frozen=True, slots=True)
class OrderDone:
    """The administrator's order is carried out."""

    order: Order


@dataclass(frozen=True, slots=True)
class OrderRefused:
    """The order was refused and changed nothing; the error says why and what to do."""

    order: Order
    error: FarmError


@dataclass(frozen=True, slots=True)
class Halt:
    """This node is stopped."""


Command = (
    Recover
    | Persist
    | Cas
    | ReadRegister
    | Connect
    | Disconnect
    | Say
    | SetGate
    | StartAccepting
    | StopAccepting
    | StartReceiving
    | StopReceiving
    | Inherit
    | SendCover
    | CompareAll
    | StartResync
    | Checkpoint
    | Flush
    | ClearJournal
    | Verify
    | Tell
    | OrderDone
    | OrderRefused
    | Halt
)
