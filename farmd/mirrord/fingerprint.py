# SPDX-License-Identifier: Apache-2.0
"""What one name below a directory holds, in one digest: to compare few names on both nodes while nothing moves."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable

from farmd.mirror.datapath import excludes

GONE = "gone"
_CHUNK = 1 << 20


def of(root: int, path: bytes, excluded: tuple[str, ...] = ()) -> str:
    """The digest of type, owner, mode, time, size, attributes and contents; `gone` if there is no such name.
    A directory's contents are its names, without those that `excluded` patterns name.

    No symbolic link is followed on the way, so the path cannot lead out of `root`. Raises OSError.
    """
    try:
        fd = _open(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return GONE
    try:
        return _digest(fd, path, excluded)
    finally:
        os.close(fd)


def of_all(root: int, paths: Iterable[bytes], excluded: tuple[str, ...] = ()) -> list[str]:
    """One digest a path; "error: ..." for what cannot be read."""
    found = []
    for path in paths:
        try:
            found.append(of(root, path, excluded))
        except OSError as error:
            found.append(f"error: {error.strerror}")
    return found


def _open(root: int, path: bytes) -> int:
    fd = os.dup(root)
    for part in path.split(b"/") if path else ():
        if part in (b"", b".", b".."):
            os.close(fd)
            raise FileNotFoundError
        try:
            inner = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _digest(fd: int, path: bytes, excluded: tuple[str, ...]) -> str:
    status = os.fstat(fd)
    here = f"/proc/self/fd/{fd}"
    digest = hashlib.blake2b(digest_size=16)
    folder = stat.S_ISDIR(status.st_mode)
    size = 0 if folder else status.st_size
    digest.update(f"{status.st_mode} {status.st_uid} {status.st_gid} {status.st_mtime_ns} {size}".encode())
    if folder:
        for name in sorted(os.listdir(os.fsencode(here))):
            if not excludes(excluded, path + b"/" * bool(path) + name):
                digest.update(name + b"\0")
    elif stat.S_ISLNK(status.st_mode):
        digest.update(os.readlink(b"", dir_fd=fd))
        return digest.hexdigest()
    elif not stat.S_ISREG(status.st_mode):
        digest.update(str(status.st_rdev).encode())
        return digest.hexdigest()
    for attribute in sorted(os.listxattr(here)):
        digest.update(os.fsencode(attribute) + b"\0" + os.getxattr(here, attribute))
    if not folder:
        with open(here, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
