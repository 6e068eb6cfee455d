# SPDX-License-Identifier: Apache-2.0
"""Connections between the two nodes: one port, and four kinds of connection behind one greeting.

The greeting is 40 bytes in clear: magic, kind, node, mirror, token. Behind it, if the nodes have keys, TLS 1.3
with both certificates begins. `control` carries the core's messages; `stream` is handed to the data path, which
speaks TLS by itself; `bulk` carries a pass of the checksum engine, `zones` a failback from the log. These three are
taken only under a token that was agreed over the control connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any

from farmd.mirrord.keys import Keys, check_name, node_name
from farmd.model.errors import PeerError
from farmd.model.mirrorfile import MirrorConfig, address

_GREETING = struct.Struct("<8sBB6x16sQ")
_MAGIC = b"FARMMIR1"
_LENGTH = struct.Struct("<I")
MAX_BYTES = 256 * 1024
GREETING_S = 5.0

Message = dict[str, Any]


class Kind(IntEnum):
    """What a connection is for."""

    CONTROL = 1
    STREAM = 2
    BULK = 3
    ZONES = 4


class Control:
    """The control connection: JSON messages with their length in front, and a beat so that silence means something."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float) -> None:
        self._reader, self._writer, self._timeout_s = reader, writer, timeout_s
        self.lost: str | None = None

    def say(self, message: Message) -> None:
        """Send, in order. A broken connection is told by `listen`."""
        if self.lost is None:
            data = json.dumps(message, separators=(",", ":")).encode()
            self._writer.write(_LENGTH.pack(len(data)) + data)

    async def listen(self, on_message: Callable[[Message], None]) -> str:
        """Hand messages on until the connection ends; returns why it did."""
        beat = asyncio.create_task(self._beat())
        try:
            while True:
                async with asyncio.timeout(self._timeout_s):
                    length = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))[0]
                    if length > MAX_BYTES:
                        raise ValueError(f"a message of {length} bytes")
                    data = await self._reader.readexactly(length)
                if length:
                    on_message(json.loads(data))
        except TimeoutError:
            self.lost = self.lost or f"the peer was silent for {self._timeout_s:g} s"
        except asyncio.IncompleteReadError:
            self.lost = self.lost or "the peer closed the connection"
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.lost = self.lost or f"the connection broke ({error})"
        finally:
            beat.cancel()
            self.close(self.lost or "closed")
        return self.lost

    def close(self, why: str) -> None:
        """End it; `listen` returns soon."""
        self.lost = self.lost or why
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.transport.abort()

    async def _beat(self) -> None:
        while self.lost is None:
            self._writer.write(_LENGTH.pack(0))
            await asyncio.sleep(self._timeout_s / 5)


class Peer:
    """Finds the other node and is found by it."""

    def __init__(
        self,
        config: MirrorConfig,
        keys: Keys | None,
        on_control: Callable[[Control], Awaitable[None]],
        on_socket: Callable[[Kind, int, socket.socket], None],
    ) -> None:
        self._config, self._keys = config, keys
        self._mirror = bytes.fromhex(config.mirror)
        self._on_control, self._on_socket = on_control, on_socket
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.trouble = ""
        """Why the last attempt to reach the peer, or to be reached, failed; for people."""

    def listen(self) -> None:
        """Take connections. Raises OSError."""
        place = address(self._config.listen)
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        self._listener = socket.create_server(place, family=family, backlog=16)
        self._listener.setblocking(False)
        self._start(self._accept())

    def connect(self) -> None:
        """Node 2 calls, node 1 is called; both keep at it."""
        if self._config.node == 2:
            self._start(self._keep_calling())

    async def call(self, kind: Kind, token: int) -> socket.socket:
        """A raw connection to the peer with the greeting sent. Raises PeerError."""
        loop = asyncio.get_running_loop()
        place = address(self._config.peer)
        sock = socket.socket(socket.AF_INET6 if ":" in place[0] else socket.AF_INET)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(GREETING_S):
                await loop.sock_connect(sock, place)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_sendall(sock, _GREETING.pack(_MAGIC, kind, self._config.node, self._mirror, token))
        except (OSError, TimeoutError) as error:
            sock.close()
            cause = f"it cannot be reached ({error or 'timed out'})"
            raise PeerError(f"peer {self._config.peer}", cause, "See that it runs, and what is between") from error
        return sock

    def close(self) -> None:
        """Stop listening and calling."""
        for task in self._tasks:
            task.cancel()
        if self._listener is not None:
            self._listener.close()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_calling(self) -> None:
        while True:
            began = time.monotonic()
            try:
                sock = await self.call(Kind.CONTROL, 0)
                await self._take_control(sock, server=False)
            except (OSError, TimeoutError, PeerError) as error:
                self.trouble = str(error)
            if time.monotonic() - began < 1:
                await asyncio.sleep(0.3)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            self._start(self._greeted(sock))

    async def _greeted(self, sock: socket.socket) -> None:
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            data = b""
            async with asyncio.timeout(GREETING_S):
                while len(data) < _GREETING.size:
                    more = await asyncio.get_running_loop().sock_recv(sock, _GREETING.size - len(data))
                    if not more:
                        raise ConnectionResetError("it said nothing")
                    data += more
            magic, kind, node, mirror, token = _GREETING.unpack(data)
            if magic != _MAGIC or mirror != self._mirror or node != self._config.other:
                raise ConnectionResetError("it is no node of this mirror")
            if kind == Kind.CONTROL:
                await self._take_control(sock, server=True)
            else:
                self._on_socket(Kind(kind), token, sock)
        except (OSError, TimeoutError, ValueError, PeerError) as error:
            self.trouble = f"a connection was refused: {error}"
            sock.close()

    async def _take_control(self, sock: socket.socket, *, server: bool) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=2 * MAX_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        tls = (self._keys.server() if server else self._keys.client()) if self._keys else None
        name = node_name(self._config.other)
        async with asyncio.timeout(GREETING_S):
            if server:
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=tls)
            else:
                transport, _ = await loop.create_connection(
                    lambda: protocol, sock=sock, ssl=tls, server_hostname=name if tls else None
                )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        secured = transport.get_extra_info("ssl_object")
        if secured is not None:
            check_name(secured, name)
        await self._on_control(Control(reader, writer, self._config.peer_timeout_s))
