# SPDX-License-Identifier: Apache-2.0
"""Whether a directory is still the one that a node's record is about.

The record says "this copy is whole" of what was in the directory when it was written. A disk that was replaced, a mount
that is another one, a directory that was made anew: each would be taken for that copy, and its emptiness for the
mirror's content. A file system gives every directory an inode number and a time of birth that nothing can set, so the
two together tell it from any later one. They survive reboots and renames; restoring from a backup does not keep them.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

from farmd.mirrord.disk import replace_file
from farmd.model.errors import FarmError, Refused

FILE = "directories"
_EMPTY_PATH, _INO, _BTIME = 0x1000, 0x100, 0x800
_STATX_BYTES, _INODE_AT, _BIRTH_AT = 256, 32, 80


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a directory from every other one of its path."""

    inode: int
    born_ns: int
    """Since 1970; 0 where the file system keeps no time of birth."""


def check(folder: Path, directories: Mapping[str, int], *, is_part: bool) -> None:
    """Compare `directories`, open descriptors by path, with what `folder` remembers; remember what is new.

    `is_part`: the node's record says something of their content. Raises Refused if one was replaced since, and
    FarmError if what was remembered cannot be read.
    """
    path = folder / FILE
    found = [identity(fd) for fd in directories.values()]
    known = _read(path) if is_part else []
    for directory, now, before in zip(directories, found, known, strict=False):
        if now != before:
            raise _replaced(directory, folder, now, before)
    if found != known:
        replace_file(path, json.dumps([astuple(one) for one in found]).encode())


def identity(fd: int) -> Identity:
    """By statx(2), which Python does not have. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if libc.statx(fd, b"", _EMPTY_PATH, _INO | _BTIME, answer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    (told,) = struct.unpack_from("=I", answer)
    (inode,) = struct.unpack_from("=Q", answer, _INODE_AT)
    seconds, nanoseconds = struct.unpack_from("=qI", answer, _BIRTH_AT)
    return Identity(inode, seconds * 1_000_000_000 + nanoseconds if told & _BTIME else 0)


def _read(path: Path) -> list[Identity]:
    try:
        return [Identity(int(inode), int(born_ns)) for inode, born_ns in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []  # the node is older than this file
    except (OSError, ValueError, TypeError) as error:
        step = "Find out what happened to that disk; remove the file if the directory is the one that it always was"
        raise FarmError(str(path), f"it cannot be read: {error}", step) from error


def _replaced(directory: str, folder: Path, now: Identity, before: Identity) -> Refused:
    cause = (
        "it is not the directory that this node's copy was in"
        f" (inode {now.inode}, made {_when(now)}; that one: inode {before.inode}, made {_when(before)})"
    )
    step = (
        f"Mount or bring back that one. If it is lost: move {folder} away, create the mirror on this node again with"
        " --id, and start it; the other node then sends everything"
    )
    return Refused(directory, cause, step)


def _when(one: Identity) -> str:
    return f"{datetime.fromtimestamp(one.born_ns // 1_000_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
