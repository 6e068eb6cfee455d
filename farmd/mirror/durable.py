# SPDX-License-Identifier: Apache-2.0
"""On the disk before the call returns: what a power loss must not take (man 2 fsync, syncfs, pwrite)."""

from __future__ import annotations

import os
from pathlib import Path

from farmd.mirror import handles


def sync_file_system(fd: int) -> None:
    """syncfs(2): what was written to the file system of `fd`, or to those of its parts, is durable. Raises OSError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    for name in handles.parts(fd) or [b"."]:
        part = handles.open_part(fd, name)
        try:
            if libc.syncfs(part):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        finally:
            os.close(part)


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """pwrite(2) until all of it is written; durable only if `fd` is (O_DSYNC). Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
