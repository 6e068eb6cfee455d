# SPDX-License-Identifier: Apache-2.0
"""One round of a failback: a batch of the log, put into frames that make the target equal.

Names first (a directory before what is in it), then further names of files, then contents, at last the attributes of
directories. What is excluded is not there.

A file with several names is sent when all are known. The log knows those that changed and at most one more; whose
others are not known is left for the next round, before which somebody looks for them (`places.names_of`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from farmd.mirror import attributes, handles
from farmd.mirror import ranges as ranges_of
from farmd.mirror.contents import GONE, Contents
from farmd.mirror.dirty import Batch
from farmd.mirror.durable import sync_file_system
from farmd.mirror.native import excludes
from farmd.mirror.places import Found, Places, Unfindable, join
from farmd.mirror.ranges import Range
from farmd.mirror.zones import Kind, Zone
from farmd.mirror.zonewire import Link, LogLied, Op

SMALL_BYTES = 1 << 20
"""Files that a directory speaks for; `SMALL_BYTES` of cext/mirror/dirty.c."""


@dataclass(slots=True)
class Wanted:
    """What is to be done beside a batch: the target's own log, and what an earlier round could not do."""

    paths: set[bytes] = field(default_factory=set)
    folders: set[bytes] = field(default_factory=set)
    files: dict[bytes, list[Range]] = field(default_factory=dict)
    nameless: set[bytes] = field(default_factory=set)
    """Handles of files that have names which nobody knows."""
    kept: set[bytes] = field(default_factory=set)
    """Of the paths, names that no event speaks of: the target has them, with most of the contents."""

    @property
    def empty(self) -> bool:
        """Nothing."""
        return not (self.paths or self.folders or self.files or self.nameless)


