# SPDX-License-Identifier: Apache-2.0
"""A disk with a volatile write cache: one file in a FUSE file system, for a loop device with direct I/O.

`python -m tests.mirror.volatile IMAGE POINT` serves POINT/disk, as large as IMAGE, until it is unmounted. Every write
stays in memory until a flush, which the loop device sends as an fsync; only then IMAGE has it. Beyond `CACHE_BYTES` the
oldest go to IMAGE without one, as a disk does. SIGUSR1 is the loss of power: of what was not flushed some sectors
arrive, in any order, and after that every request fails. With `--deaf` flushes are acknowledged and not done; nothing
but IMAGE as it was at the start, and what did not fit in the cache, survives then.

Sectors of 512 bytes are whole or not there; of blocks that were written several times any version may be what stays.
The protocol is that of linux/fuse.h, 7.31.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import random
import select
import signal
import stat
import struct
from collections.abc import Callable
from pathlib import Path

BLOCK = 4096
SECTOR = 512
CACHE_BYTES = 64 << 20
READY = "ready"
"""What is printed once it is mounted, and once the power is gone."""
GONE = "gone"
NAME = b"disk"

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 14, 15, 16
_STATFS, _RELEASE, _FSYNC, _FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR = 17, 18, 20, 25, 26, 27, 28, 29
_INTERRUPT, _DESTROY, _BATCH_FORGET = 36, 38, 42
_SILENT = (_FORGET, _BATCH_FORGET, _INTERRUPT)
_MOST_WRITE = 1 << 20
_ASYNC_READ, _MAX_PAGES, _ASYNC_DIO = 1 << 0, 1 << 22, 1 << 15
_HEADER = struct.Struct("<IIQQIIIHH")
_ANSWER = struct.Struct("<IiQ")
_IO = struct.Struct("<QQIIQII")
_ATTR = struct.Struct("<6Q10I")
_FILE_NODE = 2
_IO_FLUSHER = 57


class Cache:
    """What was written and not flushed, block by block, each with its versions in their order."""

    def __init__(self, image: int, dice: random.Random, *, is_deaf: bool) -> None:
        self._image, self._dice, self._is_deaf = image, dice, is_deaf
        self._versions: dict[int, list[bytes]] = {}
        self._bytes = 0

    def write(self, offset: int, data: memoryview) -> None:
        """Whole blocks."""
        if offset % BLOCK or len(data) % BLOCK:
            raise OSError(errno.EINVAL, "not in whole blocks")
        for at in range(0, len(data), BLOCK):
            self._versions.setdefault((offset + at) // BLOCK, []).append(bytes(data[at : at + BLOCK]))
        self._bytes += len(data)
        while self._bytes > CACHE_BYTES:
            self._destage(next(iter(self._versions)))

    def read(self, offset: int, size: int) -> bytes:
        """As the machine sees it."""
        data = bytearray(os.pread(self._image, size, offset))
        for block in range(offset // BLOCK, (offset + len(data) - 1) // BLOCK + 1):
            if (versions := self._versions.get(block)) is not None:
                first, end = max(offset, block * BLOCK), min(offset + len(data), (block + 1) * BLOCK)
                data[first - offset : end - offset] = versions[-1][first - block * BLOCK : end - block * BLOCK]
        return bytes(data)

    def flush(self) -> None:
        """The image has everything."""
        if not self._is_deaf:
            while self._versions:
                self._destage(next(iter(self._versions)))

    def lose(self) -> None:
        """The power fails. How much had arrived by then is another number each time."""
        chance = 0.0 if self._is_deaf else self._dice.choice((0.0, self._dice.random(), self._dice.random()))
        for block, versions in self._versions.items():
            for version in versions:
                for at in self._arrived(chance):
                    os.pwrite(self._image, version[at : at + SECTOR], block * BLOCK + at)
        self._versions.clear()

    def _arrived(self, chance: float) -> range | list[int]:
        """Which sectors of a block; mostly all or none, at times it is torn."""
        every = range(0, BLOCK, SECTOR)
        if self._dice.random() < 0.1:
            return [at for at in every if self._dice.random() < chance]
        return every if self._dice.random() < chance else []

    def _destage(self, block: int) -> None:
        versions = self._versions.pop(block)
        os.pwrite(self._image, versions[-1], block * BLOCK)
        self._bytes -= BLOCK * len(versions)


class Server:
    """Answers the kernel, one request after the other."""

    def __init__(self, fuse: int, size: int, cache: Cache) -> None:
        self._fuse, self._size, self._cache = fuse, size, cache
        self._has_power = True
        self._acts: dict[int, Callable[[int, memoryview], bytes]] = {
            _INIT: self._init,
            _LOOKUP: self._lookup,
            _GETATTR: lambda node, _: struct.pack("<QII", 3600, 0, 0) + self._attributes(node),
            _OPEN: lambda *_: struct.pack("<QII", 0, 0, 0),
            _OPENDIR: lambda *_: struct.pack("<QII", 0, 0, 0),
            _READDIR: lambda *_: b"",
            _RELEASE: lambda *_: b"",
            _RELEASEDIR: lambda *_: b"",
            _FLUSH: lambda *_: b"",
            _DESTROY: lambda *_: b"",
            _STATFS: lambda *_: struct.pack("<5Q10I", 0, 0, 0, 0, 0, BLOCK, 255, BLOCK, *[0] * 7),
            _READ: self._read,
            _WRITE: self._write,
            _FSYNC: self._fsync,
        }

    def lose_power(self) -> None:
        """At once, and for good."""
        if self._has_power:
            self._has_power = False
            self._cache.lose()

    def serve_one(self, buffer: bytearray) -> bool:
        """One request; False when it is unmounted."""
        try:
            got = os.readv(self._fuse, [buffer])
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EAGAIN, errno.EINTR):
                return True
            if error.errno == errno.ENODEV:
                return False
            raise
        _, code, unique, node, *_ = _HEADER.unpack_from(buffer)
        if code in _SILENT:
            return True
        try:
            if code not in self._acts:
                raise OSError(errno.ENOSYS, f"request {code}")
            if not self._has_power and code in (_READ, _WRITE, _FSYNC):
                raise OSError(errno.EIO, "no power")
            said, problem = self._acts[code](node, memoryview(buffer)[_HEADER.size : got]), 0
        except OSError as error:
            said, problem = b"", error.errno or errno.EIO
        os.writev(self._fuse, [_ANSWER.pack(_ANSWER.size + len(said), -problem, unique), said])
        return True

    def _init(self, node: int, body: memoryview) -> bytes:
        _major, _minor, readahead, offered = struct.unpack_from("<IIII", body)
        wanted = offered & (_ASYNC_READ | _MAX_PAGES | _ASYNC_DIO)
        pages = _MOST_WRITE // BLOCK
        return struct.pack("<IIIIHHIIHH8I", 7, 31, readahead, wanted, 16, 12, _MOST_WRITE, 1, pages, 0, *[0] * 8)

    def _lookup(self, node: int, body: memoryview) -> bytes:
        if bytes(body).rstrip(b"\0") != NAME:
            raise OSError(errno.ENOENT, "no such file")
        return struct.pack("<QQQQII", _FILE_NODE, 0, 3600, 3600, 0, 0) + self._attributes(_FILE_NODE)

    def _attributes(self, node: int) -> bytes:
        is_file = node == _FILE_NODE
        mode, size = (stat.S_IFREG | 0o600, self._size) if is_file else (stat.S_IFDIR | 0o700, 0)
        return _ATTR.pack(node, size, size // SECTOR, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, BLOCK, 0)

    def _read(self, node: int, body: memoryview) -> bytes:
        _, offset, size, *_ = _IO.unpack_from(body)
        return self._cache.read(offset, min(size, max(0, self._size - offset)))

    def _write(self, node: int, body: memoryview) -> bytes:
        _, offset, size, *_ = _IO.unpack_from(body)
        self._cache.write(offset, body[_IO.size : _IO.size + size])
        return struct.pack("<II", size, 0)

    def _fsync(self, *_: object) -> bytes:
        self._cache.flush()
        return b""


def serve(image: Path, point: Path, dice: random.Random, *, is_deaf: bool) -> None:
    """Until it is unmounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_IO_FLUSHER, 1, 0, 0, 0)  # memory that this takes must not wait for writes that wait for this
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"volatile", os.fsencode(point), b"fuse.volatile", 0, options):
        raise OSError(ctypes.get_errno(), f"{point} cannot be mounted")
    store = os.open(image, os.O_RDWR)
    server = Server(fuse, os.fstat(store).st_size, Cache(store, dice, is_deaf=is_deaf))
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    print(READY, flush=True)
    buffer = bytearray(_MOST_WRITE + 8192)
    while True:
        ready, _, _ = select.select([woken, fuse], [], [])
        if woken in ready:
            os.read(woken, 64)
            server.lose_power()
            print(GONE, flush=True)
        elif not server.serve_one(buffer):
            return


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("point", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deaf", action="store_true")
    arguments = parser.parse_args()
    serve(arguments.image, arguments.point, random.Random(arguments.seed), is_deaf=arguments.deaf)


if __name__ == "__main__":
    main()
