# SPDX-License-Identifier: Apache-2.0
"""What stands at the replicated directory's path: dead mounts of an earlier run, and who uses a live one."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

FILE_SYSTEM = "fuse.farmd-mirror"
_DETACH = 2


def remove_dead(directory: Path) -> int:
    """Take away what earlier runs left mounted at `directory`; returns how many. Only with the node's lock held."""
    libc = ctypes.CDLL(None, use_errno=True)
    count = 0
    while is_ours(directory) and libc.umount2(os.fsencode(directory), _DETACH) == 0:
        count += 1
    return count


def is_ours(directory: Path) -> bool:
    """Whether a mirror is mounted at `directory`."""
    wanted = os.fsencode(directory)
    top = b""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split()
        kind = fields[fields.index(b"-") + 1]
        if fields[4].decode("unicode_escape").encode("latin-1") == wanted:
            top = kind
    return top == FILE_SYSTEM.encode()


def users(directory: Path) -> list[str]:
    """Programs with a file or their working directory below `directory`, as "name (pid N)"; ten at most."""
    found: list[str] = []
    if not is_ours(directory):
        return found
    # Our own processes hold the directory below the mount, which has the same path and another device.
    prefix, device = os.fsencode(directory), os.stat(directory).st_dev
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _uses(process, prefix, device):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            found.append(f"{name} (pid {process.name})")
    return found[:10]


def _uses(process: Path, prefix: bytes, device: int) -> bool:
    links = [process / "cwd"]
    try:
        links += list((process / "fd").iterdir())
    except OSError:
        return False
    for link in links:
        try:
            target = os.readlink(os.fsencode(link))
            if (target == prefix or target.startswith(prefix + b"/")) and os.stat(link).st_dev == device:
                return True
        except OSError:
            continue
    return False
