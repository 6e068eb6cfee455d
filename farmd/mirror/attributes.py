# SPDX-License-Identifier: Apache-2.0
"""What an inode has beside its contents: mode, owner, modification time, extended attributes (and with them ACLs).

Descriptors may be O_PATH; the link in /proc leads to the inode itself, also to a symlink.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

Attributes = dict[str, Any]


def read(fd: int, st: os.stat_result) -> Attributes:
    """JSON-ready. Raises OSError."""
    found: Attributes = {"m": st.st_mode & 0o7777, "u": st.st_uid, "g": st.st_gid, "t": st.st_mtime_ns}
    extended = _extended(fd, st.st_mode)
    if extended:
        found["x"] = extended
    return found


def apply(fd: int, wanted: Attributes) -> None:
    """Make them so, times last. Raises OSError."""
    st = os.fstat(fd)
    path = _path(fd)
    if (st.st_uid, st.st_gid) != (wanted["u"], wanted["g"]):
        os.chown(path, wanted["u"], wanted["g"])
    _apply_extended(fd, st.st_mode, wanted.get("x", {}))
    if not stat.S_ISLNK(st.st_mode) and os.fstat(fd).st_mode & 0o7777 != wanted["m"]:
        os.chmod(path, wanted["m"] & 0o7777)
    os.utime(path, ns=(st.st_atime_ns, int(wanted["t"])))


def _path(fd: int) -> bytes:
    return b"/proc/self/fd/%d" % fd


def _extended(fd: int, mode: int) -> dict[str, str]:
    path = _path(fd)
    try:
        names = os.listxattr(path)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
            return {}
        raise
    return {os.fsencode(name).hex(): os.getxattr(path, name).hex() for name in names}


def _apply_extended(fd: int, mode: int, wanted: dict[str, str]) -> None:
    path, have = _path(fd), _extended(fd, mode)
    for name in have.keys() - wanted.keys():
        os.removexattr(path, bytes.fromhex(name))
    for name, value in wanted.items():
        if have.get(name) != value:
            os.setxattr(path, bytes.fromhex(name), bytes.fromhex(value))
