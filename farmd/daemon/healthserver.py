# SPDX-License-Identifier: Apache-2.0
"""HTTP for load balancers: GET or HEAD of a health URL, one answer a connection, and nothing else.

Whoever reaches the port may ask, so an answer is cheap (snapshots are shared), connections are few and short, and
nothing secret is said. Without an engine that answers, the answer is no.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from http import HTTPStatus
from typing import Generic, TypeVar
from urllib.parse import unquote

from farmd.daemon import health
from farmd.daemon.health import Health, Listening
from farmd.daemon.report import EngineReport
from farmd.model.config import FarmConfig, Listen
from farmd.model.errors import DaemonUnreachable, FarmError, KernelError

_MOST_CLIENTS = 64
"""Connections at the same time; one more is closed at once."""
_REQUEST_BYTES = 8192
_PATIENCE_S = 3.0
"""For a whole connection, answer included."""
_LAST_ANSWERS_S = 1.0
"""For answers that are under way when the socket is handed over."""
_BEGIN_S = 0.01
"""For the event loop to begin with connections that it has accepted."""
_BACKLOG = 128
_REPORT_S = 0.1
"""How long a report is shared. Its lease is compared with the clock each time, so it is never believed too long."""
_LISTENERS_S = 0.5
_ENGINE_PATIENCE_S = 1.0
"""For a daemon that has just started to find its engine, and for an engine to answer."""
_ENGINE_POLL_S = 0.02
_INHERITED = "FARMD_HEALTH_FD"
"""The listening socket's number, from a daemon that starts again to the one that it becomes."""

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """An answer that is asked for once and given to all who want it within `life_s`. An error is not kept."""

    def __init__(self, ask: Callable[[], Awaitable[_T]], life_s: float) -> None:
        self._ask = ask
        self._life_s = life_s
        self._task: asyncio.Task[_T] | None = None
        self._until_s = 0.0

    async def get(self) -> _T:
        """The answer, at most `life_s` old. Raises what asking raises."""
        now_s = asyncio.get_running_loop().time()
        done = self._task is not None and self._task.done()
        if self._task is None or (done and now_s >= self._until_s):
            self._task = asyncio.create_task(self._fresh(), name="health snapshot")
        return await asyncio.shield(self._task)

    async def _fresh(self) -> _T:
        try:
            answer = await self._ask()
        except BaseException:
            self._until_s = 0.0
            raise
        self._until_s = asyncio.get_running_loop().time() + self._life_s
        return answer


class HealthChecks:
    """What is known when a balancer asks."""

    def __init__(
        self,
        config: FarmConfig,
        report: Callable[[], Awaitable[EngineReport]],
        listeners: Callable[[], Collection[Listening]],
        clock_ns: Callable[[], int],
    ) -> None:
        """`listeners` may block: it is called in a thread. `clock_ns` is CLOCK_BOOTTIME."""
        self._config = config
        self._clock_ns = clock_ns
        self._ask_engine = report
        self._report = Shared(self._patient_report, _REPORT_S)
        self._listeners = Shared(lambda: asyncio.to_thread(listeners), _LISTENERS_S)
        self.stopping = False
        """Set when this daemon ends and none follows at once."""

    @property
    def node(self) -> str:
        """This node's name."""
        return self._config.me.name

    async def of(self, path: str) -> Health | None:
        """What a path stands for; None if it stands for nothing."""
        rules = health.rules_of(path, self._config)
        if rules is None:
            return None
        if self.stopping:
            return Health(False, f"farmd on {self.node} is stopping")
        try:
            async with asyncio.timeout(_ENGINE_PATIENCE_S):
                report, served = await self._report.get(), await self._listeners.get()
        except TimeoutError:
            return Health(False, f"the membership engine on {self.node} does not answer")
        except FarmError as error:
            return Health(False, f"{error.subject}: {error.cause}")
        return health.judge(self._config, report, self._clock_ns(), rules, served)

    async def _patient_report(self) -> EngineReport:
        patience = asyncio.get_running_loop().time() + _ENGINE_PATIENCE_S / 2
        while True:
            try:
                return await self._ask_engine()
            except DaemonUnreachable:
                if asyncio.get_running_loop().time() >= patience:
                    raise
            await asyncio.sleep(_ENGINE_POLL_S)


