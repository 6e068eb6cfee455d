# SPDX-License-Identifier: Apache-2.0
"""Where the inodes of a log are now: from file handles to paths below one directory.

Directories are always found. A file is found under the name that the log has of it, or under one that the kernel
knows; whichever it is, the inode there is compared with the one that was meant.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from farmd.mirror import handles

Names = dict[bytes, tuple[bytes, bytes]]
_NOT_HERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)
"""There is no such path any more, or it leads onto another mount."""


class Unfindable(Exception):
    """An inode that has a name, and none that is known."""


@dataclass(frozen=True, slots=True)
class Found:
    """An inode, open as O_PATH; close `fd`."""

    path: bytes
    fd: int
    st: os.stat_result


class Places:
    """Good for one round: directories are looked up once."""

    def __init__(self, root: int, names: Names) -> None:
        self._root, self._names = root, names
        self._prefix = handles.path_of(root).rstrip(b"/")
        """Empty for a root over several directories, which is mounted nowhere."""
        self._folders: dict[bytes, bytes | None] = {}

    def folder(self, handle: bytes) -> bytes | None:
        """The path of a directory; None if it is gone. Raises Unfindable if it is not below ours."""
        if handle not in self._folders:
            self._folders[handle] = self._find_folder(handle)
        return self._folders[handle]

    def inode(self, handle: bytes) -> Found | None:
        """None if it is gone. Raises Unfindable."""
        if (fd := _open(self._root, handle)) is None:
            return None
        try:
            st = os.fstat(fd)
            if st.st_nlink == 0:
                os.close(fd)
                return None
            return Found(self._path(handle, fd, st), fd, st)
        except BaseException:
            os.close(fd)
            raise

    def named(self, handle: bytes, st: os.stat_result) -> bytes | None:
        """The path that the log has of a file, if it is still one of its names."""
        if handle not in self._names:
            return None
        parent, name = self._names[handle]
        folder = self.folder(parent)
        path = None if folder is None else join(folder, name)
        return path if path is not None and self._is(path, st) else None

    def _path(self, handle: bytes, fd: int, st: os.stat_result) -> bytes:
        path = self.named(handle, st)
        if path is None:
            path = self._below(handles.path_of(fd))
        if path is None or not self._is(path, st):
            raise Unfindable(f"inode {st.st_ino} has a name that is not known")
        return path

    def _find_folder(self, handle: bytes) -> bytes | None:
        try:
            fd = handles.open_by(self._root, handle, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        try:
            st = os.fstat(fd)
            if st.st_nlink == 0:
                return None
            path = self._below(handles.path_of(fd))
            if path is None or not self._is(path, st):
                raise Unfindable(f"directory {st.st_ino} is not below the replicated one")
            return path
        finally:
            os.close(fd)

    def _below(self, path: bytes) -> bytes | None:
        if path == (self._prefix or b"/"):
            return b""
        return path[len(self._prefix) + 1 :] if path.startswith(self._prefix + b"/") else None

    def _is(self, path: bytes, st: os.stat_result) -> bool:
        try:
            fd = handles.open_below(self._root, path, os.O_PATH)
        except OSError:
            return False
        try:
            there = os.fstat(fd)
            return (there.st_dev, there.st_ino) == (st.st_dev, st.st_ino)
        finally:
            os.close(fd)


def names_of(root: int, wanted: Collection[bytes], skips: Callable[[bytes], bool]) -> tuple[set[bytes], set[bytes]]:
    """All paths of these inodes, and those of them that are there and have none.

    Found by reading every directory: no index leads from a file to its names. `skips` says below which paths nobody
    looks. Raises OSError.
    """
    there = {handle: st.st_ino for handle in wanted if (st := _stat(root, handle)) is not None}
    numbers, missing = set(there.values()), set(there)
    paths: set[bytes] = set()
    for path in _numbered(root, numbers, skips) if numbers else ():
        try:
            fd = handles.open_below(root, path, os.O_PATH)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            continue
        try:
            handle = handles.of(fd, handles.part_of(root, path))
        finally:
            os.close(fd)
        if handle in wanted:
            paths.add(path)
            missing.discard(handle)
    return paths, {handle for handle in missing if _stat(root, handle) is not None}


def _open(root: int, handle: bytes) -> int | None:
    """None if the inode is gone."""
    try:
        return handles.open_by(root, handle, os.O_PATH)
    except OSError as error:
        if error.errno in (errno.ESTALE, errno.ENOENT):
            return None
        raise


def _stat(root: int, handle: bytes) -> os.stat_result | None:
    """None if the inode is gone, or has no name any more."""
    if (fd := _open(root, handle)) is None:
        return None
    try:
        st = os.fstat(fd)
        return st if st.st_nlink else None
    finally:
        os.close(fd)


def _numbered(root: int, numbers: Collection[int], skips: Callable[[bytes], bool]) -> Iterator[bytes]:
    """Every path whose inode has one of the numbers; other mounts are not entered."""
    folders = [b""]
    while folders:
        folder = folders.pop()
        try:
            fd = handles.open_below(root, folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            continue
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if is_folder or entry.inode() in numbers:
                        path = join(folder, os.fsencode(entry.name))
                        if skips(path):
                            continue
                        if is_folder:
                            folders.append(path)
                        else:
                            yield path
        finally:
            os.close(fd)


def join(folder: bytes, name: bytes) -> bytes:
    """A path below the directory; the directory itself is empty."""
    return folder + b"/" + name if folder else name
