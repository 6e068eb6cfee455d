# SPDX-License-Identifier: Apache-2.0
"""Contents of files, put into frames for the target of a failback. What is only suspect is compared by digests before
anything of it is sent, some answers ahead.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from farmd.mirror import attributes, handles
from farmd.mirror import ranges as ranges_of
from farmd.mirror.native import digest_blocks
from farmd.mirror.ranges import Range
from farmd.mirror.zonewire import BLOCK_BYTES, CHUNK_BYTES, INLINE_BYTES, Link, Op

_ASK_BYTES = 64 << 20
_ASKS = 4
"""So many answers fit into any socket buffer: neither side ever waits for the other to read."""
_ZEROS = bytes(CHUNK_BYTES)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""There is no such path: what was a directory may be a symlink now."""


@dataclass(slots=True)
class _Ask:
    """Digests of these ranges are on their way."""

    path: bytes
    fd: int
    st: os.stat_result
    ranges: list[Range]
    whole: bool


class Contents:
    """Those of one batch. `odd` hears of a path that the target does not have as the log says."""

    def __init__(self, root: int, link: Link, paced: Callable[[int], None], odd: Callable[[bytes, str], None]) -> None:
        self._root, self._link, self._paced, self._odd = root, link, paced, odd
        self._asks: deque[_Ask] = deque()
        self.files = 0
        self.content_bytes = 0

    def whole(self, path: bytes, fd: int, st: os.stat_result) -> None:
        """All of a file. Raises PeerError, OSError."""
        if st.st_size > INLINE_BYTES:
            self.ask(path, [(0, st.st_size)])
            return
        data = self._read_small(path)
        if data is not None:
            meta = {"p": path.hex(), "n": st.st_nlink, "a": attributes.read(fd, st)}
            self._link.send(Op.SMALL, meta, data)
            self._count(len(data))

    def _read_small(self, path: bytes) -> bytes | None:
        try:
            fd = handles.open_below(self._root, path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return os.pread(fd, INLINE_BYTES, 0)
        finally:
            os.close(fd)

    def exact(self, path: bytes, file: int, ranges: list[Range]) -> None:
        """These ranges, unseen. Raises PeerError, OSError."""
        fd = os.open(b"/proc/self/fd/%d" % file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._begin(path, fd, os.fstat(fd))
            for offset, length in ranges:
                self._send_range(fd, offset, length)
            self._link.send(Op.END)
        finally:
            os.close(fd)

    def ask(self, path: bytes, ranges: list[Range], *, whole: bool = True) -> None:
        """Compare ranges of a file; with none, only see that it is there with this size. In pieces if it is large."""
        pieces = [
            (offset + at, min(_ASK_BYTES, length - at))
            for offset, length in ranges
            for at in range(0, length, _ASK_BYTES)
        ]
        for some in ranges_of.gathered(pieces, _ASK_BYTES) or [[]]:
            try:
                fd = handles.open_below(self._root, path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno in (*GONE, errno.ENXIO):
                    return
                raise
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                os.close(fd)
                return
            self._asks.append(_Ask(path, fd, st, some, whole))
            self._link.send(Op.ASK, {"p": path.hex(), "n": st.st_nlink, "r": some, "whole": whole})
            if len(self._asks) >= _ASKS:
                self._settle_ask()

    def _settle_ask(self) -> None:
        ask = self._asks.popleft()
        try:
            meta, theirs = self._link.answer()
            if meta.get("missing"):
                self._odd(ask.path, "the target does not have it")
                return
            self._paced(0)
            if not ask.ranges and ask.st.st_size != meta["size"] and ask.st.st_size:
                self.ask(ask.path, [(0, ask.st.st_size)])
                return
            self._begin(ask.path, ask.fd, ask.st, whole=ask.whole)
            for (offset, length), count in zip(ask.ranges, meta["counts"], strict=True):
                self._send_differing(ask.fd, offset, length, theirs[: 16 * count])
                theirs = theirs[16 * count :]
            self._link.send(Op.END)
        finally:
            os.close(ask.fd)

    def _send_differing(self, fd: int, offset: int, length: int, theirs: bytes) -> None:
        blocks = -(-length // BLOCK_BYTES)
        ours = digest_blocks(fd, offset, blocks, BLOCK_BYTES)
        if ours == theirs:
            return
        for start, end in ranges_of.runs(
            number for number in range(len(ours) // 16) if ours[16 * number :][:16] != theirs[16 * number :][:16]
        ):
            self._send_range(fd, offset + start * BLOCK_BYTES, min(end * BLOCK_BYTES, length) - start * BLOCK_BYTES)

    def settle(self) -> None:
        """Take all answers that are due. Raises PeerError, OSError, LogLied."""
        while self._asks:
            self._settle_ask()

    def close(self) -> None:
        """Whatever happened: no file is open any more."""
        for ask in self._asks:
            os.close(ask.fd)
        self._asks.clear()

    def _begin(self, path: bytes, fd: int, st: os.stat_result, *, whole: bool = False) -> None:
        meta = {"p": path.hex(), "n": st.st_nlink, "size": st.st_size, "a": attributes.read(fd, st), "whole": whole}
        self._link.send(Op.FILE, meta)
        self.files += 1

    def _send_range(self, fd: int, offset: int, length: int) -> None:
        while length:
            data = os.pread(fd, min(length, CHUNK_BYTES), offset)
            if not data:
                return
            if len(data) >= BLOCK_BYTES and data == _ZEROS[: len(data)]:
                self._link.send(Op.ZERO, {"o": offset, "l": len(data)})
            else:
                self._link.send(Op.DATA, {"o": offset}, data)
                self._count(len(data), 0)
            offset, length = offset + len(data), length - len(data)

    def _count(self, size: int, files: int = 1) -> None:
        self.files += files
        self.content_bytes += size
        self._paced(size)
