# SPDX-License-Identifier: Apache-2.0
"""Zones: the places of a tree in which two copies may differ, named by file handle, so that renames cost nothing.

A block is 64 KiB of a file, a zone 16 MiB of it: 256 blocks, one bit each. A directory's entries and a file's
attributes are zones of one bit. When memory is short, all of a file becomes one zone (`WHOLE`), and at last
everything behind a position of the tree (`Cover.tree`): coarser means more to compare, never something forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

BLOCK_BYTES = 65_536
BLOCKS_PER_ZONE = 256
ZONE_BYTES = BLOCK_BYTES * BLOCKS_PER_ZONE
MAX_HANDLE_BYTES = 132
"""The type in 4 bytes, and MAX_HANDLE_SZ of open_by_handle_at(2)."""
MAX_PLACE_BYTES = 1 + MAX_HANDLE_BYTES + 255


class Kind(IntEnum):
    """What a zone is part of. The order is the order of a resync: names, then attributes, then contents."""

    ENTRIES = 1
    """A directory's names; one bit."""
    META = 2
    """A file's size, mode, owner, times and extended attributes; one bit."""
    WHOLE = 3
    """All of a file, attributes included; one bit."""
    DATA = 4
    """16 MiB of a file's content; a bit a block."""
    PLACE = 5
    """One name of a directory and all that is below it; one bit. Its handle is the directory's with the name behind."""


class Zone(NamedTuple):
    """One zone. `number` counts zones within a file; 0 unless the kind is DATA."""

    kind: Kind
    handle: bytes
    number: int = 0

    @property
    def full(self) -> int:
        """The mask with every block of the zone."""
        return (1 << BLOCKS_PER_ZONE) - 1 if self.kind is Kind.DATA else 1

    @property
    def place(self) -> tuple[bytes, bytes]:
        """Of a PLACE: the directory's handle, and the name."""
        end = 1 + self.handle[0]
        return self.handle[1:end], self.handle[end:]

    @property
    def whole(self) -> Zone:
        """The zone that stands for all of this zone's file."""
        return Zone(Kind.WHOLE, self.handle)


class Mark(NamedTuple):
    """A line of the journal: blocks of `zone` in which the copies may differ. It replaces the zone's earlier mark.

    `hot`: nobody knows which blocks, so all count, and the peer's digests are asked for before anything is sent.
    """

    zone: Zone
    mask: int
    hot: bool


class TreeMark(NamedTuple):
    """A line of the journal: everything whose handle is above `above` may differ; None: no longer."""

    above: bytes | None


class Named(NamedTuple):
    """A line of the journal: where the file `handle` was seen last. It says nothing of differences."""

    handle: bytes
    parent: bytes
    name: bytes


Line = Mark | TreeMark | Named


def place(parent: bytes, name: bytes) -> Zone:
    """The zone of the name `name` in the directory `parent`."""
    return Zone(Kind.PLACE, bytes((len(parent),)) + parent + name)


def touched(handle: bytes, offset: int, length: int) -> dict[Zone, int]:
    """The zones and blocks that a write of `length` bytes at `offset` touches."""
    found: dict[Zone, int] = {}
    if length <= 0:
        return found
    first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
    for number in range(first // BLOCKS_PER_ZONE, last // BLOCKS_PER_ZONE + 1):
        start = max(first - number * BLOCKS_PER_ZONE, 0)
        end = min(last - number * BLOCKS_PER_ZONE, BLOCKS_PER_ZONE - 1)
        found[Zone(Kind.DATA, handle, number)] = (1 << (end + 1)) - (1 << start)
    return found


@dataclass(slots=True)
class Cover:
    """The durable answer to "where may the copies differ?": the sum of the journal's lines in their order."""

    marks: dict[Zone, Mark] = field(default_factory=dict)
    tree: bytes | None = None
    names: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)
    """Where files were seen last: directory and name."""

    def apply(self, lines: Iterable[Line]) -> None:
        """Add lines of the journal."""
        for line in lines:
            if isinstance(line, TreeMark):
                self.tree = line.above
            elif isinstance(line, Named):
                self.names[line.handle] = (line.parent, line.name)
            elif line.mask or line.hot:
                self.marks[line.zone] = line
            else:
                self.marks.pop(line.zone, None)

    def lines(self) -> list[Line]:
        """The shortest journal that says the same."""
        tree: list[Line] = [] if self.tree is None else [TreeMark(self.tree)]
        used = {zone.handle for zone in self.marks}
        named: list[Line] = [Named(handle, *self.names[handle]) for handle in sorted(used & self.names.keys())]
        return tree + named + [self.marks[zone] for zone in sorted(self.marks)]

    def has(self, zone: Zone, mask: int) -> bool:
        """Whether every block of `mask` is covered."""
        if self.tree is not None and zone.handle > self.tree:
            return True
        if zone.whole in self.marks and zone.kind is not Kind.ENTRIES:
            return True
        mark = self.marks.get(zone)
        return mark is not None and mask & ~(zone.full if mark.hot else mark.mask) == 0
