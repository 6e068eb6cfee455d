# SPDX-License-Identifier: Apache-2.0
"""The primary's end of a failback from the log: rounds while applications write, and a last one while they wait.

    target's own log -> suspect
    rounds:  take the log -> send -> (if it was much: durable on both -> out of the log)
    last:    hold changes back -> take -> send -> attach the stream -> let them go on

Behind the last round both trees are equal and every later change goes to both, so the core may switch and say DONE.
A round that breaks is done again: its zones are still in the log. So is one that met files with names which nobody
knows; these are looked for in all directories, while applications go on.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from farmd.mirror.datapath import WriteThrough
from farmd.mirror.dirty import Batch
from farmd.mirror.keeping import Keeper
from farmd.mirror.native import excludes
from farmd.mirror.pace import Bucket
from farmd.mirror.places import Places, Unfindable, join, names_of
from farmd.mirror.ranges import Range
from farmd.mirror.sending import Sender, Wanted
from farmd.mirror.zones import BLOCK_BYTES, BLOCKS_PER_ZONE, ZONE_BYTES, Cover, Kind
from farmd.mirror.zonewire import Link, LogLied, Meta, Op, path_from
from farmd.model.errors import FarmError, PeerError, TimedOut

_QUICK_S = 0.25
"""A round shorter than this is not worth repeating before the last one."""
_ROUNDS = 12
_LAST_ROUNDS = 4
"""One, and more if files have names that must be looked for."""
_FEW_BYTES, _FEW_ZONES = 32 << 20, 1024
"""So little is sent at once, with changes held back."""
_SLICE_BYTES = 512 << 20
"""After so much both sides make it durable, so that a cut does not cost it again."""


@dataclass(slots=True)
class Came:
    """What a failback came to."""

    rounds: int = 0
    files: int = 0
    bytes_moved: int = 0
    held_s: float = 0.0
    seconds: float = 0.0


class Failback:
    """One failback over one link. `run` blocks and may be called once."""

    def __init__(
        self,
        fs: WriteThrough,
        keeper: Keeper,
        root: int,
        link: Link,
        rate_bytes_s: int,
        freeze_s: float,
        excluded: tuple[str, ...] = (),
    ) -> None:
        self._fs, self._keeper, self._root, self._link = fs, keeper, root, link
        self._freeze_s, self._excluded = freeze_s, excluded
        self.rate_bytes_s = rate_bytes_s
        """What it sends at most beside applications; 0: no limit. It may be changed while it goes on."""
        self._bucket = Bucket(time.monotonic_ns())
        self._until: float | None = None
        self.came = Came()

    def run(self, attach: Callable[[], None]) -> Came:
        """Make the target equal; `attach` joins the stream. Raises FarmError: LogLied if the log does not help."""
        began = time.monotonic()
        wanted = self._cover()
        try:
            wanted = self._while_in_use(wanted)
            self._last(wanted, attach)
        except OSError as error:
            self._keeper.give_back()
            raise PeerError("the failback", f"this node's copy cannot be read ({error})", "See its disk") from error
        except BaseException:
            self._keeper.give_back()
            raise
        self.came.seconds = round(time.monotonic() - began, 4)
        return self.came

    def _cover(self) -> Wanted:
        self._link.flush()
        op, meta, _ = self._link.receive()
        if op is not Op.COVER:
            raise PeerError("the peer", "it did not say what it has", "See that both run the same farmd")
        if meta.get("everything"):
            raise LogLied("the target's log", "it says that anything may differ", "Everything is compared")
        try:
            files = {path_from(path): [_range(*each) for each in ranges] for path, ranges in meta["files"]}
            return Wanted(_paths(meta["paths"]), _paths(meta["folders"]), files)
        except (KeyError, TypeError, ValueError) as error:
            cause = f"what it says of its log means nothing ({error})"
            raise PeerError("the peer", cause, "See that both run the same farmd") from error

    def _while_in_use(self, wanted: Wanted) -> Wanted:
        for _ in range(_ROUNDS):
            if wanted.empty and self._keeper.has_little(_FEW_ZONES, _FEW_BYTES // BLOCK_BYTES):
                break
            began = time.monotonic()
            wanted = self._round(self._keeper.take(), self._with_names(wanted), still=False)
            if time.monotonic() - began < _QUICK_S:
                break
        return wanted

    def _round(self, batch: Batch, wanted: Wanted, *, still: bool) -> Wanted:
        if self._keeper.everything:
            raise LogLied("the log of dirty zones", "it outgrew its bound", "Everything is compared")
        more: dict[str, Any] = {"still": still, "paced": self._paced, "excluded": self._excluded}
        sender = Sender(self._root, self._link, batch, **more)
        sender.run(wanted)
        self.came.rounds += 1
        self.came.files += sender.files
        self.came.bytes_moved += sender.content_bytes
        if sender.content_bytes > _SLICE_BYTES and not still and sender.again.empty:
            sender.make_durable()
            self._keeper.sent()
        return sender.again

    def _with_names(self, wanted: Wanted) -> Wanted:
        """Look for files that have names which nobody knows. Raises LogLied."""
        if wanted.nameless:
            paths, missing = names_of(self._root, wanted.nameless, self._skips)
            if missing:
                raise _names_missing(len(missing))
            wanted.kept = paths - wanted.paths
            wanted.paths |= paths
            wanted.nameless.clear()
        return wanted

    def _skips(self, path: bytes) -> bool:
        return excludes(self._excluded, path)

    def _last(self, wanted: Wanted, attach: Callable[[], None]) -> None:
        for _ in range(_LAST_ROUNDS):
            wanted = self._held_back(self._with_names(wanted), attach)
            if wanted.empty:
                break
        else:
            raise _names_missing(len(wanted.nameless))
        with suppress(FarmError):
            self._link.send(Op.ANSWER)
            self._link.flush()

    def _held_back(self, wanted: Wanted, attach: Callable[[], None]) -> Wanted:
        """A round without changes; behind it the stream is attached, if nothing is left to do."""
        began = time.monotonic()
        self._fs.freeze()
        try:
            self._until = began + self._freeze_s
            self._link.limit(self._freeze_s)  # who says nothing for so long must not hold up applications
            left = self._round(self._keeper.take(), wanted, still=True)
            if left.empty:
                attach()
            return left
        finally:
            self._fs.thaw()
            self._until = None
            self._link.limit(None)
            self.came.held_s = round(max(self.came.held_s, time.monotonic() - began), 4)

    def _paced(self, size: int) -> None:
        """After so many bytes: wait as the rate wants it, or give up holding changes back."""
        if self._until is not None:
            if time.monotonic() > self._until:
                cause = f"its last round took longer than {self._freeze_s:g} s, in which changes are held back"
                raise TimedOut("failback", cause, "It is tried again; raise freeze_s if it never ends")
        elif rate := self.rate_bytes_s:
            self._bucket = self._bucket.filled(time.monotonic_ns(), rate).taken(size)
            wait_ns = self._bucket.wait_ns(rate)
            if wait_ns:
                self._link.flush()
                time.sleep(wait_ns / 1e9)


def cover_of(root: int, cover: Cover) -> Meta:
    """A target's own log, by paths, for the primary: handles mean something on one node only.

    A file that is gone needs no line: its directory has one. Raises OSError.
    """
    everything: Meta = {"everything": True}
    if cover.tree is not None:
        return everything
    places = Places(root, cover.names)
    paths: set[bytes] = set()
    folders: set[bytes] = set()
    files: dict[bytes, list[Range]] = {}
    try:
        for zone, mark in sorted(cover.marks.items()):
            if zone.kind is Kind.PLACE:
                parent, name = zone.place
                if (folder := places.folder(parent)) is not None:
                    paths.add(join(folder, name))
            elif zone.kind is Kind.ENTRIES:
                if (folder := places.folder(zone.handle)) is not None:
                    folders.add(folder)
            elif (found := places.inode(zone.handle)) is not None:
                os.close(found.fd)
                if zone.kind is Kind.WHOLE:
                    paths.add(found.path)
                elif not stat.S_ISREG(found.st.st_mode):
                    # A directory's own attributes; of anything else, all of it.
                    (folders if stat.S_ISDIR(found.st.st_mode) else paths).add(found.path)
                else:
                    ranges = files.setdefault(found.path, [])
                    if zone.kind is Kind.DATA:
                        mask = zone.full if mark.hot else mark.mask
                        first, last = (mask & -mask).bit_length() - 1, mask.bit_length()
                        start = zone.number * BLOCKS_PER_ZONE + first
                        ranges.append((start * BLOCK_BYTES, (last - first) * BLOCK_BYTES))
    except Unfindable:
        return everything
    return {
        "paths": [path.hex() for path in sorted(paths)],
        "folders": [path.hex() for path in sorted(folders)],
        "files": [[path.hex(), ranges] for path, ranges in sorted(files.items())],
    }


def _names_missing(files: int) -> LogLied:
    cause = f"{files} files have names that are not found"
    return LogLied("the log of dirty zones", cause, "Everything is compared")


def _paths(hexes: list[str]) -> set[bytes]:
    return {path_from(text, root=True) for text in hexes}


def _range(offset: int, length: int) -> Range:
    if not (0 <= offset < 1 << 62 and 0 <= length <= ZONE_BYTES):
        raise ValueError("a range that no zone has")
    return int(offset), int(length)
