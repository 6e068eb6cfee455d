# SPDX-License-Identifier: Apache-2.0
"""Random file operations from a seed: the same sequence on any directory, with every result and errno."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import random
import stat
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mirror.pair import Pair
from tests.mirror.trees import differences

FOLDERS = [b"", b"sub", b"sub/deep", b"other", b"\xff\xfe raw"]
NAMES = [b"a", b"b", b"c", b"d e", b"new\nline", b"\x80\x81", b"n" * 255, b"sub", b"deep", b"other", b"\xff\xfe raw"]
USERS = [(0, 0), (1000, 1000), (1001, 100)]
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
FALLOC_KEEP, FALLOC_PUNCH, FALLOC_ZERO = 1, 2, 16
MAX_SIZE = 300_000

Plan = tuple[str, tuple[Any, ...], tuple[int, int]]

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(code: int) -> int:
    if code < 0:
        raise OSError(ctypes.get_errno(), "")
    return code


def name_fd(fd: int, path: bytes) -> None:
    """Give the open file a name. Not `os.link`: that does not follow the link in /proc, whatever it is told."""
    follow = 0x400
    _checked(_libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, path, follow))


class Planner:
    """Draws operations; knows nothing of what became of them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def draw(self) -> Plan:
        """The next operation: its name, its arguments, who does it."""
        pick = self._random.choice
        kind = pick(sorted(_ARGUMENTS))
        user = USERS[0] if self._random.random() < 0.75 else pick(USERS)
        return kind, tuple(self._argument(name) for name in _ARGUMENTS[kind]), user

    def _argument(self, name: str) -> Any:
        drawn: dict[str, Callable[[], Any]] = {
            "path": lambda: self._path(),
            "fd": lambda: self._random.randrange(6),
            "offset": lambda: self._random.choice([0, 1, 4095, 4096, 65536, self._random.randrange(MAX_SIZE)]),
            "size": lambda: self._random.choice([0, 1, 100, 4096, 70_000, self._random.randrange(100_000)]),
            "data": lambda: self._random.randbytes(self._random.choice([1, 10, 4096, 5000, 140_000])),
            "mode": lambda: self._random.choice([0o644, 0o600, 0o755, 0o777, 0o4755, 0o2755, 0o6777, 0o1777, 0o2770]),
            "umask": lambda: self._random.choice([0o022, 0, 0o077]),
            "id": lambda: self._random.choice([0, 100, 1000, 1001]),
            "flags": lambda: self._flags(),
            "falloc": lambda: self._random.choice(
                [0, FALLOC_KEEP, FALLOC_PUNCH | FALLOC_KEEP, FALLOC_ZERO, FALLOC_ZERO | FALLOC_KEEP]
            ),
            "rename": lambda: self._random.choice([RENAME_NOREPLACE, RENAME_EXCHANGE]),
            "xattr": lambda: self._random.choice([b"user.one", b"user.two", b"trusted.three", b"security.four"]),
            "acl": lambda: self._random.choice([b"system.posix_acl_access", b"system.posix_acl_default"]),
            "time": lambda: self._random.randrange(10**9, 2 * 10**18),
        }
        return drawn[name]()

    def _path(self) -> bytes:
        folder, name = self._random.choice(FOLDERS), self._random.choice(NAMES)
        return os.path.join(folder, name)

    def _flags(self) -> int:
        flags: int = self._random.choice([os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY])
        for extra in (os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_DSYNC, os.O_NOFOLLOW):
            if self._random.random() < 0.3:
                flags |= extra
        return flags


