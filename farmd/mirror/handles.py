# SPDX-License-Identifier: Apache-2.0
"""Files below one directory by handle and by name: what Python's `os` does not know of Linux (man 2).

A handle is four bytes of type and then what the file system gave. Names are bytes, relative to the directory.
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
_CONFINED = 0x01 | 0x02 | 0x04 | 0x08  # NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_HOW = struct.Struct("=QQQ")

_libc: Any = ctypes.CDLL(None, use_errno=True)


def pack(kind: int, raw: bytes) -> bytes:
    """A handle as one string of bytes."""
    return _TYPE.pack(kind) + raw


def of(fd: int) -> bytes:
    """The handle of an open file or O_PATH descriptor. Raises OSError."""
    room = ctypes.create_string_buffer(_HEAD.pack(_ROOM, 0) + bytes(_ROOM))
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", room, ctypes.byref(mount), _AT_EMPTY_PATH):
        raise _error()
    size, kind = _HEAD.unpack_from(room.raw)
    return pack(kind, room.raw[_HEAD.size : _HEAD.size + size])


def open_by(root: int, handle: bytes, flags: int) -> int:
    """Open the inode on the file system of `root`. Raises OSError: ESTALE if it is gone."""
    raw = handle[_TYPE.size :]
    wanted = _HEAD.pack(len(raw), _TYPE.unpack_from(handle)[0]) + raw
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
    how = _HOW.pack(flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, _CONFINED)
    while True:
        fd: int = _libc.syscall(_NR_OPENAT2, root, path or b".", how, _HOW.size)
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
