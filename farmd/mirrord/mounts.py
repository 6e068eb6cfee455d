# SPDX-License-Identifier: Apache-2.0
"""What stands at the replicated directory's path: dead mounts of an earlier run, and who uses a live one."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from farmd.model.errors import Refused
from farmd.model.mirrorfile import MirrorConfig

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
    return top(directory)[0] == FILE_SYSTEM


def top(directory: Path) -> tuple[str, str]:
    """Type and source of what is mounted at `directory`, the uppermost; empty if nothing is."""
    wanted = os.fsencode(directory)
    found = ("", "")
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split()
        kind, source = fields[fields.index(b"-") + 1 :][:2]
        if fields[4].decode("unicode_escape").encode("latin-1") == wanted:
            found = (os.fsdecode(kind), os.fsdecode(source))
    return found


def check_own(config: MirrorConfig) -> None:
    """Raises Refused if the directory was a mount point of its own when the mirror was created, and is none now.

    What lies below would be taken for the copy: an empty directory, and the peer's files would go.
    """
    if config.own_mount and top(Path(config.directory)) == ("", ""):
        cause = "it was a mount point when the mirror was created, and nothing is mounted there now"
        raise Refused(config.directory, cause, "Mount its file system, then start again")


def users(directory: Path) -> list[str]:
    """Programs with a file or their working directory below `directory`, as "name (pid N)"; ten at most."""
    found: list[str] = []
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
