# SPDX-License-Identifier: Apache-2.0
"""The journal of zones as the core's commands want it, while no data path keeps it (`farmd.mirror.keeping`)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from farmd.mirror.durable import sync_folder
from farmd.mirror.failback import cover_of
from farmd.mirror.journal import JournalDamaged
from farmd.mirror.journalfile import clear, load
from farmd.mirror.zones import Cover
from farmd.mirror.zonewire import Meta

FILE = "journal"
MENDING = "mending"
"""A file of this name is there while a repair goes on: what it has half mended is in no log."""


class Logbook:
    """One node's journal on disk. Every method is durable on return and may raise OSError."""

    def __init__(self, folder: Path, mirror: bytes, excluded: tuple[str, ...] = ()) -> None:
        """A journal that was kept under other exclusions is as good as none: it says nothing of what was excluded."""
        patterns = "\n".join(excluded).encode(errors="surrogateescape")
        self.path = folder / FILE
        self.owner = hashlib.blake2b(patterns, key=mirror, digest_size=len(mirror)).digest() if excluded else mirror
        """Whose journal it is, in its file."""
        self.inherited = False
        """The journal says "everything" only until what was received is durable."""

    def recover(self, *, is_new: bool) -> bool:
        """Whether it can be trusted. A node that was never part of the mirror begins an empty one."""
        if is_new:
            self.clear()
            return True
        if self.is_mending:
            return False
        try:
            load(self.path, self.owner)
        except JournalDamaged:
            return False
        return True

    def clear(self) -> None:
        """Nothing differs."""
        clear(self.path, self.owner)
        self.inherited = False
        self.end_mending()

    def everything(self) -> None:
        """All must be compared."""
        clear(self.path, self.owner, Cover(tree=b""))
        self.inherited = False
        self.end_mending()

    def begin_mending(self) -> None:
        """A repair begins: from now on the log says too little, also after a crash."""
        self._mending.touch()
        sync_folder(self.path.parent)

    def end_mending(self) -> None:
        """The repair is whole, or the log says that everything may differ."""
        if self.is_mending:
            self._mending.unlink()
            sync_folder(self.path.parent)

    def inherit(self, *, received: bool) -> None:
        """What was received and is not flushed may be lost with the power: until it is, all would have to be compared.

        The design's list of exactly these zones would need them to be noted on every write; a sync of the file system,
        begun at once, ends the same doubt within seconds.
        """
        if not received:
            return
        try:
            cover = load(self.path, self.owner)
        except JournalDamaged:
            return  # it says "everything" already
        if cover.tree is None:
            cover.tree = b""
            clear(self.path, self.owner, cover)
            self.inherited = True

    @property
    def is_mending(self) -> bool:
        """A repair was cut, and nobody has compared everything since."""
        return self._mending.exists()

    @property
    def _mending(self) -> Path:
        return self.path.with_name(MENDING)

    def for_the_peer(self, root: int) -> int:
        """Where this node's copy may differ, by paths, as a file in memory for another process; close it."""
        if self.is_mending:
            return handed({"everything": True})
        try:
            return handed(cover_of(root, load(self.path, self.owner)))
        except JournalDamaged:
            return handed({"everything": True})


def handed(meta: Meta) -> int:
    """A file in memory that holds `meta`, to be read from its beginning."""
    fd = os.memfd_create("farmd-cover")
    with os.fdopen(os.dup(fd), "w") as file:
        json.dump(meta, file)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
