# SPDX-License-Identifier: Apache-2.0
"""The local API: HTTP/1.1 and JSON, the shapes of `farmd.model.answers`. Knows nothing of how farmd works inside.

Who may open the socket may do everything; the socket's mode is the permission (see `farmd.daemon.httpd`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from math import inf
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from farmd.daemon.httpd import read_object
from farmd.model.answers import API_VERSION, Counters, ErrorData, EventList, Explanation, FarmStatus, Operation
from farmd.model.errors import BadRequest, ConfigError, FarmError
from farmd.model.nodes import MAX_WEIGHT
from farmd.model.question import PacketKind, Question
from farmd.model.rules import Address
from farmd.model.rules import Protocol as Transport

MAX_BODY_BYTES = 64 * 1024
MAX_WAIT_S = 60.0
"""Longest long poll; a client that wants to wait longer asks again."""
MAX_EVENTS = 1000
"""Most events in one answer."""
_DEFAULT_EVENTS = 100

HTTP_STATUS = {
    "bad-request": 400,
    "not-permitted": 403,
    "not-found": 404,
    "refused": 409,
    "config": 422,
    "failed": 500,
    "kernel": 500,
    "peer": 502,
    "unreachable": 503,
    "timed-out": 504,
}
"""HTTP status by `FarmError.code`."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Backend(Protocol):
    """What the API needs from the daemon. Every method may raise FarmError; the API turns it into an answer."""

    @property
    def name(self) -> str:
        """This node's name."""

    def warnings(self) -> Sequence[str]:
        """What a reader of any answer should know, such as "the engine does not answer"."""

    async def status(self) -> FarmStatus:
        """The farm as this node sees it."""

    async def counters(self) -> Counters:
        """The filter's counters."""

    async def events(self, after: int, limit: int, wait_s: float) -> EventList:
        """Up to `limit` events after id `after`; when there are none, wait up to `wait_s` for one.

        A negative `after` counts back from the last id: -20 begins with the newest 20.
        """

    async def drain(self, member: str, force: bool, reason: str | None) -> Operation:
        """Give `member` no new clients. Refused for the last serving member without `force`."""

    async def ready(self, member: str) -> Operation:
        """End the drain of `member`."""

    async def set_weight(self, member: str, weight: int, group: str | None) -> Operation:
        """Set the weight (0..255) of `member` in `group`, or in every group."""

    async def explain(self, question: Question) -> Explanation:
        """Which node serves this client."""

    async def reload(self) -> Operation:
        """Put farm.toml as it is now in force, if it is valid."""

    async def leave(self, force: bool) -> Operation:
        """Leave the farm as planned: close, say goodbye, stop."""


