# SPDX-License-Identifier: Apache-2.0
"""What stands at the paths of the replicated directories: dead mounts of an earlier run, what is below, who is in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from farmd.mirror import handles
from farmd.mirror.datapath import compose
from farmd.mirror.spread import Mount, remove_dead, top
from farmd.model import mirrorfile
from farmd.model.errors import FarmError, Refused
from farmd.model.mirrorfile import MirrorConfig

POINT = "mount"
"""In the node's folder: where the mirror's own file system is mounted if users see it elsewhere."""


def point(config: MirrorConfig, folder: Path) -> Path:
    """Where the data path mounts: at the directory, or in the folder, from where its directories are spread."""
    return folder / POINT if config.several or config.image_bytes else Path(config.directory)


def clear(config: MirrorConfig, folder: Path) -> None:
    """Take away what earlier runs left mounted. Only with the node's lock held."""
    for path in {*config.paths, point(config, folder)}:
        remove_dead(path)


def open_root(config: MirrorConfig, folder: Path) -> int:
    """What is below the mounts: the directory, or a root over several of them (`cext/mirror/compose.c`).

    Raises FarmError: a directory that is not there, is that of another mirror, or has lost its mount.
    """
    check_own(config)
    if (clash := mirrorfile.clash(config, folder.parent)) is not None:
        raise clash
    opened: list[int] = []
    try:
        for path in config.paths:
            opened.append(_open(path))
        point(config, folder).mkdir(mode=0o700, exist_ok=True)
        return compose([each.name for each in config.directories], opened) if config.several else os.dup(opened[0])
    finally:
        for fd in opened:
            os.close(fd)


@contextlib.contextmanager
def opened(config: MirrorConfig, root: int) -> Iterator[dict[str, int]]:
    """The directories below `root`, by path. Raises OSError."""
    names = [os.fsencode(each.name) or b"." for each in config.directories]
    with contextlib.ExitStack() as stack:
        found = {}
        for each, name in zip(config.directories, names, strict=True):
            found[each.path] = handles.open_part(root, name)
            stack.callback(os.close, found[each.path])
        yield found


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FarmError(str(path), f"it cannot be opened ({error.strerror})", "Make the directory") from error


def check_own(config: MirrorConfig) -> None:
    """Raises Refused if a directory was a mount point of its own when the mirror was created, and is none now.

    What lies below would be taken for the copy: an empty directory, and the peer's files would go.
    """
    for each in config.directories:
        if each.own_mount and top(Path(each.path)) == Mount():
            cause = "it was a mount point when the mirror was created, and nothing is mounted there now"
            raise Refused(each.path, cause, "Mount its file system, then start again")


def unseen(mounted: Mapping[str, str]) -> list[str]:
    """What this process does not see of what a node has `mounted`, devices by path: writes from here are lost to it.

    A node that was started in a mount namespace of its own (`ip netns exec`, `unshare -m`, a unit with PrivateMounts)
    keeps its mounts to itself.
    """
    return [
        f"{path} is not the mirror's here: the node runs in another mount namespace, and what is written from here is"
        " lost to it. Stop the node and start it from here"
        for path, device in mounted.items()
        if top(Path(path)).device != device
    ]


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
