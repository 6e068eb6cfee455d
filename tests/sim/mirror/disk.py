# SPDX-License-Identifier: Apache-2.0
"""A node's disk: what the page cache shows, what a power loss leaves, and the two small files of the mirror."""

from __future__ import annotations

import random
from collections.abc import Iterable

from farmd.mirror import journal
from farmd.mirror.record import SLOT_BYTES, Record, decode_slots, encode_slot
from farmd.mirror.zones import Cover, Kind, Line, Zone

Cell = tuple[Zone, int]
"""One block of one zone, by its bit."""
DIRECTORY, FILES = b"d0", (b"f0", b"f1")
CELLS: tuple[Cell, ...] = (
    (Zone(Kind.ENTRIES, DIRECTORY), 1),
    *((Zone(Kind.DATA, handle, number), bit) for handle in FILES for number in (0, 1) for bit in (1, 2)),
)
"""Five zones: the names of a directory, and two files of two zones with two blocks in use each."""
HANDLES = (DIRECTORY, *FILES)
MIRROR = bytes(range(16))
HALF_BLOCKS = 24


class Disk:
    """Contents are version numbers. Of what is not synced, a power loss leaves any prefix for each cell."""

    def __init__(self, version: int) -> None:
        self.content = dict.fromkeys(CELLS, version)
        self._durable = dict(self.content)
        self._since: dict[Cell, list[int]] = {}
        self.lost: dict[Cell, list[int]] = {}
        """Versions that a power loss took."""

    def write(self, cell: Cell, version: int) -> None:
        self.content[cell] = version
        self._since.setdefault(cell, []).append(version)

    def sync(self, cells: Iterable[Cell] = CELLS) -> None:
        for cell in cells:
            if self._since.pop(cell, None):
                self._durable[cell] = self.content[cell]

    def begin_sync(self) -> dict[Cell, int]:
        """What a sync that begins now will have made durable when it ends."""
        return {cell: versions[-1] for cell, versions in self._since.items() if versions}

    def end_sync(self, begun: dict[Cell, int]) -> None:
        """What was written meanwhile is not covered."""
        for cell, version in begun.items():
            versions = self._since.get(cell, [])
            if version in versions:
                self._durable[cell] = version
                self._since[cell] = versions[versions.index(version) + 1 :]

    def rot(self, cell: Cell) -> None:
        """A block changes by itself."""
        self._since.pop(cell, None)
        self.content[cell] = self._durable[cell] = 0

    def power_loss(self, rng: random.Random) -> None:
        for cell, versions in self._since.items():
            kept = rng.randint(0, len(versions))
            self.lost.setdefault(cell, []).extend(versions[kept:])
            self.content[cell] = self._durable[cell] = versions[kept - 1] if kept else self._durable[cell]
        self._since.clear()


class RecordFile:
    """The record's two slots; `real` keeps them as bytes, and a crash may tear the slot being written."""

    def __init__(self, real: bool) -> None:
        self._real = real
        self._record: Record | None = None
        self._slots = bytearray(2 * SLOT_BYTES)
        self._counter = 0

    def write(self, record: Record) -> None:
        self._record = record
        if self._real:
            self._put(encode_slot(record, self._counter + 1))
            self._counter += 1

    @property
    def content(self) -> Record | None:
        """What is durable, for those who know everything."""
        return self._record

    def tear(self, record: Record, rng: random.Random) -> None:
        """A write that a crash interrupted."""
        if self._real:
            slot = encode_slot(record, self._counter + 1)
            self._put(slot[: rng.randrange(len(slot.rstrip(b"\0")))])

    def read(self) -> Record | None:
        if not self._real:
            return self._record
        found = decode_slots(bytes(self._slots))
        if found is None:
            return None
        record, self._counter = found
        assert record == self._record, "the record that was read is not the one that was written last"
        return record

    def _put(self, data: bytes) -> None:
        start = (self._counter + 1) % 2 * SLOT_BYTES
        self._slots[start : start + len(data)] = data


class JournalFile:
    """The journal; `real` keeps it as bytes in two halves, and a crash may tear the block being written."""

    def __init__(self, real: bool) -> None:
        self._real = real
        self._cover = self._torn = Cover()
        self._halves = [bytearray(HALF_BLOCKS * journal.BLOCK_BYTES) for _ in range(2)]
        self._place: journal.Place | None = None
        self._generation = 0

    def begin(self, cover: Cover) -> None:
        self._cover = Cover()
        self._cover.apply(cover.lines())
        if self._real:
            self._generation += 1
            blocks, self._place = journal.begin(MIRROR, self._generation, cover)
            for block in blocks:
                self._put(block)

    def append(self, lines: list[Line]) -> None:
        self._cover.apply(lines)
        if not self._real:
            return
        assert self._place is not None
        if self._place.number >= HALF_BLOCKS - 1:
            self.begin(self._cover)
            return
        blocks, self._place = journal.append(MIRROR, self._place, lines)
        for block in blocks:
            self._put(block)

    def tear(self, lines: list[Line], rng: random.Random) -> None:
        """An append that a crash interrupted."""
        if self._real and self._place is not None and self._place.number < HALF_BLOCKS - 1:
            block = journal.append(MIRROR, self._place, lines)[0][0]
            self._put(block, rng.randrange(len(block.data.rstrip(b"\0"))))
            # With luck the rest of the block was there already, from an older generation.
            self._torn = Cover()
            self._torn.apply([*self._cover.lines(), *lines])

    def read(self) -> Cover | None:
        """What is there after a crash; None on a node that never had a journal."""
        if not self._real:
            return self._cover
        if not self._generation:
            return None
        cover, place = journal.read(MIRROR, [journal.blocks_of(bytes(half)) for half in self._halves])
        self._generation = place.generation
        assert cover in (self._cover, self._torn), "the journal that was read is not the one that was written"
        return cover

    def _put(self, block: journal.Block, length: int = journal.BLOCK_BYTES) -> None:
        start = block.place.number * journal.BLOCK_BYTES
        self._halves[block.place.generation % 2][start : start + length] = block.data[:length]
