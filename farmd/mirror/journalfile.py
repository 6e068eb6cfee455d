# SPDX-License-Identifier: Apache-2.0
"""The journal of zones as a file: two preallocated halves, each write durable before it returns (`journal`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from farmd.mirror import journal
from farmd.mirror.durable import sync_folder, write_all
from farmd.mirror.journal import BLOCK_BYTES, Block, JournalDamaged, Place
from farmd.mirror.zones import Cover, Line

HALF_BYTES = 16 << 20
_HALF_BLOCKS = HALF_BYTES // BLOCK_BYTES
_READ_BYTES = 16 * BLOCK_BYTES


class JournalFile:
    """One node's journal. `read` or `begin` comes first; only one process may have it open for writing."""

    def __init__(self, path: Path, mirror: bytes) -> None:
        """Open, or make. Raises OSError."""
        self._mirror = mirror
        self._place = Place(0, 0, 0)
        self.is_new = not path.exists()
        if self.is_new:
            _make(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DSYNC)

    def read(self) -> Cover:
        """What it says after a crash; a writer goes on with `begin`. Raises JournalDamaged."""
        cover, self._place = journal.read(self._mirror, [partial(self._blocks, half) for half in (0, 1)])
        return cover

    def _blocks(self, half: int) -> Iterator[bytes]:
        """Those of a half, some at a time: most of the file is room that was never used in this generation."""
        for start in range(0, HALF_BYTES, _READ_BYTES):
            data = os.pread(self._fd, _READ_BYTES, half * HALF_BYTES + start)
            yield from journal.blocks_of(data)()

    @property
    def wants_snapshot(self) -> bool:
        """The half in use has little room left."""
        return self._place.number > _HALF_BLOCKS * 3 // 4

    def begin(self, cover: Cover) -> bool:
        """Replace all by a snapshot; durable on return. False: it is too large, and nothing has changed."""
        blocks, place = journal.begin(self._mirror, self._place.generation + 1, cover)
        if len(blocks) > _HALF_BLOCKS // 2:
            return False
        self._write(blocks)
        self._place = place
        return True

    def append(self, lines: Sequence[Line]) -> bool:
        """Durable on return. False: there is no room, and nothing has changed: begin a snapshot."""
        blocks, place = journal.append(self._mirror, self._place, lines)
        if place.number > _HALF_BLOCKS:
            return False
        self._write(blocks)
        self._place = place
        return True

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def _write(self, blocks: Sequence[Block]) -> None:
        if not blocks:
            return
        first = blocks[0].place
        offset = (first.generation % 2) * HALF_BYTES + first.number * BLOCK_BYTES
        write_all(self._fd, b"".join(block.data for block in blocks), offset)


def clear(path: Path, mirror: bytes, cover: Cover | None = None) -> None:
    """Begin an empty journal, or one that says `cover`; durable on return. Raises OSError."""
    file = JournalFile(path, mirror)
    try:
        if not file.is_new:
            try:
                file.read()
            except JournalDamaged:
                # Whatever is there must not be taken for newer than what is written now.
                os.unlink(path)
                file.close()
                file = JournalFile(path, mirror)
        file.begin(cover or Cover())
    finally:
        file.close()


def load(path: Path, mirror: bytes) -> Cover:
    """What the journal says. Raises JournalDamaged, also if there is none, and OSError."""
    if not path.exists():
        raise JournalDamaged("there is no journal")
    file = JournalFile(path, mirror)
    try:
        return file.read()
    finally:
        file.close()


def _make(path: Path) -> None:
    """Zeros on the disk, so that no later write needs new room; under its name only when it is whole."""
    new = path.with_name(f"{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        zeros = bytes(1 << 20)
        for offset in range(0, 2 * HALF_BYTES, len(zeros)):
            write_all(fd, zeros, offset)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, path)
    sync_folder(path.parent)
