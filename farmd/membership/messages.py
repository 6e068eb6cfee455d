# SPDX-License-Identifier: Apache-2.0
"""What nodes say to each other, and its binary form.

Numbers are big-endian. Every message starts with one byte that names its kind. A set of nodes is a 64-bit mask. Planes
and owner maps are deflated; what comes out is bounded before it is unpacked. `decode` raises `WireError` on anything
that `encode` would not have produced in shape, and nothing else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from farmd.membership import packing
from farmd.membership.packing import WireError
from farmd.membership.requests import Drain, Leave, Ready, Request, RequestId, SetWeight
from farmd.model.buckets import BUCKETS, NOBODY
from farmd.model.nodes import MAX_NODES, MAX_WEIGHT, BootId, NodeId
from farmd.model.rules import MAX_GROUPS
from farmd.model.view import Ballot, View

# ---- messages ------------------------------------------------------------------------------------


class Heard(NamedTuple):
    """`node`, in the incarnation with this tag, was heard lately; `seq` is its newest heartbeat that counts.

    With `supported` the sender is a voter that promised to stand by that heartbeat (rule 2). A tuple, not a dataclass,
    as a node in a farm of 64 unpacks 40,000 of them a second.
    """

    node: NodeId
    boot_tag: int
    seq: int
    supported: bool


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Rule 1. The flags are facts about the sender at the time it was sent."""

    boot: BootId
    seq: int
    ballot: Ballot
    """The view that the sender has adopted; it has released everything that this view does not give it."""
    started: bool
    """It has the view's START."""
    clear: bool
    """A voter whose promises under earlier views are all over: its echoes may carry a lease (rule 6)."""
    leads: bool
    """A voter that hears a majority both ways, so it may propose."""
    leased: bool
    holding: bool
    """It holds connections of buckets that moved away."""
    alone: bool
    """It serves without its peer's consent (profile `available`)."""
    leaving: bool
    unfit: bool
    """Clients cannot reach it: its service network is down."""
    counted: bool
    """The next two were counted under this view: before that, a zero says nothing about a drain."""
    established: int
    held: int
    heard: tuple[Heard, ...]


@dataclass(frozen=True, slots=True)
class PreVote:
    """May I propose under `ballot`? A voter that agrees will adopt nothing lower from then on."""

    ballot: Ballot


