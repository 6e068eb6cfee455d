# SPDX-License-Identifier: Apache-2.0
"""The target's end of a failback from the log: frames that describe states, applied below one directory.

A hostile primary is bounded as in the stream's receiver: every path is opened below the directory without following a
symlink or leaving the mount, and contents go to regular files only. The copy is neither the old nor the new one until
the core says otherwise; nothing here says that it is whole.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from farmd.mirror import attributes, handles
from farmd.mirror.durable import sync_file_system, write_all
from farmd.mirror.native import digest_blocks, excludes, punch
from farmd.mirror.places import join
from farmd.mirror.zonewire import BLOCK_BYTES, MAX_DATA, Link, Meta, Op, path_from
from farmd.model.errors import PeerError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_MISSING_TOLD = 100
_MOST_DIGESTS = MAX_DATA // 16


class Patching:
    """One failback. `run` blocks; closing the link from elsewhere ends it."""

    def __init__(self, root: int, link: Link, excluded: tuple[str, ...] = ()) -> None:
        """`excluded`: what a primary may not name. It goes only with a directory that goes."""
        self._root, self._link, self._excluded = root, link, excluded
        self._folder: tuple[bytes, int] | None = None
        self._file: tuple[int, Meta] | None = None
        self._missing: list[str] = []
        self.frames = 0
        self._acts: dict[Op, Callable[[Meta, bytes], None]] = {
            Op.REMOVE: self._remove,
            Op.FOLDER: self._make_folder,
            Op.SPECIAL: self._special,
            Op.SMALL: self._small,
            Op.NAMES: self._see_names,
            Op.LINK: self._hard_link,
            Op.ASK: self._ask,
            Op.FILE: self._begin_file,
            Op.DATA: self._data,
            Op.ZERO: self._zero,
            Op.END: self._end_file,
            Op.META: self._attributes,
            Op.SYNC: self._sync,
        }

    def run(self, cover: Meta) -> None:
        """Say where our own log wants to be compared, then apply until the primary ends. Raises PeerError."""
        self._link.send(Op.COVER, cover)
        self._link.flush()
        try:
            self._apply_all()
        except PeerError:
            raise
        except Exception as error:  # what a lying primary puts into a frame may be wrong in any way
            text = f"a change could not be made there: {error or type(error).__name__}"
            self._link.send(Op.FAILED, {"text": text})
            self._link.flush()
            raise PeerError("the failback", text, "It is tried again; see that the disk has room") from error
        finally:
            self._forget_folder()
            if self._file is not None:
                os.close(self._file[0])

    def _apply_all(self) -> None:
        while True:
            op, meta, data = self._link.receive()
            if op is Op.ANSWER:  # the primary has no more to say
                return
            if op not in self._acts:
                raise ValueError(f"frame {op} is none of the primary's")
            self._acts[op](meta, data)
            self.frames += 1

    # ---- names ----

    def _remove(self, meta: Meta, _: bytes) -> None:
        try:
            self._clear(self._path(meta["p"]))
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def _make_folder(self, meta: Meta, _: bytes) -> None:
        path = self._path(meta["p"], root=True)
        st = self._stat(path)
        if st is None or not stat.S_ISDIR(st.st_mode):
            if meta.get("expected"):
                self._lacks(meta["p"])
                return
            self._clear(path)
            os.mkdir(_name(path), 0o700, dir_fd=self._parent(path))
        if "names" in meta:
            self._keep_only(path, {bytes.fromhex(name) for name in meta["names"]})

    def _keep_only(self, path: bytes, names: set[bytes]) -> None:
        fd = handles.open_below(self._root, path, _DIRECTORY)
        try:
            for name in map(os.fsencode, os.listdir(fd)):
                if name not in names and not excludes(self._excluded, join(path, name)):
                    self._forget_folder()
                    _remove_at(fd, name)
        finally:
            os.close(fd)

    def _special(self, meta: Meta, _: bytes) -> None:
        path, mode = self._path(meta["p"]), int(meta["mode"])
        name, st = _name(path), self._stat(path)
        same = st is not None and stat.S_IFMT(st.st_mode) == stat.S_IFMT(mode) and st.st_rdev == meta["rdev"]
        same = same and st is not None and st.st_nlink <= meta["n"]
        if same and stat.S_ISLNK(mode):
            same = os.readlink(name, dir_fd=self._parent(path)) == bytes.fromhex(meta["to"])
        if not same:
            self._clear(path)
            if stat.S_ISLNK(mode):
                os.symlink(bytes.fromhex(meta["to"]), name, dir_fd=self._parent(path))
            else:
                os.mknod(name, mode, meta["rdev"], dir_fd=self._parent(path))
        self._attributes(meta, b"")

    def _see_names(self, meta: Meta, _: bytes) -> None:
        """An old file that has further names keeps these, and its contents; it only loses this one."""
        path = self._path(meta["p"])
        names = {path, *map(self._path, meta["names"])}
        st = self._stat(path)
        if st is None or stat.S_ISDIR(st.st_mode):
            return
        if sum(self._is_at(name, st) for name in names) < st.st_nlink:
            self._clear(path)

    def _is_at(self, path: bytes, st: os.stat_result) -> bool:
        try:
            there = self._stat(path)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return False
        return there is not None and os.path.samestat(there, st)

    def _hard_link(self, meta: Meta, _: bytes) -> None:
        path, to = self._path(meta["p"]), self._path(meta["to"])
        have, wanted = self._stat(path), self._stat(to)
        if wanted is None or stat.S_ISDIR(wanted.st_mode):
            self._lacks(meta["to"])
            return
        if have is not None and (have.st_dev, have.st_ino) == (wanted.st_dev, wanted.st_ino):
            return
        self._clear(path)
        folder = handles.open_below(self._root, os.path.dirname(to), os.O_PATH | os.O_DIRECTORY)
        try:
            name = _name(path)
            os.link(_name(to), name, src_dir_fd=folder, dst_dir_fd=self._parent(path), follow_symlinks=False)
        finally:
            os.close(folder)

    # ---- files ----

    def _small(self, meta: Meta, data: bytes) -> None:
        fd = self._regular(self._path(meta["p"]), meta["n"])
        try:
            if os.fstat(fd).st_size != len(data) or os.pread(fd, len(data) + 1, 0) != data:
                write_all(fd, data, 0)
                os.ftruncate(fd, len(data))
            attributes.apply(fd, meta["a"])
        finally:
            os.close(fd)

    def _ask(self, meta: Meta, _: bytes) -> None:
        path = self._path(meta["p"])
        wanted = [(offset, -(-length // BLOCK_BYTES)) for offset, length in meta["r"]]
        counts = [count for _, count in wanted]
        if min(counts, default=0) < 0 or sum(counts) > _MOST_DIGESTS:
            raise ValueError("more digests than an answer carries")
        try:
            fd = self._regular(path, meta["n"]) if meta["whole"] else self._open(path, meta["n"])
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._answer({"missing": True})
            return
        try:
            digests = [digest_blocks(fd, offset, count, BLOCK_BYTES) for offset, count in wanted]
            counts = [len(each) // 16 for each in digests]
            self._answer({"size": os.fstat(fd).st_size, "counts": counts}, b"".join(digests))
        finally:
            os.close(fd)

    def _begin_file(self, meta: Meta, _: bytes) -> None:
        self._end_file({}, b"")
        try:
            path = self._path(meta["p"])
            fd = self._regular(path, meta["n"]) if meta["whole"] else self._open(path, meta["n"])
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._lacks(meta["p"])
            return
        self._file = (fd, meta)
        if os.fstat(fd).st_size != meta["size"]:
            os.ftruncate(fd, meta["size"])

    def _data(self, meta: Meta, data: bytes) -> None:
        if self._file is not None:
            write_all(self._file[0], data, int(meta["o"]))

    def _zero(self, meta: Meta, _: bytes) -> None:
        if self._file is not None:
            punch(self._file[0], int(meta["o"]), int(meta["l"]))

    def _end_file(self, _: Meta, __: bytes) -> None:
        if self._file is not None:
            (fd, meta), self._file = self._file, None
            try:
                attributes.apply(fd, meta["a"])
            finally:
                os.close(fd)

    def _attributes(self, meta: Meta, _: bytes) -> None:
        try:
            fd = handles.open_below(self._root, self._path(meta["p"], root=True), os.O_PATH)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._lacks(meta["p"])
            return
        try:
            attributes.apply(fd, meta["a"])
        finally:
            os.close(fd)

    def _sync(self, meta: Meta, _: bytes) -> None:
        self._end_file({}, b"")
        if meta.get("durable"):
            sync_file_system(self._root)
        missing, self._missing = self._missing, []
        self._answer({"missing": missing})

    # ---- inside ----

    def _path(self, text: str, *, root: bool = False) -> bytes:
        path = path_from(text, root=root)
        if excludes(self._excluded, path):
            raise ValueError(f"{os.fsdecode(path)!r} is not replicated here")
        return path

    def _lacks(self, path: str) -> None:
        if len(self._missing) < _MISSING_TOLD:
            self._missing.append(path)

    def _answer(self, meta: Meta, data: bytes = b"") -> None:
        self._link.send(Op.ANSWER, meta, data)
        self._link.flush()

    def _parent(self, path: bytes) -> int:
        folder = os.path.dirname(path)
        if self._folder is None or self._folder[0] != folder:
            fd = handles.open_below(self._root, folder, _DIRECTORY)
            self._forget_folder()
            self._folder = (folder, fd)
        return self._folder[1]

    def _forget_folder(self) -> None:
        if self._folder is not None:
            os.close(self._folder[1])
            self._folder = None

    def _stat(self, path: bytes) -> os.stat_result | None:
        try:
            if not path:
                return os.fstat(self._root)
            return os.stat(_name(path), dir_fd=self._parent(path), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _clear(self, path: bytes) -> None:
        """Nothing stands there any more."""
        st = self._stat(path)
        if st is not None:
            parent = self._parent(path)
            _remove_at(parent, _name(path))
            if stat.S_ISDIR(st.st_mode):
                self._forget_folder()

    def _open(self, path: bytes, names: int) -> int:
        """A regular file that is there already, under as many names as at the primary; else ENOENT."""
        st = self._stat(path)
        if st is None or not stat.S_ISREG(st.st_mode) or st.st_nlink != names:
            raise FileNotFoundError(errno.ENOENT, "it is not there, or another thing", path)
        return handles.open_below(self._root, path, os.O_RDWR)

    def _regular(self, path: bytes, names: int) -> int:
        """A regular file, made if there is none. One with more names than wanted belongs to the others."""
        st = self._stat(path)
        if st is not None and stat.S_ISREG(st.st_mode) and st.st_nlink <= names:
            return handles.open_below(self._root, path, os.O_RDWR)
        self._clear(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(_name(path), flags, 0o600, dir_fd=self._parent(path))


def _name(path: bytes) -> bytes:
    return os.path.basename(path)


def _remove_at(folder: int, name: bytes) -> None:
    """Remove a name and all that is below, never through a symlink and never on another mount."""
    try:
        os.unlink(name, dir_fd=folder)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    fd = handles.open_below(folder, name, _DIRECTORY)
    try:
        for child in os.listdir(fd):
            _remove_at(fd, os.fsencode(child))
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=folder)
