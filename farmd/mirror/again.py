# SPDX-License-Identifier: Apache-2.0
"""Which names a second look needs, to see whether what a comparison found still holds."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from farmd.mirror.checksum import Finding, Kind

_WHOLE = frozenset({Kind.MISSING, Kind.TYPE, Kind.CHANGING, Kind.UNREADABLE})
"""Found at a directory, these say nothing of what is below it."""


def look_again(findings: Iterable[Finding], root_fd: int) -> tuple[bytes, ...]:
    """What a run must look at, as `Options.only`, alike on both ends. `root_fd` is the source's directory.

    A path; with a slash at its end all below it as well; with `/.` the attributes of that directory.
    """
    paths = set[bytes]()
    for one in findings:
        paths.add(one.path)
        if one.kind in _WHOLE:
            paths.add(one.path + b"/")
        elif one.kind is Kind.META and one.path and _is_directory(root_fd, one.path):
            paths.add(one.path + b"/.")
    return tuple(sorted(paths))


def _is_directory(root_fd: int, path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path, dir_fd=root_fd, follow_symlinks=False).st_mode)
    except OSError:
        return False
