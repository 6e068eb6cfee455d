# SPDX-License-Identifier: Apache-2.0
"""The directories of one mounted tree at the places where users see them: bind mounts, all of them or none.

    MOUNT_POINT/data --- bind mount ---> /srv/pg/data
    MOUNT_POINT/wal  --- bind mount ---> /ssd/pg/wal

They keep the file system alive: it ends when the last of them is gone. Renames and links from one to another answer
EXDEV, as between file systems, because the kernel refuses both from one mount to another.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any, NamedTuple

from farmd.model.errors import KernelError

FILE_SYSTEM = "fuse.farmd-mirror"
_DETACH, _EXPIRE, _NOFOLLOW = 2, 4, 8
_BIND = 4096

_libc: Any = ctypes.CDLL(None, use_errno=True)


class Spread:
    """The bind mounts of one tree; without any, nothing here does anything."""

    def __init__(self, mount_point: Path, places: tuple[tuple[str, Path], ...]) -> None:
        self._sources = {path: mount_point / name for name, path in places}

    def put_up(self) -> None:
        """Let users in, everywhere. Raises KernelError: then nowhere."""
        done: list[Path] = []
        for path, source in self._sources.items():
            try:
                _bind(source, path)
            except OSError as error:
                for each in done:
                    _unmount(each, _DETACH)
                step = "See that the directory is there, and with `findmnt` what is mounted"
                raise KernelError(str(path), f"it cannot be mounted ({error.strerror})", step) from error
            done.append(path)

    def take_down(self) -> str:
        """Take all of them away, or none if a program is in: then the directory that it is in."""
        # The kernel marks a mount that nobody uses and takes away one that is still marked: so all are asked first.
        gone: list[Path] = []
        for asked in (False, True):
            for path in self._sources:
                if path in gone or not is_ours(path):
                    continue
                if not asked:
                    _unmark(path)
                code = _unmount(path, _EXPIRE)
                if code == 0:
                    gone.append(path)
                elif asked or code != errno.EAGAIN:
                    for each in gone:  # somebody came in between
                        _bind(self._sources[each], each)
                    return str(path)
        return ""

    def drop(self) -> None:
        """At once; whoever is in has a dead file system."""
        for path in self._sources:
            remove_dead(path)


def remove_dead(directory: Path) -> int:
    """Take away what mirrors left mounted at `directory`; returns how many. Never if it may be in use by a live one."""
    count = 0
    while is_ours(directory) and _unmount(directory, _DETACH) == 0:
        count += 1
    return count


def is_ours(directory: Path) -> bool:
    """Whether a mirror is mounted at `directory`."""
    return top(directory).kind == FILE_SYSTEM


class Mount(NamedTuple):
    """What is mounted somewhere, as this process sees it; empty texts where nothing is."""

    kind: str = ""
    source: str = ""
    device: str = ""
    """Of the whole machine, as `0:55`: the same file system has the same in every mount namespace."""


def top(directory: Path) -> Mount:
    """What is mounted at `directory`, the uppermost. Asks no file system, so it never waits for one."""
    wanted = os.fsencode(directory)
    found = Mount()
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split()
        if fields[4].decode("unicode_escape").encode("latin-1") == wanted:
            kind, source = fields[fields.index(b"-") + 1 :][:2]
            found = Mount(os.fsdecode(kind), os.fsdecode(source), os.fsdecode(fields[2]))
    return found


def _bind(source: Path, directory: Path) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(directory), None, _BIND, None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _unmark(directory: Path) -> None:
    """Any use takes the mark away that an earlier try has left."""
    os.close(os.open(directory, os.O_PATH | os.O_CLOEXEC))


def _unmount(directory: Path, flags: int) -> int:
    """0 or the errno."""
    return ctypes.get_errno() if _libc.umount2(os.fsencode(directory), flags | _NOFOLLOW) else 0
