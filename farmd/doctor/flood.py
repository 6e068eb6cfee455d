# SPDX-License-Identifier: Apache-2.0
"""The flooding test: does the switch bring frames for the virtual MAC to every node? Pure part.

Each node that takes part sends two frames in turn, with its own MAC as source: a broadcast and one to the virtual MAC.
Who hears a node's broadcasts but not its frames to the virtual MAC sits behind something that does not flood. Both
carry what their sender has heard so far, so that each side also learns about the other direction. The EtherType is one
that IEEE 802 sets aside for local experiments: no protocol listens to it, and the filter lets it pass.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from farmd.doctor.finding import Finding, fail, ok, warn
from farmd.model.config import Delivery, FarmConfig

ETHERTYPE = 0x88B5
BROADCAST = b"\xff" * 6
_FRAME = struct.Struct("!6s6sH4sIBBQQ")
_MAGIC = b"fdr1"
_SHORTEST = 60
_MULTICAST_FIX = (
    "Let the switch bring the group address to every node's port: no blocking of unknown multicast there, or a static "
    "entry for it; on a Linux bridge `bridge link set dev PORT mcast_flood on`"
)
_FIX = (
    "Let the switch flood unknown unicast to every node's port: no unknown-unicast blocking or storm control there; on "
    "a Linux bridge `bridge link set dev PORT flood on`; in a hypervisor promiscuous mode and forged transmits"
)


class Kind(IntEnum):
    """Whom a frame was sent to."""

    BROADCAST = 1
    VIRTUAL = 2


@dataclass(frozen=True, slots=True)
class Hail:
    """One frame of the test: its sender's number, and whom the sender has heard, by kind, a bit a number."""

    kind: Kind
    sender: int
    heard_broadcast: int
    heard_virtual: int


def encode(config: FarmConfig, mac: bytes, hail: Hail) -> bytes:
    """The frame on the wire, from `mac`."""
    target = BROADCAST if hail.kind is Kind.BROADCAST else config.virtual_mac
    fields = (_MAGIC, _farm(config), hail.kind, hail.sender, hail.heard_broadcast, hail.heard_virtual)
    return _FRAME.pack(target, mac, ETHERTYPE, *fields).ljust(_SHORTEST, b"\0")


def decode(config: FarmConfig, frame: bytes) -> Hail | None:
    """The test frame in `frame`; None if it is another farm's, our own, or none."""
    if len(frame) < _FRAME.size:
        return None
    target, _source, ethertype, magic, farm, kind, sender, broadcast, virtual = _FRAME.unpack_from(frame)
    expected = {Kind.BROADCAST: BROADCAST, Kind.VIRTUAL: config.virtual_mac}.get(kind)
    if (ethertype, magic, farm, target) != (ETHERTYPE, _MAGIC, _farm(config), expected) or sender == config.me.id:
        return None
    return Hail(Kind(kind), sender, broadcast, virtual)


def _farm(config: FarmConfig) -> int:
    return zlib.crc32(config.farm.encode())


@dataclass(slots=True)
class Tally:
    """What one node has heard, and what others say of it."""

    me: int
    heard: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    heard_me: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))

    def take(self, hail: Hail) -> None:
        """Count a frame in."""
        self.heard[hail.kind] |= 1 << hail.sender
        for kind, theirs in ((Kind.BROADCAST, hail.heard_broadcast), (Kind.VIRTUAL, hail.heard_virtual)):
            if theirs >> self.me & 1:
                self.heard_me[kind] |= 1 << hail.sender

    def hail(self, kind: Kind) -> Hail:
        """What to send now."""
        return Hail(kind, self.me, self.heard[Kind.BROADCAST], self.heard[Kind.VIRTUAL])


def judge(config: FarmConfig, interface: str, tally: Tally) -> Iterator[Finding]:
    """One finding for each other node."""
    fix = _MULTICAST_FIX if config.delivery is Delivery.MULTICAST else _FIX
    for member in config.nodes:
        if member.id != config.me.id:
            yield _judge_peer(interface, member.name, member.id, tally, fix)


def _judge_peer(interface: str, name: str, number: int, tally: Tally, fix: str) -> Finding:
    def among(who: dict[Kind, int], kind: Kind) -> bool:
        return bool(who[kind] >> number & 1)

    if not among(tally.heard, Kind.BROADCAST) and not among(tally.heard, Kind.VIRTUAL):
        return warn(
            "flooding",
            f"{interface}: nothing was heard of {name}",
            f"Run `farmctl doctor --flood-test` on {name} at the same time",
        )
    if not among(tally.heard, Kind.VIRTUAL):
        return fail("flooding", f"{interface}: broadcasts of {name} arrive, its frames to the virtual MAC do not", fix)
    if among(tally.heard_me, Kind.BROADCAST) and not among(tally.heard_me, Kind.VIRTUAL):
        return fail("flooding", f"{interface}: {name} gets our broadcasts, but not our frames to the virtual MAC", fix)
    if not among(tally.heard_me, Kind.VIRTUAL):
        return warn(
            "flooding",
            f"{interface}: frames of {name} to the virtual MAC arrive; it did not say in time whether ours do",
            "Run it on both at the same time, or longer: --for 20",
        )
    return ok("flooding", f"{interface}: frames to the virtual MAC arrive from and at {name}")
