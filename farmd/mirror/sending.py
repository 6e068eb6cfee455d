# SPDX-License-Identifier: Apache-2.0
"""One round of a failback: a batch of the log, put into frames that make the target equal.

Names first (a directory before what is in it), then further names of files, then contents, at last the attributes of
directories. What is only suspect is compared by digests before anything of it is sent. What is excluded is not there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from farmd.mirror import attributes, handles
from farmd.mirror import ranges as ranges_of
from farmd.mirror.datapath import digest_blocks, excludes
from farmd.mirror.dirty import Batch
from farmd.mirror.durable import sync_file_system
from farmd.mirror.places import Found, Places, Unfindable, join
from farmd.mirror.ranges import Range
from farmd.mirror.zones import Kind, Zone
from farmd.mirror.zonewire import BLOCK_BYTES, CHUNK_BYTES, INLINE_BYTES, Link, LogLied, Op

SMALL_BYTES = 1 << 20
"""Files that a directory speaks for; `SMALL_BYTES` of cext/mirror/dirty.c."""
_ASK_BYTES = 64 << 20
_ASKS = 4
"""So many answers fit into any socket buffer: neither side ever waits for the other to read."""
_ZEROS = bytes(CHUNK_BYTES)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""There is no such path: what was a directory may be a symlink now."""