def build(backend: Backend) -> Starlette:
    """The API as an ASGI application in front of `backend`."""
    api = _Api(backend)
    handlers: Mapping[Any, Any] = {
        FarmError: api.on_farm_error,
        HTTPException: api.on_http_error,
        Exception: api.on_crash,
    }
    routes = [
        Route("/v1/status", api.answer("FarmStatus", lambda _: backend.status())),
        Route("/v1/counters", api.answer("Counters", lambda _: backend.counters())),
        Route("/v1/events", api.answer("EventList", api.events)),
        Route("/v1/explain", api.answer("Explanation", api.explain)),
        Route("/v1/members/{member}/drain", api.answer("Operation", api.drain), methods=["POST"]),
        Route("/v1/members/{member}/ready", api.answer("Operation", api.ready), methods=["POST"]),
        Route("/v1/members/{member}/weight", api.answer("Operation", api.set_weight), methods=["POST"]),
        Route("/v1/reload", api.answer("Operation", api.reload), methods=["POST"]),
        Route("/v1/leave", api.answer("Operation", api.leave), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers=handlers)


class _Api:
    """Requests to backend calls, results to envelopes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def answer(
        self, kind: str, call: Callable[[Request], Awaitable[Mapping[str, Any]]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that wraps what `call` returns."""

        async def endpoint(request: Request) -> Response:
            return self._envelope(kind, await call(request))

        return endpoint

    async def events(self, request: Request) -> EventList:
        query = _Query(request, {"after", "limit", "wait"})
        wait_s = query.number("wait", float, 0.0, low=0, high=MAX_WAIT_S)
        limit = query.number("limit", int, _DEFAULT_EVENTS, low=1, high=MAX_EVENTS)
        return await self._backend.events(query.number("after", int, 0), limit, wait_s)

    async def explain(self, request: Request) -> Explanation:
        query = _Query(request, {"client", "port", "vip", "vport", "protocol", "packet", "id"})
        client, vip = query.address("client"), query.address("vip")
        vport = query.optional_number("vport")
        if client is None:
            raise BadRequest("client", "it is missing", "Add ?client=IP, the address to explain")
        packet = query.packet()
        if (vip is None) != (vport is None) and not (packet is PacketKind.ECHO and vport is None):
            raise BadRequest("vip and vport", "one of them is missing", "Give both, or neither")
        if vip is not None and vip.version != client.version:
            raise BadRequest("vip", f"it is IPv{vip.version}, the client is IPv{client.version}", "Use one IP version")
        ident = query.number("id", int, 0, low=0, high=(1 << 32) - 1) if "id" in request.query_params else None
        port = query.optional_number("port")
        return await self._backend.explain(Question(client, port, vip, vport, query.transport(), packet, ident))

    async def drain(self, request: Request) -> Operation:
        body = await _Body.read(request, {"force", "reason"})
        force = body.value("force", bool, default=False)
        return await self._backend.drain(_member(request), force, body.optional("reason", str))

    async def ready(self, request: Request) -> Operation:
        await _Body.read(request, set())
        return await self._backend.ready(_member(request))

    async def set_weight(self, request: Request) -> Operation:
        body = await _Body.read(request, {"weight", "group"})
        weight = body.value("weight", int)
        if not 0 <= weight <= MAX_WEIGHT:
            raise BadRequest("weight", f"{weight} is out of range", f"Give a whole number from 0 to {MAX_WEIGHT}")
        return await self._backend.set_weight(_member(request), weight, body.optional("group", str))

    async def reload(self, request: Request) -> Operation:
        await _Body.read(request, set())
        return await self._backend.reload()

    async def leave(self, request: Request) -> Operation:
        body = await _Body.read(request, {"force"})
        return await self._backend.leave(body.value("force", bool, default=False))

    async def on_farm_error(self, _: Request, error: FarmError) -> Response:
        data: dict[str, Any] = dict(_error_data(error))
        if isinstance(error, ConfigError):
            data["problems"] = [str(problem) for problem in error.problems]
        return self._envelope("Error", data, HTTP_STATUS.get(error.code, 500))

    async def on_http_error(self, request: Request, error: HTTPException) -> Response:
        subject = f"{request.method} {request.url.path}"
        if error.status_code == 404:
            cause, next_step = "there is no such path", "Use a path below /v1/, as listed in the API reference"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            cause, next_step = "the path does not take this method", f"Use {allowed}"
        else:
            cause, next_step = error.detail, "Correct the request and send it again"
        code = "not-found" if error.status_code == 404 else "bad-request"
        data = ErrorData(code=code, subject=subject, cause=cause, next_step=next_step)
        return self._envelope("Error", data, error.status_code, error.headers)

    async def on_crash(self, request: Request, error: Exception) -> Response:
        subject = f"{request.method} {request.url.path}"
        _log.error("%s failed inside farmd", subject, exc_info=error)
        data = ErrorData(
            code="failed",
            subject=subject,
            cause=f"farmd has a fault ({type(error).__name__}: {error})",
            next_step="Report it with the traceback that stands in farmd's log",
        )
        return self._envelope("Error", data, 500)

    def _envelope(
        self, kind: str, data: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        body = {
            "apiVersion": API_VERSION,
            "kind": kind,
            "generatedAt": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "node": self._backend.name,
            "warnings": list(self._backend.warnings()),
            "data": data,
        }
        return JSONResponse(body, status, headers)


def _error_data(error: FarmError) -> ErrorData:
    return ErrorData(code=error.code, subject=error.subject, cause=error.cause, next_step=error.next_step)


def _member(request: Request) -> str:
    return str(request.path_params["member"])


class _Query:
    """The query string, checked."""

    def __init__(self, request: Request, known: set[str]) -> None:
        self._values = request.query_params
        for name in self._values:
            if name not in known:
                raise BadRequest(name, "there is no such parameter", _known("parameters", known))

    def number(self, name: str, kind: type[_T], default: _T, *, low: float = -inf, high: float = inf) -> _T:
        """The number `name`, `default` if it is not given."""
        text = self._values.get(name)
        if text is None:
            return default
        word = "whole number" if kind is int else "number"
        span = word if high == inf else f"{word} from {low:g} to {high:g}"
        try:
            value = kind(text)  # type: ignore[call-arg]
        except ValueError as error:
            raise BadRequest(name, f"{text!r} is not a {word}", f"Give a {span}") from error
        # Written so that NaN is out of range too.
        if not low <= value <= high:  # type: ignore[operator]
            raise BadRequest(name, f"{text} is out of range", f"Give a {span}")
        return value

    def optional_number(self, name: str) -> int | None:
        """The port `name`, if given."""
        return self.number(name, int, 0, low=0, high=65535) if name in self._values else None

    def address(self, name: str) -> Address | None:
        """The IP address `name`, if given."""
        text = self._values.get(name)
        if text is None:
            return None
        try:
            return ip_address(text)
        except ValueError as error:
            raise BadRequest(name, f"{text!r} is not an IP address", "Give an IPv4 or IPv6 address") from error

    def transport(self) -> Transport | None:
        """The transport protocol, if given."""
        text = self._values.get("protocol")
        if text is None:
            return None
        try:
            return Transport(text)
        except ValueError as error:
            raise BadRequest("protocol", f"{text!r} is none that a rule can name", "Give tcp or udp") from error

    def packet(self) -> PacketKind:
        """The kind of packet; one that opens a connection if none is given."""
        text = self._values.get("packet", PacketKind.OPENING)
        try:
            return PacketKind(text)
        except ValueError as error:
            raise BadRequest("packet", f"{text!r} is none", f"Give one of {', '.join(PacketKind)}") from error


class _Body:
    """A JSON object from a request's body, checked. An empty body counts as `{}`."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    @classmethod
    async def read(cls, request: Request, known: set[str]) -> _Body:
        """Read and parse the body; only the names in `known` may be in it."""
        values = await read_object(request, MAX_BODY_BYTES)
        for name in values:
            if name not in known:
                raise BadRequest(name, "there is no such field", _known("fields", known))
        return cls(values)

    def value(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        """The field `name`, which has to be there unless there is a default."""
        value = self._values.get(name, default)
        if value is None:
            raise BadRequest(name, "it is missing", f"Add it, a {_JSON_WORDS[kind]}")
        # In Python a bool is an int; in JSON it is not.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BadRequest(name, f"{value!r} is not a {_JSON_WORDS[kind]}", f"Give a {_JSON_WORDS[kind]}")
        return value

    def optional(self, name: str, kind: type[_T]) -> _T | None:
        """The field `name`, None if it is null or not there."""
        return None if self._values.get(name) is None else self.value(name, kind)


_JSON_WORDS: dict[type, str] = {bool: "true or false value", int: "whole number", str: "text"}


def _known(what: str, names: set[str]) -> str:
    return f"The {what} here are {', '.join(sorted(names))}" if names else f"There are no {what} here"
