# SPDX-License-Identifier: Apache-2.0
"""What C does for Python beside the data path: one name, or one file's blocks, at a time."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any


def library() -> tuple[Any, Any]:
    """cffi's two halves of `cext/mirror`; loaded by who needs it."""
    from farmd._mirrorfs import ffi, lib

    return ffi, lib


def excludes(patterns: tuple[str, ...], path: bytes) -> bool:
    """Whether the entry at `path` below the directory, or a directory that it is in, is not replicated."""
    if not patterns:
        return False
    ffi, lib = library()
    return bool(lib.mirror_excludes(_pattern_lines(patterns), ffi.new("char[]", path)))


@lru_cache(maxsize=4)
def _pattern_lines(patterns: tuple[str, ...]) -> Any:
    """As C takes them; a failback asks for every name."""
    return library()[0].new("char[]", b"\n".join(map(os.fsencode, patterns)))


def digest_blocks(fd: int, offset: int, count: int, block_bytes: int) -> bytes:
    """XXH3-128 of up to `count` blocks from `offset` on, 16 bytes each; fewer where the file ends. Raises OSError."""
    ffi, lib = library()
    room = ffi.new("uint8_t[]", 16 * count)
    done = lib.mirror_digest_blocks(fd, offset, block_bytes, count, room)
    if done < 0:
        raise OSError(-done, os.strerror(-done))
    return bytes(ffi.buffer(room, 16 * done))


def punch(fd: int, offset: int, length: int) -> None:
    """Make a hole; the size stays. Raises OSError."""
    _, lib = library()
    code = lib.mirror_punch(fd, offset, length)
    if code < 0:
        raise OSError(-code, os.strerror(-code))
