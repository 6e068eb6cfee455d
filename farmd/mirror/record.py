# SPDX-License-Identifier: Apache-2.0
"""What one node of a mirror must remember over any crash, and its file: two slots of 4 KiB, written in turn.

A slot is written whole and made durable before the next command is executed. A torn write spoils the slot that was
being written and never the other, so the record read back is the new one or the one before: both are true.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from farmd.mirror.arbiter import Claim, Occasion
from farmd.mirror.generation import BLANK, MAX_HISTORY, Cause, Era, Generation, History
from farmd.model.nodes import NodeId

SLOT_BYTES = 4096
MAX_BASES = 32
_MAGIC = b"FARMMIRR"
_VERSION = 1
_HEAD = struct.Struct("<8sHHxxxxQ16sBB")
"""Magic, version, bytes of body, counter, mirror, node, flags."""
_GENERATION = struct.Struct("<QQ")
_ERA = struct.Struct("<QQBqB")
_CRC = struct.Struct("<I")
_UPTODATE, _WAS_PRIMARY, _PEER_STALE, _CLAIMS, _FORCED, _ALONE = (1 << bit for bit in range(6))
_CAUSES = tuple(Cause)


@dataclass(frozen=True, slots=True)
class Record:
    """The durable state of one node.

    Invariants: a node whose record is not `uptodate` is never primary; the journal covers every block in which a
    peer at one of `bases`, or at `generation` itself, may differ from this node's data.
    """

    mirror: bytes
    """16 bytes: the mirror's identity, drawn when it was created."""
    node: NodeId
    generation: Generation = BLANK
    """The generation of the data; of a half-synced target, the last one that it had whole."""
    uptodate: bool = False
    was_primary: bool = False
    """Became primary and did not resign in the planned way."""
    peer_stale: bool = False
    """The peer may lack what was acknowledged here."""
    claim: Claim | None = None
    """A compare-and-swap whose answer is not known."""
    bases: frozenset[Generation] = frozenset()
    history: History = field(default=())

    @property
    def half_synced(self) -> bool:
        """A copy that a resync has begun to overwrite and has not finished."""
        return not self.uptodate and self.generation != BLANK


class RecordDamaged(Exception):
    """Neither slot can be read although something was written; the text says why."""


def encode_slot(record: Record, counter: int) -> bytes:
    """One slot. It belongs at offset `(counter % 2) * SLOT_BYTES`; `counter` rises by one with every write."""
    flags = (
        _UPTODATE * record.uptodate
        | _WAS_PRIMARY * record.was_primary
        | _PEER_STALE * record.peer_stale
        | _CLAIMS * (record.claim is not None)
        | _FORCED * (record.claim is not None and record.claim.forced)
        | _ALONE * (record.claim is not None and record.claim.occasion is Occasion.ALONE)
    )
    claim = (record.claim.expected, record.claim.new) if record.claim else (BLANK, BLANK)
    bases = sorted(record.bases)[-MAX_BASES:]
    body = b"".join(_GENERATION.pack(one.epoch, one.tag) for one in (record.generation, *claim))
    body += bytes((len(bases),)) + b"".join(_GENERATION.pack(one.epoch, one.tag) for one in bases)
    history = record.history[-MAX_HISTORY:]
    body += bytes((len(history),)) + b"".join(_pack_era(era) for era in history)
    head = _HEAD.pack(_MAGIC, _VERSION, len(body), counter, record.mirror, record.node, flags)
    data = head + body
    return (data + _CRC.pack(zlib.crc32(data))).ljust(SLOT_BYTES, b"\0")


def decode_slots(data: bytes) -> tuple[Record, int] | None:
    """The newest whole record of both slots and its counter; None if nothing was ever written.

    Raises RecordDamaged if there is something, but nothing whole.
    """
    found, causes = [], []
    for start in (0, SLOT_BYTES):
        slot = data[start : start + SLOT_BYTES]
        if any(slot):
            try:
                found.append(_decode(slot))
            except ValueError as error:
                causes.append(str(error))
    if not found and causes:
        raise RecordDamaged("; ".join(causes))
    return max(found, key=lambda each: each[1]) if found else None


def _pack_era(era: Era) -> bytes:
    return _ERA.pack(era.generation.epoch, era.generation.tag, era.node, era.at_s, _CAUSES.index(era.cause))


def _decode(slot: bytes) -> tuple[Record, int]:
    if len(slot) < _HEAD.size + _CRC.size:
        raise ValueError("the slot is cut short")
    magic, version, length, counter, mirror, node, flags = _HEAD.unpack_from(slot)
    if magic != _MAGIC:
        raise ValueError("the slot is not one of a mirror")
    end = _HEAD.size + length
    if end + _CRC.size > len(slot) or zlib.crc32(slot[:end]) != _CRC.unpack_from(slot, end)[0]:
        raise ValueError("the slot's checksum is wrong")
    if version != _VERSION:
        raise ValueError(f"the slot has version {version}, this program reads {_VERSION}")
    generations, rest = _generations(slot, _HEAD.size, 3)
    bases, rest = _generations(slot, rest + 1, slot[rest])
    eras = [_ERA.unpack_from(slot, rest + 1 + number * _ERA.size) for number in range(slot[rest])]
    claim = None
    if flags & _CLAIMS:
        occasion = Occasion.ALONE if flags & _ALONE else Occasion.START
        claim = Claim(generations[1], generations[2], occasion, bool(flags & _FORCED))
    history = tuple(
        Era(Generation(epoch, tag), NodeId(who), at_s, _CAUSES[cause]) for epoch, tag, who, at_s, cause in eras
    )
    record = Record(
        mirror=mirror,
        node=NodeId(node),
        generation=generations[0],
        uptodate=bool(flags & _UPTODATE),
        was_primary=bool(flags & _WAS_PRIMARY),
        peer_stale=bool(flags & _PEER_STALE),
        claim=claim,
        bases=frozenset(bases),
        history=history,
    )
    return record, counter


def _generations(slot: bytes, start: int, count: int) -> tuple[list[Generation], int]:
    size = _GENERATION.size
    found = [Generation(*_GENERATION.unpack_from(slot, start + number * size)) for number in range(count)]
    return found, start + count * size
