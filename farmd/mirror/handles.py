# SPDX-License-Identifier: Apache-2.0
"""Files below one directory by handle and by name: what Python's `os` does not know of Linux (man 2).

A handle is four bytes of type and then what the file system gave. Names are bytes, relative to the directory.

The directory may be a root over several (`cext/parts.h`): a path then begins with the name of its part, and the upper
half of a handle's type is the part's number. Part 0 is the root itself, or all of an only directory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from typing import Any

_HEAD = struct.Struct("=Ii")
_TYPE = struct.Struct("<I")
_ROOM = 128
_TRIES = 20
_NR_OPENAT2 = 437
_AT_EMPTY_PATH = 0x1000
_NO_XDEV = 0x01
_CONFINED = _NO_XDEV | 0x02 | 0x04 | 0x08  # and NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_HOW = struct.Struct("=QQQ")
_PART_SHIFT = 16
_STATFS_ROOM, _FLAGS_AT = 256, 80
_TMPFS, _READ_ONLY = 0x01021994, 1

_libc: Any = ctypes.CDLL(None, use_errno=True)


def pack(kind: int, raw: bytes) -> bytes:
    """A handle as one string of bytes."""
    return _TYPE.pack(kind) + raw


def has_parts(root: int) -> bool:
    """Whether this is a root over several directories: a tmpfs that nobody can write. Raises OSError."""
    room = ctypes.create_string_buffer(_STATFS_ROOM)
    if _libc.fstatfs(root, room):
        raise _error()
    kind, flags = (struct.unpack_from("=q", room, at)[0] for at in (0, _FLAGS_AT))
    return bool(kind == _TMPFS and flags & _READ_ONLY)


def parts(root: int) -> list[bytes]:
    """The names of its directories; the first is part 1. empty if it is not such a root. Raises OSError."""
    return sorted(map(os.fsencode, os.listdir(root))) if has_parts(root) else []


def part_of(root: int, path: bytes) -> int:
    """The number of the part that `path` is in. Raises OSError."""
    name, names = path.partition(b"/")[0], parts(root)
    return names.index(name) + 1 if name in names else 0


def open_part(root: int, name: bytes) -> int:
    """A directory of such a root: the one step that may lead onto another mount. Raises OSError."""
    return _openat2(root, name, os.O_RDONLY | os.O_DIRECTORY, 0, _CONFINED & ~_NO_XDEV)


def of(fd: int, part: int = 0) -> bytes:
    """The handle of an open file or O_PATH descriptor in `part`. Raises OSError."""
    room = ctypes.create_string_buffer(_HEAD.pack(_ROOM, 0) + bytes(_ROOM))
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", room, ctypes.byref(mount), _AT_EMPTY_PATH):
        raise _error()
    size, kind = _HEAD.unpack_from(room.raw)
    return pack(kind | part << _PART_SHIFT, room.raw[_HEAD.size : _HEAD.size + size])


def open_by(root: int, handle: bytes, flags: int) -> int:
    """Open the inode on the file system of `root`, or of its part. Raises OSError: ESTALE if it is gone."""
    kind = _TYPE.unpack_from(handle)[0]
    part = kind >> _PART_SHIFT
    if not part:
        return _open_by(root, kind, handle[_TYPE.size :], flags)
    names = parts(root)
    if part > len(names):
        raise OSError(errno.ESTALE, "the mirror has no such directory")
    mount = open_part(root, names[part - 1])
    try:
        return _open_by(mount, kind & (1 << _PART_SHIFT) - 1, handle[_TYPE.size :], flags)
    finally:
        os.close(mount)


def _open_by(root: int, kind: int, raw: bytes, flags: int) -> int:
    wanted = _HEAD.pack(len(raw), kind) + raw
    for patience in range(_TRIES):
        fd: int = _libc.open_by_handle_at(root, wanted, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
        if fd >= 0:
            return fd
        # ENOMEM is also what the kernel says while another inode of this number is being made (iget_locked).
        if ctypes.get_errno() != errno.ENOMEM:
            break
        time.sleep(0.0005 * patience)
    raise _error()


def open_below(root: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open `path` below `root`, never through a symlink, never out of it or onto another mount. Raises OSError."""
    try:
        return _openat2(root, path or b".", flags, mode, _CONFINED)
    except OSError as error:
        if error.errno != errno.EXDEV or not has_parts(root):
            raise
    name, _, rest = path.partition(b"/")
    part = open_part(root, name)
    try:
        return _openat2(part, rest or b".", flags, mode, _CONFINED)
    finally:
        os.close(part)


def _openat2(root: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    how = _HOW.pack(flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, resolve)
    while True:
        fd: int = _libc.syscall(_NR_OPENAT2, root, path, how, _HOW.size)
        if fd >= 0:
            return fd
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            raise _error()


def path_of(fd: int) -> bytes:
    """Where the kernel finds an open inode now; only a directory's answer is always right."""
    return os.readlink(b"/proc/self/fd/%d" % fd)


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
