# SPDX-License-Identifier: Apache-2.0
"""What the engine tells the daemon about itself, and its JSON form between the two processes."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

from farmd.model.buckets import PLANE_BYTES, plane_bytes
from farmd.model.nodes import BootId, MemberState, NodeId
from farmd.model.planes import Planes
from farmd.model.view import Ballot, View


@dataclass(frozen=True, slots=True)
class PeerReport:
    """One member as the engine sees it. Times are CLOCK_BOOTTIME nanoseconds; None = never."""

    id: NodeId
    state: MemberState
    since_ns: int | None
    last_heard_ns: int | None
    connections: int | None
    held_connections: int | None


@dataclass(frozen=True, slots=True)
class EngineReport:
    """A snapshot of the engine. `planes` has one entry a group; `deadline_ns` is 0 while the filter is closed."""

    at_ns: int
    pid: int
    boot: BootId
    fingerprint: str
    """Of the part of the configuration that the engine runs with: a daemon with another one replaces the engine."""
    phase: str
    exclusive: bool
    view: View | None
    started: bool
    view_since_ns: int
    deadline_ns: int
    planes: tuple[Planes, ...]
    peers: tuple[PeerReport, ...]
    warnings: tuple[str, ...]
    dropped: dict[str, int]
    """Datagrams not accepted, by reason."""


def encode_report(report: EngineReport) -> dict[str, Any]:
    """`report` as plain JSON values."""
    return {
        "at_ns": report.at_ns,
        "pid": report.pid,
        "boot": report.boot,
        "fingerprint": report.fingerprint,
        "phase": report.phase,
        "exclusive": report.exclusive,
        "view": None if report.view is None else _encode_view(report.view),
        "started": report.started,
        "view_since_ns": report.view_since_ns,
        "deadline_ns": report.deadline_ns,
        "planes": [[_pack(plane_bytes(p)) for p in (one.own, one.held, one.fresh)] for one in report.planes],
        "peers": [
            [peer.id, peer.state, peer.since_ns, peer.last_heard_ns, peer.connections, peer.held_connections]
            for peer in report.peers
        ],
        "warnings": list(report.warnings),
        "dropped": report.dropped,
    }


def decode_report(data: dict[str, Any]) -> EngineReport:
    """The inverse of `encode_report`.

    Raises:
        KeyError, TypeError, ValueError: the other process speaks another version of this form.
    """
    return EngineReport(
        at_ns=data["at_ns"],
        pid=data["pid"],
        boot=BootId(data["boot"]),
        fingerprint=data["fingerprint"],
        phase=data["phase"],
        exclusive=data["exclusive"],
        view=None if data["view"] is None else _decode_view(data["view"]),
        started=data["started"],
        view_since_ns=data["view_since_ns"],
        deadline_ns=data["deadline_ns"],
        planes=tuple(Planes(*(_plane(text) for text in three)) for three in data["planes"]),
        peers=tuple(
            PeerReport(NodeId(number), MemberState(state), since, heard, connections, held)
            for number, state, since, heard, connections, held in data["peers"]
        ),
        warnings=tuple(data["warnings"]),
        dropped=data["dropped"],
    )


def _encode_view(view: View) -> dict[str, Any]:
    return {
        "ballot": [view.ballot.counter, view.ballot.proposer, view.ballot.boot],
        "members": sorted(view.members),
        "drained": sorted(view.drained),
        "weights": [_pack(table) for table in view.weights],
        "owners": [_pack(owners) for owners in view.owners],
    }


def _decode_view(data: dict[str, Any]) -> View:
    counter, proposer, boot = data["ballot"]
    return View(
        ballot=Ballot(counter, NodeId(proposer), BootId(boot)),
        members=frozenset(map(NodeId, data["members"])),
        drained=frozenset(map(NodeId, data["drained"])),
        weights=tuple(_unpack(text) for text in data["weights"]),
        owners=tuple(_unpack(text) for text in data["owners"]),
    )


def _pack(raw: bytes) -> str:
    # Level 1: a report is made on the engine's loop, and the maps are regular enough.
    return base64.b64encode(zlib.compress(raw, 1)).decode("ascii")


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def _plane(text: str) -> int:
    raw = _unpack(text)
    if len(raw) != PLANE_BYTES:
        raise ValueError(f"a plane has {PLANE_BYTES} bytes, not {len(raw)}")
    return int.from_bytes(raw, "little")
