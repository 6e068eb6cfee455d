# SPDX-License-Identifier: Apache-2.0
"""The journal of zones on disk: a preallocated file of two halves, appended to in blocks of 4 KiB.

A half begins with a snapshot (the whole cover) and goes on with lines, each block durable (O_DSYNC) before the zones
in it are used. When a half is full, the next generation begins in the other one. A block is never written twice in
one generation, so a torn write can only spoil a block that nobody relied on. The reader takes the newest half whose
snapshot is whole and applies its blocks up to the first that is not: whatever prefix of the writes reached the disk,
the cover read back has every zone that was in use (`tests/unit/test_mirror_journal.py` tries them all).

The writer keeps two promises: a zone is used only when its block *and all before it* are durable, and a line that
takes blocks away (a smaller mask) is issued only when both copies have them durably.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from farmd.mirror.zones import MAX_PLACE_BYTES, Cover, Kind, Line, Mark, Named, TreeMark, Zone

BLOCK_BYTES = 4096
_MAGIC = b"FZJ2"
_HEAD = struct.Struct("<4sI16sQIIH2x")
"""Magic, CRC-32 of what follows, mirror, generation, block number, blocks of the snapshot, bytes of lines."""
_CRC_END = 8
_LINE = struct.Struct("<BBHHI")
"""Kind (0: tree, 255: a file's name), flags, bytes of handle, bytes of mask, number."""
_TREE, _NAMED = 0, 255
_HOT, _OVER = 1, 2
ROOM_BYTES = BLOCK_BYTES - _HEAD.size


class JournalDamaged(Exception):
    """No half can be trusted: everything must be compared. The text says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next block goes: half `generation % 2`, block `number` of it."""

    generation: int
    number: int
    snapshot: int
    """Blocks of this generation's snapshot; in each block, so that a half can be judged alone."""


@dataclass(frozen=True, slots=True)
class Block:
    """One write: 4 KiB at block `place.number` of half `place.generation % 2`."""

    place: Place
    data: bytes


def begin(mirror: bytes, generation: int, cover: Cover) -> tuple[list[Block], Place]:
    """The snapshot that begins a generation, and the place after it."""
    chunks = list(_chunks(cover.lines())) or [b""]
    blocks = [_block(mirror, Place(generation, number, len(chunks)), chunk) for number, chunk in enumerate(chunks)]
    return blocks, Place(generation, len(chunks), len(chunks))


def append(mirror: bytes, place: Place, lines: Sequence[Line]) -> tuple[list[Block], Place]:
    """Blocks with `lines`, and the place after them."""
    blocks = []
    for chunk in _chunks(lines):
        blocks.append(_block(mirror, place, chunk))
        place = Place(place.generation, place.number + 1, place.snapshot)
    return blocks, place


Half = Callable[[], Iterator[bytes]]
"""The blocks of a half from its beginning, read as they are asked for."""


def read(mirror: bytes, halves: Sequence[Half]) -> tuple[Cover, Place]:
    """The cover that the file holds, and the place after its last good block; nothing is read that does not count.

    A writer that goes on after a crash begins a new generation rather than append behind a torn block.
    Raises JournalDamaged if neither half has a whole snapshot of this mirror.
    """
    for half in sorted(halves, key=lambda each: _generation(mirror, each), reverse=True):
        found = _read_half(mirror, half())
        if found is not None:
            return found
    raise JournalDamaged("no half of the journal has a whole snapshot of this mirror")


def blocks_of(half: bytes) -> Half:
    """A half that is in memory."""
    return lambda: (half[at : at + BLOCK_BYTES] for at in range(0, len(half) - BLOCK_BYTES + 1, BLOCK_BYTES))


def _block(mirror: bytes, place: Place, chunk: bytes) -> Block:
    head = _HEAD.pack(_MAGIC, 0, mirror, place.generation, place.number, place.snapshot, len(chunk))
    data = (head + chunk).ljust(BLOCK_BYTES, b"\0")
    crc = zlib.crc32(data[_CRC_END:])
    return Block(place, data[:4] + struct.pack("<I", crc) + data[_CRC_END:])


def _generation(mirror: bytes, half: Half) -> int:
    """Of a half's first block, which is that of all that counts in it; -1 if it is not good."""
    first = _read_block(mirror, 0, next(half(), b""))
    return -1 if first is None else first[0].generation


def _read_half(mirror: bytes, half: Iterator[bytes]) -> tuple[Cover, Place] | None:
    """None if its snapshot is not whole."""
    cover = Cover()
    place: Place | None = None
    for number, data in enumerate(half):
        block = _read_block(mirror, number, data)
        if block is None or (place is not None and block[0].generation != place.generation):
            break
        place = block[0]
        cover.apply(_lines(block[1]))
    if place is None or place.number < place.snapshot:
        return None
    return cover, place


def _read_block(mirror: bytes, number: int, data: bytes) -> tuple[Place, bytes] | None:
    """The place behind block `number` of a half and the lines in it; None if it is not good."""
    if len(data) < BLOCK_BYTES:
        return None
    magic, crc, owner, generation, at, snapshot, length = _HEAD.unpack_from(data)
    if magic != _MAGIC or owner != mirror or at != number or zlib.crc32(data[_CRC_END:]) != crc:
        return None
    return Place(generation, number + 1, snapshot), data[_HEAD.size : _HEAD.size + length]


def _chunks(lines: Sequence[Line]) -> Iterator[bytes]:
    chunk = b""
    for line in lines:
        packed = _pack(line)
        if len(chunk) + len(packed) > ROOM_BYTES:
            yield chunk
            chunk = b""
        chunk += packed
    if chunk:
        yield chunk


def _pack(line: Line) -> bytes:
    if isinstance(line, TreeMark):
        above = line.above or b""
        return _LINE.pack(_TREE, _OVER * (line.above is None), len(above), 0, 0) + above
    if isinstance(line, Named):
        where = bytes((len(line.parent),)) + line.parent + line.name
        return _LINE.pack(_NAMED, 0, len(line.handle), len(where), 0) + line.handle + where
    zone, mask = line.zone, line.mask.to_bytes((line.mask.bit_length() + 7) // 8, "little")
    if len(zone.handle) > MAX_PLACE_BYTES:
        raise ValueError(f"a handle of {len(zone.handle)} bytes, more than {MAX_PLACE_BYTES}")
    return _LINE.pack(zone.kind, _HOT * line.hot, len(zone.handle), len(mask), zone.number) + zone.handle + mask


def _lines(chunk: bytes) -> Iterator[Line]:
    at = 0
    while at < len(chunk):
        kind, flags, handle_bytes, mask_bytes, number = _LINE.unpack_from(chunk, at)
        at += _LINE.size
        handle = chunk[at : at + handle_bytes]
        rest = chunk[at + handle_bytes : at + handle_bytes + mask_bytes]
        at += handle_bytes + mask_bytes
        if kind == _TREE:
            yield TreeMark(None if flags & _OVER else handle)
        elif kind == _NAMED:
            yield Named(handle, rest[1 : 1 + rest[0]], rest[1 + rest[0] :])
        else:
            yield Mark(Zone(Kind(kind), handle, number), int.from_bytes(rest, "little"), bool(flags & _HOT))