_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "open": ("fd", "path", "flags", "mode", "umask"),
    "tmpfile": ("fd", "path", "mode", "umask"),
    "name_fd": ("fd", "path"),
    "close": ("fd",),
    "read": ("fd", "offset", "size"),
    "write": ("fd", "offset", "data"),
    "append": ("fd", "data"),
    "truncate": ("path", "offset"),
    "ftruncate": ("fd", "offset"),
    "fallocate": ("fd", "falloc", "offset", "size"),
    "copy": ("fd", "fd", "offset", "offset", "size"),
    "map": ("fd", "offset", "data"),
    "fsync": ("fd",),
    "seek_data": ("fd", "offset"),
    "mkdir": ("path", "mode", "umask"),
    "rmdir": ("path",),
    "unlink": ("path",),
    "rename": ("path", "path"),
    "rename2": ("path", "path", "rename"),
    "link": ("path", "path"),
    "symlink": ("path", "path"),
    "readlink": ("path",),
    "mkfifo": ("path", "mode", "umask"),
    "mknod": ("path", "mode"),
    "chmod": ("path", "mode"),
    "fchmod": ("fd", "mode"),
    "chown": ("path", "id", "id"),
    "utime": ("path", "time", "time"),
    "setxattr": ("path", "xattr", "size"),
    "getxattr": ("path", "xattr"),
    "removexattr": ("path", "xattr"),
    "setacl": ("path", "acl", "id"),
    "listxattr": ("path",),
    "stat": ("path",),
    "list": ("path",),
    "lock": ("fd",),
}