class HealthServer:
    """Answers at one address until `close`."""

    def __init__(self, checks: HealthChecks, place: Listen) -> None:
        self._checks = checks
        self._place = place
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises KernelError: the address is not this host's, or somebody else listens there."""
        self._socket = _inherited(self._place) or _listening(self._place)
        self._server = await asyncio.start_server(
            self._serve, sock=self._socket.dup(), limit=_REQUEST_BYTES, backlog=_BACKLOG
        )

    def stop_soon(self) -> None:
        """From now on nobody is sent here: this daemon ends, and none follows at once."""
        self._checks.stopping = True

    def close(self) -> None:
        """Stop listening."""
        self._end_serving()
        if self._socket is not None:
            self._socket.close()

    async def hand_over(self) -> None:
        """Leave the socket to the program that this process becomes: who asks from now on waits for that one.

        Who was accepted is answered first, if that takes no longer than a moment.
        """
        self._end_serving()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ANSWERS_S):
                await asyncio.sleep(_BEGIN_S)
                await self._idle.wait()
        if self._socket is not None:
            self._socket.set_inheritable(True)
            os.environ[_INHERITED] = str(self._socket.detach())

    def _end_serving(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._busy >= _MOST_CLIENTS:
            writer.close()
            return
        self._busy += 1
        self._idle.clear()
        try:
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_PATIENCE_S):
                    writer.write(await self._answer(reader))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.LimitOverrunError:
            return _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too long")
        lines = head.split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _plain(HTTPStatus.BAD_REQUEST, "this is not HTTP/1")
        method, (path, _, query) = words[0], words[1].partition("?")
        if method not in ("GET", "HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "use GET or HEAD", allow=True)
        found = await self._checks.of(unquote(path))
        if found is None:
            text = f"no such health URL: there are {health.FARM_PATH} and {health.RULE_PATH}NAME"
            return _plain(HTTPStatus.NOT_FOUND, text, body=method == "GET")
        status = HTTPStatus.OK if found.healthy else HTTPStatus.SERVICE_UNAVAILABLE
        if "format=json" in query.split("&") or _wants_json(lines[1:]):
            data = {"node": self._checks.node, "healthy": found.healthy, "reason": found.reason}
            return _reply(status, "application/json", json.dumps(data) + "\n", body=method == "GET")
        return _plain(status, found.reason, body=method == "GET")


def _wants_json(headers: list[str]) -> bool:
    fields = (line.partition(":") for line in headers)
    return any(name.strip().lower() == "accept" and "application/json" in value.lower() for name, _, value in fields)


def _plain(status: HTTPStatus, text: str, *, body: bool = True, allow: bool = False) -> bytes:
    return _reply(status, "text/plain; charset=utf-8", text + "\n", body=body, allow=allow)


def _reply(status: HTTPStatus, kind: str, text: str, *, body: bool, allow: bool = False) -> bytes:
    content = text.encode()
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        "Connection: close",
        *(["Allow: GET, HEAD"] if allow else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (content if body else b"")


def _listening(place: Listen) -> socket.socket:
    family = socket.AF_INET6 if place.address.version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((str(place.address), place.port))
        made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise KernelError(
            f"health URLs on {place.address} port {place.port}",
            f"it cannot be listened on ({error.strerror or error}), so balancers take this node for dead",
            "Choose another address or port for [health], or end what listens there",
        ) from error
    return made


def _inherited(place: Listen) -> socket.socket | None:
    """The socket that the last program of this process left, if it listens where we want to."""
    number = os.environ.pop(_INHERITED, "")
    if not number.isdigit():
        return None
    try:
        left = socket.socket(fileno=int(number))
    except OSError:
        return None
    left.set_inheritable(False)
    left.setblocking(False)
    if left.getsockname()[:2] == (str(place.address), place.port):
        return left
    left.close()
    return None


def drop_inherited() -> None:
    """Close what the last program of this process left, if nobody wants it any more."""
    with suppress(ValueError, OSError):
        os.close(int(os.environ.pop(_INHERITED, "")))