class Sender:
    """One batch. `still` climbs when nothing changes meanwhile: then whatever does not fit is a lie of the log."""

    def __init__(
        self,
        root: int,
        link: Link,
        batch: Batch,
        *,
        still: bool,
        paced: Callable[[int], None],
        excluded: tuple[str, ...] = (),
    ) -> None:
        self._root, self._link, self._batch, self._still = root, link, batch, still
        self._excluded = excluded
        self._places = Places(root, batch.names)
        self._done: set[bytes] = set()
        self._folders: set[bytes] = set()
        self._linked: dict[bytes, tuple[int, set[bytes]]] = {}
        self._changed: set[bytes] = set()
        self._files = Contents(root, link, paced, self._odd)
        self.again = Wanted()
        """What was in motion, for the next round."""
        self._specials = 0

    def run(self, more: Wanted) -> None:
        """Send it all, and see that the target applied it. Raises LogLied, PeerError, OSError."""
        try:
            self._names(more)
            self._links(more.kept)
            self._contents(more)
            self._files.settle()
            for path in sorted(self._folders, reverse=True):
                self._folder_attributes(path)
            self._see(durable=False)
        finally:
            self._files.close()

    @property
    def files(self) -> int:
        """Sent, in part or as a whole."""
        return self._files.files + self._specials

    @property
    def content_bytes(self) -> int:
        """Of files, as they were sent."""
        return self._files.content_bytes

    def make_durable(self) -> None:
        """On both sides. Raises PeerError, OSError."""
        sync_file_system(self._root)
        self._see(durable=True)

    def _see(self, *, durable: bool) -> None:
        self._link.send(Op.SYNC, {"durable": durable})
        for text in self._link.answer()[0].get("missing", ()):
            self._odd(bytes.fromhex(text), "the target does not have it as the log says")

    def _odd(self, path: bytes, why: str) -> None:
        if self._still:
            shown = path.decode(errors="backslashreplace")
            raise LogLied(f"the log of dirty zones: {shown}", why, "Everything is compared")
        self.again.paths.add(path)

    # ---- names ----

    def _names(self, more: Wanted) -> None:
        folders = set(more.folders)
        for zone in self._zones():
            if zone.kind is Kind.PLACE:
                parent, name = zone.place
                folder = self._folder(parent)
                if folder is not None:
                    self._changed.add(join(folder, name))
            elif zone.kind is Kind.ENTRIES and (folder := self._folder(zone.handle)) is not None:
                folders.add(folder)
        for path in sorted(self._changed | more.paths):
            self._path(path)
        for path in sorted(folders):
            self._suspect_folder(path)

    def _folder(self, handle: bytes) -> bytes | None:
        try:
            return self._places.folder(handle)
        except Unfindable as error:
            raise LogLied("the log of dirty zones", str(error), "Everything is compared") from error

    def _zones(self) -> Iterable[Zone]:
        return self._batch.fine.keys() | self._batch.suspect.keys()

    def _path(self, path: bytes) -> None:
        """Whatever is at this name, and below it, is to be the same there."""
        if path in self._done or excludes(self._excluded, path):
            return
        self._done.add(path)
        if path:
            self._folders.add(os.path.dirname(path))
        try:
            fd = handles.open_below(self._root, path, os.O_PATH)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return
            if error.errno not in GONE:
                raise
            self._link.send(Op.REMOVE, {"p": path.hex()})
            return
        try:
            st = os.fstat(fd)
            if stat.S_ISDIR(st.st_mode):
                self._whole_folder(path)
            elif st.st_nlink > 1:
                self._note_link(path, fd, st)
            elif stat.S_ISREG(st.st_mode):
                self._files.whole(path, fd, st)
            else:
                self._special(path, fd, st)
        finally:
            os.close(fd)

    def _whole_folder(self, path: bytes) -> None:
        names = self._list(path)
        if names is None:
            return
        self._folders.add(path)
        self._link.send(Op.FOLDER, {"p": path.hex(), "names": [name.hex() for name in names]})
        for name in names:
            self._path(join(path, name))

    def _suspect_folder(self, path: bytes) -> None:
        """Names, and what its directory speaks for: small files. Directories in it have lines of their own."""
        names = None if path in self._done or excludes(self._excluded, path) else self._list(path)
        if names is None:
            return
        self._folders.add(path)
        self._link.send(Op.FOLDER, {"p": path.hex(), "names": [name.hex() for name in names], "expected": True})
        for name in names:
            child = join(path, name)
            try:
                st = os.stat(self._absolute(child), follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(st.st_mode):
                self._link.send(Op.FOLDER, {"p": child.hex(), "expected": True})
            elif stat.S_ISREG(st.st_mode) and st.st_size > SMALL_BYTES and st.st_nlink == 1:
                self._files.ask(child, [])
            else:
                self._path(child)

    def _absolute(self, path: bytes) -> bytes:
        return b"/proc/self/fd/%d/" % self._root + path

    def _list(self, path: bytes) -> list[bytes] | None:
        try:
            fd = handles.open_below(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return None
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
        finally:
            os.close(fd)
        return [name for name in names if not excludes(self._excluded, join(path, name))]

    def _special(self, path: bytes, fd: int, st: os.stat_result) -> None:
        meta = {"p": path.hex(), "n": st.st_nlink, "mode": st.st_mode, "rdev": st.st_rdev}
        meta["a"] = attributes.read(fd, st)
        if stat.S_ISLNK(st.st_mode):
            meta["to"] = os.readlink(b"", dir_fd=fd).hex()
        self._link.send(Op.SPECIAL, meta)
        self._specials += 1

    def _folder_attributes(self, path: bytes) -> None:
        if not path and handles.has_parts(self._root):
            return  # nobody's directory
        try:
            fd = handles.open_below(self._root, path, os.O_PATH)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return  # it went while we went; its own line comes
        try:
            self._link.send(Op.META, {"p": path.hex(), "a": attributes.read(fd, os.fstat(fd))})
        finally:
            os.close(fd)

    # ---- files with several names ----

    def _note_link(self, path: bytes, fd: int, st: os.stat_result) -> None:
        handle = handles.of(fd, handles.part_of(self._root, path))
        _, paths = self._linked.setdefault(handle, (st.st_nlink, set()))
        paths.add(path)
        named = self._places.named(handle, st)
        if named is not None and not excludes(self._excluded, named):
            paths.add(named)

    def _links(self, kept: set[bytes]) -> None:
        """Files with several names: all of them must be known, or somebody else's would be written."""
        for handle, (count, paths) in self._linked.items():
            if len(paths) < count:
                self.again.paths |= paths
                self.again.nameless.add(handle)
                continue
            first = min(paths & kept or paths - self._changed or paths)
            self._done |= paths
            self._link.send(Op.NAMES, {"p": first.hex(), "names": [path.hex() for path in sorted(paths)]})
            self._one_of_several(first)
            for path in sorted(paths - {first}):
                self._folders.add(os.path.dirname(path))
                self._link.send(Op.LINK, {"p": path.hex(), "to": first.hex()})

    def _one_of_several(self, path: bytes) -> None:
        """It must be there before it gets further names."""
        try:
            fd = handles.open_below(self._root, path, os.O_PATH)
        except FileNotFoundError:
            return
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                self._special(path, fd, st)
                return
        finally:
            os.close(fd)
        self._files.ask(path, [(0, st.st_size)])
        self._files.settle()

    # ---- contents ----

    def _contents(self, more: Wanted) -> None:
        for path, ranges in sorted(more.files.items()):
            if path not in self._done and not excludes(self._excluded, path):
                self._files.ask(path, ranges)
        by_file: dict[bytes, list[Zone]] = {}
        for zone in self._zones():
            if zone.kind in (Kind.META, Kind.WHOLE, Kind.DATA):
                by_file.setdefault(zone.handle, []).append(zone)
        for handle in sorted(by_file.keys() - self._linked.keys()):
            try:
                found = self._places.inode(handle)
            except Unfindable:
                self.again.nameless.add(handle)
                continue
            if found is not None:
                try:
                    self._file(found, by_file[handle])
                finally:
                    os.close(found.fd)

    def _file(self, found: Found, zones: list[Zone]) -> None:
        if found.path in self._done or excludes(self._excluded, found.path):
            return
        if stat.S_ISDIR(found.st.st_mode):
            self._folders.add(found.path)
        elif not stat.S_ISREG(found.st.st_mode):
            self._special(found.path, found.fd, found.st)
        elif any(zone.kind is Kind.WHOLE for zone in zones):
            self._files.ask(found.path, [(0, found.st.st_size)])
        else:
            suspect = ranges_of.of_masks(self._batch.suspect, zones, found.st.st_size)
            self._files.exact(found.path, found.fd, ranges_of.of_masks(self._batch.fine, zones, found.st.st_size))
            if suspect:
                self._files.ask(found.path, suspect, whole=False)
