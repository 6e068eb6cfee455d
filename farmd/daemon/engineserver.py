# SPDX-License-Identifier: Apache-2.0
"""The engine's end of the line to its daemon (see `farmd.daemon.enginelink` for the form)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from farmd.daemon.enginelink import LINE_LIMIT
from farmd.model.errors import FarmError, KernelError

ORPHAN_GRACE_S = 30.0
"""Long enough for a daemon to be restarted or upgraded on a server that is overloaded; short enough that a node whose
daemon is gone for good leaves the farm, in the planned way, before anybody relies on it."""
_EVENT_BACKLOG = 1 << 20
"""Bytes that a daemon may leave unread before it misses events: the engine never waits for it."""

Answer = Callable[[str, dict[str, Any]], dict[str, Any]]


class EngineServer:
    """Listens for the daemon; answers through one synchronous function, as the engine's loop must never wait."""

    def __init__(self, path: Path, answer: Answer, orphaned: Callable[[], None]) -> None:
        self._path = path
        self._answer = answer
        self._orphaned = orphaned
        self._daemons: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._grace: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Bind the socket with mode 0600; a stale file of a dead engine is replaced.

        Raises:
            KernelError: the socket cannot be bound.
        """
        old_mask = os.umask(0o177)
        try:
            with suppress(FileNotFoundError):
                self._path.unlink()
            self._server = await asyncio.start_unix_server(self._serve, path=str(self._path), limit=LINE_LIMIT)
        except OSError as error:
            raise KernelError(
                f"engine socket {self._path}",
                error.strerror or str(error),
                "Create its folder, or change engine_socket",
            ) from error
        finally:
            os.umask(old_mask)
        self._await_daemon()

    def publish(self, event: dict[str, Any]) -> None:
        """Send an event to every daemon that listens."""
        line = json.dumps({"event": event}).encode() + b"\n"
        for daemon in self._daemons:
            if daemon.transport.get_write_buffer_size() < _EVENT_BACKLOG:
                daemon.write(line)

    async def close(self) -> None:
        """Stop listening, hang up and remove the socket."""
        if self._server is not None:
            self._server.close()
        for daemon in self._daemons:
            daemon.close()
        await asyncio.gather(*(task for task in self._daemons.values() if task is not None))
        if self._grace is not None:
            self._grace.cancel()
        with suppress(FileNotFoundError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._daemons[writer] = asyncio.current_task()
        if self._grace is not None:
            self._grace.cancel()
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self._reply(json.loads(line))).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # A daemon that died or went mad; the next one gets a fresh line.
        finally:
            del self._daemons[writer]
            writer.close()
            if not self._daemons:
                self._await_daemon()

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        number = request["n"]
        try:
            return {"n": number, **self._answer(request["ask"], request)}
        except FarmError as error:
            return {"n": number, "error": [error.subject, error.cause, error.next_step]}

    def _await_daemon(self) -> None:
        self._grace = asyncio.get_running_loop().call_later(ORPHAN_GRACE_S, self._orphaned)
