# SPDX-License-Identifier: Apache-2.0
"""What the two ends of a failback from the log say to each other: frames of a kind, a JSON object and raw bytes.

Paths are hexadecimal: names have any bytes. The stream is ordered, and every frame describes a state rather than a
change, so a failback that was cut is simply done again.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from enum import IntEnum
from typing import Any

from farmd.model.errors import FarmError, PeerError

_HEAD = struct.Struct("<BII")
MAX_META = 32 << 20
MAX_DATA = 2 << 20
BLOCK_BYTES = 65_536
CHUNK_BYTES = 1 << 20
INLINE_BYTES = 4096
"""A whole file up to this size travels at once; of a larger one the target's digests are asked for first."""

Meta = dict[str, Any]


class Op(IntEnum):
    """What a frame is. From the primary, unless said otherwise."""

    COVER = 1
    """Target: where its own log says that the copies may differ. First frame of all."""
    REMOVE = 2
    """There is nothing at this path."""
    FOLDER = 3
    """This path is a directory; `names`, if given, are all that is in it."""
    SPECIAL = 4
    """A symlink, FIFO, socket or device."""
    SMALL = 5
    """A regular file with these contents."""
    LINK = 6
    """This path is another name of the file `to`."""
    ASK = 7
    """Digests of the blocks of these ranges, please; `whole`: make it a regular file if it is none. Answered."""
    FILE = 8
    """Attributes and size of a regular file that is there; DATA and ZERO that follow belong to it."""
    DATA = 9
    ZERO = 10
    END = 11
    """The file has all: set its times now."""
    META = 12
    """Attributes of what is at this path; sent last, for directories."""
    SYNC = 13
    """Make all of it durable. Answered."""
    ANSWER = 14
    """Target."""
    NAMES = 16
    """These are all names of the file at this path, one that has others is another file's. Before its contents."""
    FAILED = 15
    """Target: it cannot go on; `text` says why."""


class LogLied(FarmError):
    """What the logs say does not fit what the copies have: only a comparison of everything helps."""


class Link:
    """One end of a connected, blocking socket. Errors of the network are PeerError."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._in = sock.makefile("rb", buffering=1 << 20)
        self._out = bytearray()
        self.bytes_sent = 0

    def send(self, op: Op, meta: Meta | None = None, data: bytes | memoryview = b"") -> None:
        """Put a frame behind the others; small ones are gathered until `flush` or a large one."""
        head = json.dumps(meta, separators=(",", ":")).encode() if meta else b""
        self._out += _HEAD.pack(op, len(head), len(data))
        self._out += head
        self._out += data
        if len(self._out) > 64 * 1024:
            self.flush()

    def flush(self) -> None:
        """Send what was gathered."""
        if self._out:
            out, self._out = self._out, bytearray()
            try:
                self._sock.sendall(out)
            except OSError as error:
                raise _lost(error) from error
            self.bytes_sent += len(out)

    def receive(self) -> tuple[Op, Meta, bytes]:
        """The next frame. Raises PeerError: the connection ended, or what came is no frame."""
        kind, meta_bytes, data_bytes = _HEAD.unpack(self._exactly(_HEAD.size))
        if meta_bytes > MAX_META or data_bytes > MAX_DATA:
            raise PeerError("the peer", "it sent a frame that is too large", "See that both run the same farmd")
        head, data = self._exactly(meta_bytes), self._exactly(data_bytes)
        try:
            meta = json.loads(head) if head else {}
            if not isinstance(meta, dict):
                raise ValueError("not an object")
            return Op(kind), meta, data
        except ValueError as error:
            cause = f"it sent a frame that means nothing ({error})"
            raise PeerError("the peer", cause, "See that both run the same farmd") from error

    def answer(self) -> tuple[Meta, bytes]:
        """The target's answer to what was sent. Raises PeerError with the target's own words if it failed."""
        self.flush()
        op, meta, data = self.receive()
        if op is Op.FAILED:
            raise PeerError("the peer", str(meta.get("text")), "See its status")
        if op is not Op.ANSWER:
            raise PeerError("the peer", "it sent something else than an answer", "See that both run the same farmd")
        return meta, data

    def limit(self, seconds: float | None) -> None:
        """Nothing waits longer for the other end from now on: it is then as good as gone. None: for ever."""
        self._sock.settimeout(seconds)

    def close(self) -> None:
        """Let go of what was read; for the thread that used it. The socket is its owner's to close."""
        with contextlib.suppress(OSError, ValueError):
            self._in.close()

    def abort(self) -> None:
        """End the connection from another thread: whoever waits for it gets PeerError."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def _exactly(self, size: int) -> bytes:
        try:
            data = self._in.read(size) if size else b""
        except (OSError, ValueError) as error:
            raise _lost(error) from error
        if len(data) < size:
            raise _lost("it closed the connection")
        return data


def path_from(text: Any, *, root: bool = False) -> bytes:
    """A path below the directory, as the peer wrote it; `root`: or the directory. Raises ValueError, TypeError."""
    path = bytes.fromhex(text)
    if path == b"" and root:
        return path
    if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise ValueError("a path that leads nowhere below the directory")
    return path


def _lost(why: object) -> PeerError:
    return PeerError("the peer", f"the connection of the failback broke ({why})", "It is tried again")
