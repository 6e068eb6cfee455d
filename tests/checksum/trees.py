# SPDX-License-Identifier: Apache-2.0
"""Random trees with everything a file system can hold, random changes to them, and a comparison that is not ours."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections import defaultdict
from pathlib import Path

ODD_NAMES = (b"\xff\xfe", b"new\nline", b" ", b"...", b"-rf", b"\xc3\xa9t\xc3\xa9", b"a" * 255, b"*", b"tab\t")
SIZES = (0, 1, 100, 4096, 65535, 65536, 65537, 200_000, 1 << 20, (1 << 20) + 1, 3_000_000)
MODES = (0o644, 0o600, 0o000, 0o755, 0o4755, 0o2770, 0o444)


class Maker:
    """Builds and changes trees from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def name(self) -> bytes:
        """A name that may be any bytes."""
        if self.random.random() < 0.2:
            return self.random.choice(ODD_NAMES)
        return b"n%d" % self.random.randrange(40)

    def grow(self, root: Path, count: int) -> None:
        """Add `count` things at random places."""
        for _ in range(count):
            self._add(os.path.join(self._folder(os.fsencode(root)), self.name()), os.fsencode(root))

    def change(self, root: Path, count: int) -> None:
        """Change, delete, move or replace `count` things."""
        for _ in range(count):
            everything = _everything(os.fsencode(root))
            if not everything:
                self.grow(root, 3)
                continue
            path = self.random.choice(everything)
            self.random.choice([self._delete, self._replace, self._edit, self._edit, self._meta, self._move])(
                path, os.fsencode(root)
            )

    def _folder(self, root: bytes) -> bytes:
        folders = [root] + [path for path in _everything(root) if stat.S_ISDIR(os.lstat(path).st_mode)]
        return self.random.choice(folders)

    def _add(self, path: bytes, root: bytes) -> None:
        if os.path.lexists(path) or len(path) > 3000:
            return
        kind = self.random.choice(["file"] * 6 + ["dir"] * 3 + ["symlink", "fifo", "device", "link", "sparse"])
        if kind == "file":
            _write(path, self.random.randbytes(self.random.choice(SIZES)))
        elif kind == "dir":
            os.mkdir(path)
        elif kind == "symlink":
            os.symlink(self.random.choice([b"/etc/passwd", b"..", b"nowhere", b"\xff", b"n1"]), path)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, self.random.randrange(3, 9)))
        elif kind == "sparse":
            _sparse(path, self.random)
        else:
            files = [one for one in _everything(root) if stat.S_ISREG(os.lstat(one).st_mode)]
            if files:
                os.link(self.random.choice(files), path)
        if os.path.lexists(path):
            self._meta(path, root)

    def _delete(self, path: bytes, _root: bytes) -> None:
        _remove(path)

    def _replace(self, path: bytes, root: bytes) -> None:
        _remove(path)
        self._add(path, root)

    def _move(self, path: bytes, root: bytes) -> None:
        to = os.path.join(os.path.dirname(path), self.name())
        if not os.path.lexists(to):
            os.rename(path, to)

    def _edit(self, path: bytes, root: bytes) -> None:
        """Some blocks of a file: in place, longer or shorter, often with its old time and size."""
        info = os.lstat(path)
        if not stat.S_ISREG(info.st_mode):
            self._meta(path, root)
            return
        with open(path, "r+b") as file:
            if info.st_size and self.random.random() < 0.7:
                file.seek(self.random.randrange(info.st_size))
                file.write(self.random.randbytes(min(100, info.st_size)))
                file.truncate(info.st_size)
            else:
                file.truncate(self.random.choice(SIZES))
        if self.random.random() < 0.5:
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))

    def _meta(self, path: bytes, _root: bytes) -> None:
        is_link = os.path.islink(path)
        os.chown(path, self.random.choice([0, 33, 1000]), self.random.choice([0, 33]), follow_symlinks=False)
        if not is_link:
            os.chmod(path, self.random.choice(MODES))
        info = os.lstat(path)
        if (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)) and self.random.random() < 0.4:
            os.setxattr(path, b"user.k%d" % self.random.randrange(3), self.random.randbytes(self.random.randrange(300)))
        times = (0, self.random.randrange(10**18, 17 * 10**17))
        os.utime(path, ns=times, follow_symlinks=False)


def _write(path: bytes, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _sparse(path: bytes, chance: random.Random) -> None:
    with open(path, "wb") as file:
        file.truncate(chance.randrange(20_000_000, 40_000_000))
        for _ in range(chance.randrange(4)):
            file.seek(chance.randrange(20_000_000))
            file.write(chance.randbytes(70_000))


def _remove(path: bytes) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _everything(root: bytes) -> list[bytes]:
    return sorted(os.path.join(folder, name) for folder, dirs, files in os.walk(root) for name in dirs + files)


def _facts(path: bytes) -> dict[str, object]:
    info = os.lstat(path)
    facts: dict[str, object] = {
        "mode": oct(info.st_mode),
        "owner": (info.st_uid, info.st_gid),
        "mtime": info.st_mtime_ns,
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False) for name in _xattrs(path)},
    }
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            facts["data"] = file.read()
    elif stat.S_ISLNK(info.st_mode):
        facts["text"] = os.readlink(path)
    elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        facts["device"] = info.st_rdev
    return facts


def _xattrs(path: bytes) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def _link_groups(root: bytes) -> set[frozenset[bytes]]:
    groups = defaultdict(set)
    for path in _everything(root):
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode):
            groups[info.st_ino].add(os.path.relpath(path, root))
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two trees, read with Python's own calls; empty if they are equal."""
    first, second = os.fsencode(one), os.fsencode(other)
    names = {os.path.relpath(path, first) for path in _everything(first)} | {b"."}
    others = {os.path.relpath(path, second) for path in _everything(second)} | {b"."}
    found = [f"only here: {name!r}" for name in names - others] + [f"only there: {name!r}" for name in others - names]
    for name in names & others:
        a, b = _facts(os.path.join(first, name)), _facts(os.path.join(second, name))
        found += [f"{name!r}: {key}" for key in a.keys() | b.keys() if a.get(key) != b.get(key)]
    if _link_groups(first) != _link_groups(second):
        found.append("hard links")
    return found
