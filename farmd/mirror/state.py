# SPDX-License-Identifier: Apache-2.0
"""All that one node of a mirror remembers, and the small acts that its parts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from farmd.mirror.acks import Gate
from farmd.mirror.arbiter import Claim
from farmd.mirror.commands import Command, Flush, News, OrderDone, OrderRefused, Persist, Say, SetGate, Tell
from farmd.mirror.generation import Cause, Era, extended
from farmd.mirror.messages import Done, Hello, Message
from farmd.mirror.orders import Accept, Demote, Order, Promote, Stop
from farmd.mirror.record import Record
from farmd.model.errors import FarmError
from farmd.model.nodes import NodeId

FAR_NS = 1 << 62
_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """One node's place in its mirror. Times in nanoseconds."""

    mirror: bytes
    """16 bytes."""
    me: NodeId
    peer: NodeId
    claim_retry_ns: int = _S // 2
    answer_ns: int = 10 * _S
    """A peer that owes a message for this long is disconnected."""
    hold_ns: int = 30 * _S
    """With neither the peer nor the arbiter for this long, operations under way fail instead of hanging on."""
    wall_offset_ns: int = 0
    """CLOCK_REALTIME less CLOCK_BOOTTIME; dates in the history are for people only."""
    names: Mapping[NodeId, str] = field(default_factory=dict)

    def name(self, node: NodeId) -> str:
        """What people call `node`."""
        return self.names.get(node, f"node {node}")


class Phase(StrEnum):
    """What a node is, in one word."""

    STARTING = "starting"
    """Reading its journal; says nothing to anybody yet."""
    WAITING = "waiting"
    """Neither primary nor following one."""
    CLAIMING = "claiming"
    """Ordered to become primary; the arbiter has not answered."""
    PRIMARY = "primary"
    RESIGNING = "resigning"
    TARGET = "target"
    """Being brought up to date: its copy is not to be trusted."""
    SECONDARY = "secondary"
    """In sync, and may be promoted."""
    STOPPED = "stopped"


class Link(StrEnum):
    """How far a primary is with its peer."""

    NONE = "none"
    ENTERING = "entering"
    """ENTER is sent, READY is not here."""
    COPYING = "copying"
    CLOSING = "closing"
    """Everything is sent, and nothing is acknowledged without the peer; it has not confirmed yet."""
    SYNCED = "synced"


@dataclass(slots=True, eq=False)
class State:
    """The memory of a node. `out` collects the commands of the event that is being handled, in order.

    `record` is what will be durable when `out` has been executed.
    """

    settings: Settings
    record: Record
    draw_tag: Callable[[], int]
    """64 random bits, not 0: the tag of a generation that this node begins."""
    out: list[Command] = field(default_factory=list)
    phase: Phase = Phase.STARTING
    gate: Gate = Gate.CLOSED
    link: Link = Link.NONE
    log_usable: bool = True
    session: int | None = None
    last_session: int = 0
    theirs: Hello | None = None
    said: Hello | None = None
    split: bool = False
    handed: bool = False
    """The peer was told to take over in this connection, and has not said how that ended."""
    compare_next: bool = False
    """The administrator wants everything compared."""
    order: Promote | None = None
    """The order that a claim carries out."""
    ending: Demote | Stop | None = None
    """The order that a resignation carries out."""
    finishing: Done | None = None
    """What a target flushes for before it says that it is up to date."""
    flushes: int = 0
    """Number of the last Flush: the answers to earlier ones prove nothing."""
    claim_at_ns: int = FAR_NS
    deadline_ns: int = FAR_NS
    """When the peer's next message is overdue."""
    hold_until_ns: int = FAR_NS

    @property
    def is_primary(self) -> bool:
        """Applications may be in."""
        return self.phase in {Phase.PRIMARY, Phase.RESIGNING}

    @property
    def holding(self) -> bool:
        """A primary that lost its peer and must not acknowledge anything."""
        return self.phase is Phase.PRIMARY and self.gate is Gate.PEER and self.link is not Link.SYNCED

    @property
    def peer_name(self) -> str:
        """What people call the other node."""
        return self.settings.name(self.settings.peer)

    def persist(self, **changes: Any) -> None:
        """Change the record; nothing behind this happens before it is durable."""
        self.record = replace(self.record, **changes)
        self.out.append(Persist(self.record))

    def begin_generation(self, now_ns: int, claim: Claim, cause: Cause, **changes: Any) -> None:
        """The claim was granted: our data is the mirror's, under the claim's new generation.

        The one before becomes a base: a peer that has it differs only where our journal says.
        """
        at_s = (now_ns + self.settings.wall_offset_ns) // _S
        old = self.record.generation
        defaults: dict[str, Any] = {
            "generation": claim.new,
            "claim": None,
            "bases": self.record.bases | ({old} if old.epoch else set()),
            "history": extended(self.record.history, Era(claim.new, self.settings.me, at_s, cause)),
        }
        self.persist(**(defaults | changes))

    def set_gate(self, gate: Gate) -> None:
        """Change how operations are acknowledged. Repeating PEER is not idle: it also covers what waits."""
        self.gate = gate
        self.out.append(SetGate(gate))

    def hello(self) -> Hello:
        """Who I am now."""
        record = self.record
        return Hello(
            mirror=record.mirror,
            node=self.settings.me,
            generation=record.generation,
            history=record.history,
            uptodate=record.uptodate,
            primary=self.is_primary,
            claiming=record.claim is not None,
            log_usable=self.log_usable,
        )

    def flush(self) -> None:
        """Make durable what was applied up to here."""
        self.flushes += 1
        self.out.append(Flush(self.flushes))

    def greet(self) -> None:
        """Tell the peer who I am, if it does not know."""
        hello = self.hello()
        if self.session is not None and hello != self.said:
            self.said = hello
            self.say(hello)

    def say(self, message: Message) -> None:
        """Put a message into the stream, if there is one."""
        if self.session is not None:
            self.out.append(Say(self.session, message))

    def tell(self, news: News, text: str, **data: object) -> None:
        """Let people know."""
        self.out.append(Tell(news, text, data))

    def done(self, order: Order) -> None:
        """The order is carried out."""
        self.out.append(OrderDone(order))

    def refuse(self, order: Order, error: FarmError) -> None:
        """The order is refused."""
        self.out.append(OrderRefused(order, error))

    def accepts(self, loss: Accept) -> bool:
        """Whether the order that is being carried out accepts this loss."""
        return self.order is not None and self.order.accept >= loss