@dataclass(frozen=True, slots=True)
class PreVoteReply:
    """Answer to `PreVote(ballot)`, also to a proposal that came too late.

    `highest` is the highest ballot that the voter has promised or adopted, `remaining` the time in microseconds that it
    still stands by each node it supports.
    """

    ballot: Ballot
    granted: bool
    adopted: Ballot
    highest: Ballot
    remaining: tuple[tuple[NodeId, int], ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send me the view that you have adopted."""


@dataclass(frozen=True, slots=True)
class Propose:
    """Rule 5. Also how a node that missed a view gets it later, then with `started`."""

    view: View
    started: bool
    answered: tuple[RequestId, ...]
    """Requests that this view carries out."""


@dataclass(frozen=True, slots=True)
class Promise:
    """I have adopted `ballot` and released what it does not give me.

    `claims` (a plane a group) are the buckets of which the sender may have connections.
    """

    ballot: Ballot
    voting: bool
    claims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Rule 6. `contested` has a plane a group: buckets that a live node other than the owner claims.

    `holders` says who those are, in layers by group (`farmd.model.routes`); only a directed farm sends it.
    """

    ballot: Ballot
    contested: tuple[int, ...]
    holders: tuple[tuple[bytes, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Goodbye:
    """This incarnation has closed everything and will not be heard again."""

    boot: BootId


@dataclass(frozen=True, slots=True)
class Ask:
    """Please carry out `request` in the next view."""

    id: RequestId
    request: Request


@dataclass(frozen=True, slots=True)
class Macs:
    """Where the sender is on each of its service interfaces, in the order of its farm.toml (delivery `directed`).

    For the engine's shell; the core has no use for it.
    """

    macs: tuple[bytes, ...]


Message = Heartbeat | PreVote | PreVoteReply | Fetch | Propose | Promise | Start | Goodbye | Ask | Macs

# ---- codec ---------------------------------------------------------------------------------------

_BALLOT = struct.Struct(">IBQ")
_HEARTBEAT = struct.Struct(">QIHIIB")
_HEARD = struct.Struct(">BII?")
_REMAINING = struct.Struct(">BI")
_REQUEST_ID = struct.Struct(">BQI")
_REQUEST = struct.Struct(">BBBB")
_VIEW = struct.Struct(">BQQB")
_BYTE = struct.Struct(">B")
_BOOT = struct.Struct(">Q")
_MAC_BYTES, _MAX_MACS = 6, 8
_NO_GROUP = 255
_BOOLS = b"\x00\x01"
_MAX_REQUESTS = 64
_FLAGS = ("started", "clear", "leads", "leased", "holding", "alone", "leaving", "unfit", "counted")
_REQUEST_KINDS: tuple[type[Request], ...] = (Drain, Ready, SetWeight, Leave)

T = TypeVar("T")


class _Reader:
    """Takes values off the front of a message; raises WireError when there is not enough."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, layout: struct.Struct) -> tuple[int, ...]:
        end = self._at + layout.size
        if end > len(self._data):
            raise WireError(f"message ends at byte {len(self._data)}, {end} needed")
        values = layout.unpack_from(self._data, self._at)
        self._at = end
        return values

    def block(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise WireError(f"message ends at byte {len(self._data)}, {self._at + size} needed")
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        rest, self._at = self._data[self._at :], len(self._data)
        return rest

    def node(self) -> NodeId:
        return _node(self.take(_BYTE)[0])

    def flag(self) -> bool:
        return _flag(self.take(_BYTE)[0])

    def ballot(self) -> Ballot:
        counter, proposer, boot = self.take(_BALLOT)
        return Ballot(counter, _node(proposer), BootId(boot))

    def many(self, most: int, one: Callable[[], T]) -> tuple[T, ...]:
        count = self.take(_BYTE)[0]
        if count > most:
            raise WireError(f"{count} entries where at most {most} make sense")
        return tuple(one() for _ in range(count))

    def end(self) -> None:
        if self._at != len(self._data):
            raise WireError(f"{len(self._data) - self._at} bytes too many")


def _node(value: int) -> NodeId:
    if value >= MAX_NODES:
        raise WireError(f"node number {value} is above {MAX_NODES - 1}")
    return NodeId(value)


def _flag(value: int) -> bool:
    if value > 1:
        raise WireError(f"{value} is neither yes nor no")
    return value == 1


def _mask(nodes: Iterable[NodeId]) -> int:
    return sum(1 << node for node in nodes)


def _nodes(mask: int) -> frozenset[NodeId]:
    return frozenset(NodeId(node) for node in range(MAX_NODES) if mask >> node & 1)


def _ballot(ballot: Ballot) -> bytes:
    return _BALLOT.pack(ballot.counter, ballot.proposer, ballot.boot)


def _heartbeat(message: Heartbeat) -> bytes:
    flags = sum(1 << bit for bit, name in enumerate(_FLAGS) if getattr(message, name))
    head = _HEARTBEAT.pack(
        message.boot, message.seq, flags, message.established, message.held, len(message.heard)
    )  # fmt: skip
    heard = (_HEARD.pack(*one) for one in message.heard)
    return b"".join((head, _ballot(message.ballot), *heard))


def _read_heartbeat(reader: _Reader) -> Heartbeat:
    boot, seq, flags, established, held, count = reader.take(_HEARTBEAT)
    if flags >> len(_FLAGS) or count >= MAX_NODES:
        raise WireError(f"a heartbeat with flags {flags:#x} and {count} peers")
    ballot = reader.ballot()
    entries = reader.block(count * _HEARD.size)
    nodes, flags_of = entries[:: _HEARD.size], entries[_HEARD.size - 1 :: _HEARD.size]
    if max(nodes, default=0) >= MAX_NODES or flags_of.strip(_BOOLS):
        raise WireError("a heartbeat that hears strangers")
    heard = tuple(map(Heard._make, _HEARD.iter_unpack(entries)))
    flagged = {name: bool(flags >> bit & 1) for bit, name in enumerate(_FLAGS)}
    return Heartbeat(BootId(boot), seq, ballot, **flagged, established=established, held=held, heard=heard)


def _prevote_reply(message: PreVoteReply) -> bytes:
    remaining = (_REMAINING.pack(node, microseconds) for node, microseconds in message.remaining)
    ballots = (_ballot(ballot) for ballot in (message.ballot, message.adopted, message.highest))
    return b"".join((_BYTE.pack(message.granted), *ballots, _BYTE.pack(len(message.remaining)), *remaining))


def _read_prevote_reply(reader: _Reader) -> PreVoteReply:
    granted = reader.flag()
    ballot, adopted, highest = reader.ballot(), reader.ballot(), reader.ballot()
    remaining = reader.many(MAX_NODES, lambda: reader.take(_REMAINING))
    pairs = tuple((_node(node), microseconds) for node, microseconds in remaining)
    return PreVoteReply(ballot, granted, adopted, highest, pairs)


def _propose(message: Propose) -> bytes:
    view = message.view
    head = _VIEW.pack(message.started, _mask(view.members), _mask(view.drained), len(message.answered))
    answered = (_REQUEST_ID.pack(one.node, one.boot, one.number) for one in message.answered)
    groups = b"".join(weights + owners for weights, owners in zip(view.weights, view.owners, strict=True))
    return b"".join((_ballot(view.ballot), head, *answered, zlib.compress(groups)))


def _read_propose(reader: _Reader) -> Propose:
    ballot = reader.ballot()
    started, members, drained, count = reader.take(_VIEW)
    if count > _MAX_REQUESTS:
        raise WireError(f"{count} requests in one view")
    answered = tuple(_request_id(reader) for _ in range(count))
    groups = packing.inflate(reader.rest(), MAX_NODES + BUCKETS)
    weights = tuple(group[:MAX_NODES] for group in groups)
    owners = tuple(group[MAX_NODES:] for group in groups)
    view = View(ballot, _nodes(members), _nodes(drained), weights, owners)
    if any(set(group) - view.members - {NOBODY} for group in owners):
        raise WireError("buckets owned by nodes that are not members")
    return Propose(view, _flag(started), answered)


def _read_macs(reader: _Reader) -> Macs:
    packed = reader.rest()
    if len(packed) % _MAC_BYTES or len(packed) > _MAX_MACS * _MAC_BYTES:
        raise WireError(f"{len(packed)} bytes are no MAC addresses")
    return Macs(tuple(packed[at : at + _MAC_BYTES] for at in range(0, len(packed), _MAC_BYTES)))


def _request_id(reader: _Reader) -> RequestId:
    node, boot, number = reader.take(_REQUEST_ID)
    return RequestId(_node(node), BootId(boot), number)


def _ask(message: Ask) -> bytes:
    request, asked = message.request, message.id
    node = 0 if isinstance(request, Leave) else request.node
    weight, group = (request.weight, request.group) if isinstance(request, SetWeight) else (0, None)
    kind = _REQUEST_KINDS.index(type(request))
    body = _REQUEST.pack(kind, node, weight, _NO_GROUP if group is None else group)
    return _REQUEST_ID.pack(asked.node, asked.boot, asked.number) + body


def _read_ask(reader: _Reader) -> Ask:
    asked = _request_id(reader)
    kind, node, weight, group = reader.take(_REQUEST)
    if kind >= len(_REQUEST_KINDS) or weight > MAX_WEIGHT or (group >= MAX_GROUPS and group != _NO_GROUP):
        raise WireError(f"a request of kind {kind}, weight {weight}, group {group}")
    request: Request
    match _REQUEST_KINDS[kind].__name__:
        case "Drain":
            request = Drain(_node(node))
        case "Ready":
            request = Ready(_node(node))
        case "SetWeight":
            request = SetWeight(_node(node), weight, None if group == _NO_GROUP else group)
        case _:
            request = Leave()
    return Ask(asked, request)


def encode(message: Message) -> bytes:
    """`message` as bytes. Invariant: `decode(encode(m)) == m`."""
    match message:
        case Heartbeat():
            return b"\x01" + _heartbeat(message)
        case PreVote(ballot):
            return b"\x02" + _ballot(ballot)
        case PreVoteReply():
            return b"\x03" + _prevote_reply(message)
        case Fetch():
            return b"\x04"
        case Propose():
            return b"\x05" + _propose(message)
        case Promise(ballot, voting, claims):
            return b"\x06" + _ballot(ballot) + _BYTE.pack(voting) + packing.pack_planes(claims)
        case Start(holders=holders) if any(holders):
            return b"\x0a" + _ballot(message.ballot) + packing.pack_holders(message.contested, holders)
        case Start(ballot, contested):
            return b"\x07" + _ballot(ballot) + packing.pack_planes(contested)
        case Goodbye(boot):
            return b"\x08" + _BOOT.pack(boot)
        case Ask():
            return b"\x09" + _ask(message)
        case Macs(macs):
            return b"\x0b" + b"".join(macs)


_READERS: dict[int, Callable[[_Reader], Message]] = {
    1: _read_heartbeat,
    2: lambda reader: PreVote(reader.ballot()),
    3: _read_prevote_reply,
    4: lambda reader: Fetch(),
    5: _read_propose,
    6: lambda reader: Promise(reader.ballot(), reader.flag(), packing.unpack_planes(reader.rest())),
    7: lambda reader: Start(reader.ballot(), packing.unpack_planes(reader.rest())),
    8: lambda reader: Goodbye(BootId(reader.take(_BOOT)[0])),
    9: _read_ask,
    10: lambda reader: Start(reader.ballot(), *packing.unpack_holders(reader.rest())),
    11: _read_macs,
}


def decode(data: bytes) -> Message:
    """The message in `data`; WireError if it is none."""
    reader = _Reader(data)
    (kind,) = reader.take(_BYTE)
    if kind not in _READERS:
        raise WireError(f"there is no message kind {kind}")
    message = _READERS[kind](reader)
    reader.end()
    return message