@dataclass(slots=True)
class Wanted:
    """What is to be done beside a batch: the target's own log, and what an earlier round could not do."""

    paths: set[bytes] = field(default_factory=set)
    folders: set[bytes] = field(default_factory=set)
    files: dict[bytes, list[Range]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Nothing."""
        return not (self.paths or self.folders or self.files)


@dataclass(slots=True)
class _Ask:
    """Digests of these ranges are on their way."""

    path: bytes
    fd: int
    st: os.stat_result
    ranges: list[Range]
    whole: bool


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
        self._root, self._link, self._batch, self._still, self._paced = root, link, batch, still, paced
        self._excluded = excluded
        self._places = Places(root, batch.names)
        self._done: set[bytes] = set()
        self._folders: set[bytes] = set()
        self._linked: dict[tuple[int, int], tuple[int, set[bytes]]] = {}
        self._asks: deque[_Ask] = deque()
        self.again = Wanted()
        """What was in motion, for the next round."""
        self.files = 0
        self.content_bytes = 0

    def run(self, more: Wanted) -> None:
        """Send it all, and see that the target applied it. Raises LogLied, PeerError, OSError."""
        try:
            self._names(more)
            self._links()
            self._contents(more)
            while self._asks:
                self._settle_ask()
            for path in sorted(self._folders, reverse=True):
                self._folder_attributes(path)
            self._see(durable=False)
        finally:
            for ask in self._asks:
                os.close(ask.fd)

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
        paths = set(more.paths)
        folders = set(more.folders)
        for zone in self._zones():
            if zone.kind is Kind.PLACE:
                parent, name = zone.place
                folder = self._folder(parent)
                if folder is not None:
                    paths.add(join(folder, name))
            elif zone.kind is Kind.ENTRIES and (folder := self._folder(zone.handle)) is not None:
                folders.add(folder)
        for path in sorted(paths):
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
            if error.errno not in _GONE:
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
                self._whole_file(path, fd, st)
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
                self._ask(child, [])
            else:
                self._path(child)

    def _absolute(self, path: bytes) -> bytes:
        return b"/proc/self/fd/%d/" % self._root + path

    def _list(self, path: bytes) -> list[bytes] | None:
        try:
            fd = handles.open_below(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return None
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
        finally:
            os.close(fd)
        return [name for name in names if not excludes(self._excluded, join(path, name))]

    def _special(self, path: bytes, fd: int, st: os.stat_result) -> None:
        meta = {"p": path.hex(), "mode": st.st_mode, "rdev": st.st_rdev, "a": attributes.read(fd, st)}
        if stat.S_ISLNK(st.st_mode):
            meta["to"] = os.readlink(b"", dir_fd=fd).hex()
        self._link.send(Op.SPECIAL, meta)
        self.files += 1

    def _folder_attributes(self, path: bytes) -> None:
        if not path and handles.has_parts(self._root):
            return  # nobody's directory
        try:
            fd = handles.open_below(self._root, path, os.O_PATH)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return  # it went while we went; its own line comes
        try:
            self._link.send(Op.META, {"p": path.hex(), "a": attributes.read(fd, os.fstat(fd))})
        finally:
            os.close(fd)

    # ---- whole files ----

    def _whole_file(self, path: bytes, fd: int, st: os.stat_result) -> None:
        if st.st_size > INLINE_BYTES:
            self._ask(path, [(0, st.st_size)])
            return
        data = self._read_small(path, st)
        if data is not None:
            meta = {"p": path.hex(), "n": st.st_nlink, "a": attributes.read(fd, st)}
            self._link.send(Op.SMALL, meta, data)
            self._count(len(data))

    def _read_small(self, path: bytes, st: os.stat_result) -> bytes | None:
        try:
            fd = handles.open_below(self._root, path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return os.pread(fd, INLINE_BYTES, 0)
        finally:
            os.close(fd)

    def _note_link(self, path: bytes, fd: int, st: os.stat_result) -> None:
        part = handles.part_of(self._root, path)
        _, paths = self._linked.setdefault((part, st.st_ino), (st.st_nlink, set()))
        paths.add(path)
        named = self._places.named(handles.of(fd, part), st)
        if named is not None and not excludes(self._excluded, named):
            paths.add(named)

    def _links(self) -> None:
        """Files with several names: all of them must be known, or somebody else's would be written."""
        for count, paths in self._linked.values():
            if len(paths) < count:
                self._odd(min(paths), "it has names that the log does not know")
                continue
            first = min(paths)
            self._done |= paths
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
        self._ask(path, [(0, st.st_size)])
        while self._asks:
            self._settle_ask()

    # ---- contents ----

    def _contents(self, more: Wanted) -> None:
        for path, ranges in sorted(more.files.items()):
            if path not in self._done and not excludes(self._excluded, path):
                self._ask(path, ranges)
        by_file: dict[bytes, list[Zone]] = {}
        for zone in self._zones():
            if zone.kind in (Kind.META, Kind.WHOLE, Kind.DATA):
                by_file.setdefault(zone.handle, []).append(zone)
        for handle in sorted(by_file):
            try:
                found = self._places.inode(handle)
            except Unfindable as error:
                if self._still:
                    raise LogLied("the log of dirty zones", str(error), "Everything is compared") from error
                continue  # in motion: its directory's line comes
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
            self._ask(found.path, [(0, found.st.st_size)])
        else:
            suspect = ranges_of.of_masks(self._batch.suspect, zones, found.st.st_size)
            self._exact(found, ranges_of.of_masks(self._batch.fine, zones, found.st.st_size))
            if suspect:
                self._ask(found.path, suspect, whole=False)

    def _exact(self, found: Found, ranges: list[Range]) -> None:
        fd = os.open(b"/proc/self/fd/%d" % found.fd, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._begin(found.path, fd, os.fstat(fd))
            for offset, length in ranges:
                self._send_range(fd, offset, length)
            self._link.send(Op.END)
        finally:
            os.close(fd)

    def _begin(self, path: bytes, fd: int, st: os.stat_result, *, whole: bool = False) -> None:
        meta = {"p": path.hex(), "n": st.st_nlink, "size": st.st_size, "a": attributes.read(fd, st), "whole": whole}
        self._link.send(Op.FILE, meta)
        self.files += 1

    def _send_range(self, fd: int, offset: int, length: int) -> None:
        while length:
            data = os.pread(fd, min(length, CHUNK_BYTES), offset)
            if not data:
                return
            if len(data) >= BLOCK_BYTES and data == _ZEROS[: len(data)]:
                self._link.send(Op.ZERO, {"o": offset, "l": len(data)})
            else:
                self._link.send(Op.DATA, {"o": offset}, data)
                self._count(len(data), 0)
            offset, length = offset + len(data), length - len(data)

    def _count(self, size: int, files: int = 1) -> None:
        self.files += files
        self.content_bytes += size
        self._paced(size)

    # ---- digests first ----

    def _ask(self, path: bytes, ranges: list[Range], *, whole: bool = True) -> None:
        """Compare ranges of a file; with none, only see that it is there with this size. In pieces if it is large."""
        pieces = [
            (offset + at, min(_ASK_BYTES, length - at))
            for offset, length in ranges
            for at in range(0, length, _ASK_BYTES)
        ]
        for some in ranges_of.gathered(pieces, _ASK_BYTES) or [[]]:
            try:
                fd = handles.open_below(self._root, path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno in (*_GONE, errno.ENXIO):
                    return
                raise
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                os.close(fd)
                return
            self._asks.append(_Ask(path, fd, st, some, whole))
            self._link.send(Op.ASK, {"p": path.hex(), "n": st.st_nlink, "r": some, "whole": whole})
            if len(self._asks) >= _ASKS:
                self._settle_ask()

    def _settle_ask(self) -> None:
        ask = self._asks.popleft()
        try:
            meta, theirs = self._link.answer()
            if meta.get("missing"):
                self._odd(ask.path, "the target does not have it")
                return
            if not ask.ranges and ask.st.st_size != meta["size"]:
                self._ask(ask.path, [(0, ask.st.st_size)])
                return
            self._begin(ask.path, ask.fd, ask.st, whole=ask.whole)
            for (offset, length), count in zip(ask.ranges, meta["counts"], strict=True):
                self._send_differing(ask.fd, offset, length, theirs[: 16 * count])
                theirs = theirs[16 * count :]
            self._link.send(Op.END)
        finally:
            os.close(ask.fd)

    def _send_differing(self, fd: int, offset: int, length: int, theirs: bytes) -> None:
        blocks = -(-length // BLOCK_BYTES)
        ours = digest_blocks(fd, offset, blocks, BLOCK_BYTES)
        if ours == theirs:
            return
        for start, end in ranges_of.runs(
            number for number in range(len(ours) // 16) if ours[16 * number :][:16] != theirs[16 * number :][:16]
        ):
            self._send_range(fd, offset + start * BLOCK_BYTES, min(end * BLOCK_BYTES, length) - start * BLOCK_BYTES)