class Actor:
    """Does planned operations below one directory, and says how each went in terms that do not depend on where."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self._fds: dict[int, int] = {}

    def act(self, plan: Plan) -> Any:
        """The result, or the errno. What depends on the moment (times) is left out."""
        kind, arguments, (uid, gid) = plan
        before = os.umask(0o022)
        try:
            os.setegid(gid)
            os.seteuid(uid)
            return getattr(self, f"_{kind}")(*arguments)
        except OSError as error:
            return f"errno {error.errno}"
        except KeyError:
            return "not open"
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.umask(before)

    def close(self) -> None:
        """Let go of every file."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._root, path)

    def _keep(self, slot: int, fd: int) -> None:
        if slot in self._fds:
            os.close(self._fds[slot])
        self._fds[slot] = fd

    def _open(self, slot: int, path: bytes, flags: int, mode: int, umask: int) -> None:
        os.umask(umask)
        self._keep(slot, os.open(self._at(path), flags | os.O_NONBLOCK, mode))

    def _tmpfile(self, slot: int, path: bytes, mode: int, umask: int) -> None:
        os.umask(umask)
        self._keep(slot, os.open(os.path.dirname(self._at(path)), os.O_TMPFILE | os.O_RDWR, mode & 0o777))

    def _name_fd(self, slot: int, path: bytes) -> None:
        name_fd(self._fds[slot], self._at(path))

    def _close(self, slot: int) -> None:
        os.close(self._fds.pop(slot))

    def _read(self, slot: int, offset: int, size: int) -> bytes:
        return os.pread(self._fds[slot], size, offset)

    def _write(self, slot: int, offset: int, data: bytes) -> int:
        return os.pwrite(self._fds[slot], data, offset)

    def _append(self, slot: int, data: bytes) -> tuple[int, int]:
        os.lseek(self._fds[slot], 0, os.SEEK_END)
        return os.write(self._fds[slot], data), os.fstat(self._fds[slot]).st_size

    def _truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def _ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._fds[slot], size)

    def _fallocate(self, slot: int, mode: int, offset: int, size: int) -> int:
        fd = self._fds[slot]
        return _checked(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)))

    def _copy(self, source: int, target: int, start: int, offset: int, size: int) -> int:
        return os.copy_file_range(self._fds[source], self._fds[target], size, start, offset)

    def _map(self, slot: int, offset: int, data: bytes) -> int:
        fd = self._fds[slot]
        size = os.fstat(fd).st_size
        if not stat.S_ISREG(os.fstat(fd).st_mode) or size == 0:
            return 0
        with mmap.mmap(fd, size, mmap.MAP_SHARED) as area:
            part = data[: max(0, size - offset)]
            area[offset : offset + len(part)] = part
            area.flush()
        return len(part)

    def _fsync(self, slot: int) -> None:
        os.fsync(self._fds[slot])

    def _seek_data(self, slot: int, offset: int) -> int:
        # Where unwritten blocks count as data depends on what is cached, so only the end is compared.
        fd = self._fds[slot]
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a directory's end is a number of the file system's own
            return 0
        with contextlib.suppress(OSError):
            assert os.lseek(fd, offset, os.SEEK_DATA) <= os.lseek(fd, offset, os.SEEK_HOLE) + MAX_SIZE
        return os.lseek(fd, 0, os.SEEK_END)

    def _mkdir(self, path: bytes, mode: int, umask: int) -> None:
        os.umask(umask)
        os.mkdir(self._at(path), mode)

    def _rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def _unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def _rename(self, old: bytes, new: bytes) -> None:
        os.rename(self._at(old), self._at(new))

    def _rename2(self, old: bytes, new: bytes, flags: int) -> None:
        _checked(_libc.renameat2(-100, self._at(old), -100, self._at(new), flags))

    def _link(self, old: bytes, new: bytes) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def _symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(os.path.basename(target), self._at(path))

    def _readlink(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def _mkfifo(self, path: bytes, mode: int, umask: int) -> None:
        os.umask(umask)
        os.mkfifo(self._at(path), mode & 0o777)

    def _mknod(self, path: bytes, mode: int) -> None:
        os.mknod(self._at(path), stat.S_IFCHR | (mode & 0o777), os.makedev(1, 3))

    def _chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def _fchmod(self, slot: int, mode: int) -> int:
        os.fchmod(self._fds[slot], mode)
        return os.fstat(self._fds[slot]).st_mode

    def _chown(self, path: bytes, uid: int, gid: int) -> int:
        os.chown(self._at(path), uid, gid, follow_symlinks=False)
        return os.lstat(self._at(path)).st_mode

    def _utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> tuple[int, int]:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)
        status = os.lstat(self._at(path))
        return status.st_atime_ns, status.st_mtime_ns

    def _setxattr(self, path: bytes, name: bytes, size: int) -> None:
        os.setxattr(self._at(path), name, b"v" * (size % 200), follow_symlinks=False)

    def _getxattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self._at(path), name, follow_symlinks=False)

    def _removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def _setacl(self, path: bytes, name: bytes, user: int) -> int:
        # linux/posix_acl_xattr.h: owner rwx, one user r-x, group r--, mask rwx, others nothing.
        entries = [(1, 7, -1), (2, 5, user), (4, 4, -1), (16, 7, -1), (32, 0, -1)]
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        os.setxattr(self._at(path), name, value)
        return os.stat(self._at(path)).st_mode

    def _listxattr(self, path: bytes) -> list[str]:
        return sorted(os.listxattr(self._at(path), follow_symlinks=False))

    def _stat(self, path: bytes) -> tuple[int, ...]:
        status = os.lstat(self._at(path))
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        return status.st_mode, status.st_uid, status.st_gid, status.st_nlink, size, status.st_rdev

    def _list(self, path: bytes) -> list[bytes]:
        with os.scandir(self._at(path)) as entries:
            return sorted(entry.name + (b"/" if entry.is_dir(follow_symlinks=False) else b"") for entry in entries)

    def _lock(self, slot: int) -> str:
        fd = self._fds[slot]
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(fd, fcntl.LOCK_UN)
        return "locked"


def prepare(root: Path) -> None:
    """The folders that plans speak of, open to every user."""
    for folder in FOLDERS:
        path = os.path.join(os.fsencode(root), folder)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o777)


def compare_with_bare(pair: Pair, seed: int, count: int) -> None:
    """`count` operations on the mirror and on a bare directory: the same results one by one, and equal trees."""
    bare = pair.base / "bare"
    bare.mkdir()
    prepare(bare)
    prepare(pair.mount)
    planner, expected, found = Planner(seed), Actor(bare), Actor(pair.mount)
    outcomes: Counter[bool] = Counter()
    for number in range(count):
        plan = planner.draw()
        wanted, got = expected.act(plan), found.act(plan)
        assert got == wanted, f"seed {seed}, operation {number}: {plan[0]} {str(plan[1])[:300]} by {plan[2]}"
        outcomes[str(wanted).startswith(("errno", "not open"))] += 1
    expected.close()
    found.close()
    pair.settle()

    assert outcomes[False] > count // 5, "nearly everything failed: the comparison says little"
    assert differences(bare, pair.mount, times=False) == []
    assert differences(pair.backing, pair.copy) == []
