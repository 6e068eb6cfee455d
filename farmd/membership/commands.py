# SPDX-License-Identifier: Apache-2.0
"""What the core asks its shell to do, and what it shows of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from farmd.membership.messages import Message
from farmd.model.nodes import BootId, MemberState, NodeId
from farmd.model.planes import Planes
from farmd.model.view import Ballot, View


@dataclass(frozen=True, slots=True)
class WritePlanes:
    """Write every group's planes to the kernel."""

    planes: tuple[Planes, ...]


@dataclass(frozen=True, slots=True)
class WriteLease:
    """Let the filter accept until `deadline_ns` (CLOCK_BOOTTIME); 0 closes it at once."""

    deadline_ns: int


@dataclass(frozen=True, slots=True)
class WriteRoutes:
    """Delivery `directed`: write for every group who owns a bucket and whom to ask after us (`farmd.model.routes`)."""

    owners: tuple[bytes, ...]
    following: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Announce:
    """Delivery `directed`: a member is lost; tell neighbours that the VIPs are here."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` to one member, or to every other one if `to` is None."""

    to: NodeId | None
    message: Message


class EventType(StrEnum):
    """What happened, for people and for scripts."""

    VIEW_STARTED = "view.started"
    MEMBER_JOINED = "member.joined"
    MEMBER_LEFT = "member.left"
    MEMBER_FAILED = "member.failed"
    MEMBER_DRAINED = "member.drained"
    MEMBER_READY = "member.ready"
    FAILOVER_DONE = "failover.done"
    """Buckets of a failed member were taken over: how long each phase of that took here."""
    WEIGHT_CHANGED = "weight.changed"
    LEASE_LOST = "lease.lost"
    LEASE_REGAINED = "lease.regained"
    ALONE_STARTED = "alone.started"
    ALONE_ENDED = "alone.ended"
    ENGINE_STALLED = "engine.stalled"
    REQUEST_DONE = "request.done"
    REQUEST_EXPIRED = "request.expired"


@dataclass(frozen=True, slots=True)
class Event:
    """Something people want to know: one short sentence, and the same as JSON-ready data."""

    type: EventType
    text: str
    data: dict[str, object]


@dataclass(frozen=True, slots=True)
class Happened:
    """Record `event`."""

    event: Event


@dataclass(frozen=True, slots=True)
class Halt:
    """This node has left the farm: stop the engine."""


Command = WritePlanes | WriteLease | WriteRoutes | Announce | Send | Happened | Halt
"""Executed strictly in list order: planes are released before the message that promises it (rule 5)."""


class Phase(StrEnum):
    """What a node is doing, in one word."""

    SERVING = "serving"
    """In the view, with a lease."""
    WAITING = "waiting"
    """Without a lease: no majority, or the view has not started."""
    JOINING = "joining"
    """The farm runs without this node, which waits to be let in."""
    LEAVING = "leaving"
    CLOSED = "closed"
    """Left the farm."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One member as this node sees it (this node included). Times in nanoseconds of this node's clock."""

    node: NodeId
    state: MemberState
    since_ns: int
    last_heard_ns: int | None
    """None for this node itself and for those never heard."""
    hears_me: bool
    boot: BootId | None
    ballot: Ballot
    leased: bool
    established: int
    held: int


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A frozen picture of one node."""

    view: View
    started: bool
    started_ns: int | None
    """When the view was adopted as started here."""
    phase: Phase
    deadline_ns: int
    exclusive: bool
    """False while a node of an `available` farm serves without its peer's consent."""
    planes: tuple[Planes, ...]
    peers: tuple[PeerStatus, ...]
    """By number."""
