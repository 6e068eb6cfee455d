# SPDX-License-Identifier: Apache-2.0
"""Everything about two directory trees that users can see, compared."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def _walk(root: bytes, skip: Callable[[bytes], bool]) -> Iterator[bytes]:
    yield b"."
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            relative = os.path.relpath(os.path.join(folder, name), root)
            if not skip(relative):
                yield relative


def _digest(path: bytes) -> str:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOATIME)) as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _nothing(_: bytes) -> bool:
    return False


def describe(
    root: Path, *, times: bool = True, skip: Callable[[bytes], bool] = _nothing
) -> dict[bytes, dict[str, Any]]:
    """Every path below `root`: type, mode, owner, links, size, contents, target, xattrs (ACLs are some), mtime."""
    base = os.fsencode(root)
    found: dict[bytes, dict[str, Any]] = {}
    groups: dict[int, int] = {}
    for relative in sorted(_walk(base, skip)):
        path = os.path.join(base, relative)
        status = os.lstat(path)
        about: dict[str, Any] = {
            "mode": oct(status.st_mode),
            "owner": (status.st_uid, status.st_gid),
            # A directory is linked from the directories in it, also from those to skip.
            "links": status.st_nlink if skip is _nothing or not stat.S_ISDIR(status.st_mode) else 0,
            "rdev": status.st_rdev,
            "xattrs": {name: os.getxattr(path, name, follow_symlinks=False) for name in _xattrs(path)},
        }
        if times:
            about["mtime"] = status.st_mtime_ns
        if stat.S_ISREG(status.st_mode):
            about |= {"size": status.st_size, "contents": _digest(path)}
        if stat.S_ISLNK(status.st_mode):
            about["target"] = os.readlink(path)
        if not stat.S_ISDIR(status.st_mode):
            # Which names are the same file: the first of them, in order, stands for all.
            about["same_as"] = groups.setdefault(status.st_ino, len(groups))
        found[relative] = about
    return found


def _xattrs(path: bytes) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def differences(left: Path, right: Path, *, times: bool = True, skip: Callable[[bytes], bool] = _nothing) -> list[str]:
    """One line for each path that differs, but for those to skip; empty if the trees are equal."""
    one, two = describe(left, times=times, skip=skip), describe(right, times=times, skip=skip)
    lines = []
    for path in sorted(one.keys() | two.keys()):
        if path not in one or path not in two:
            lines.append(f"{path!r} only in {left if path in one else right}")
            continue
        for key in one[path].keys() | two[path].keys():
            if one[path].get(key) != two[path].get(key):
                lines.append(f"{path!r} {key}: {one[path].get(key)} != {two[path].get(key)}")
    return lines
