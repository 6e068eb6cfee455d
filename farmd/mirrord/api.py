# SPDX-License-Identifier: Apache-2.0
"""The local API of one mirror's node: HTTP/1.1 and JSON in the envelope of farmd's own API, on a unix socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from farmd.daemon.httpd import read_object
from farmd.mirror.checksum import Mode
from farmd.mirror.orders import Accept, Demote, GiveUp, Order, Promote, Resync, Stop
from farmd.mirrord.mounts import users
from farmd.mirrord.picture import picture
from farmd.mirrord.shell import Shell
from farmd.model.answers import API_VERSION
from farmd.model.errors import BadRequest, FarmError, Refused

ORDER_S = 40.0
MAX_BODY_BYTES = 4096
_STATUS = {"bad-request": 400, "not-found": 404, "refused": 409, "timed-out": 504}
_log = logging.getLogger(__name__)


class Api:
    """Requests to orders, results to envelopes."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def application(self) -> Starlette:
        """As an ASGI application."""
        handlers: Mapping[Any, Any] = {FarmError: self._on_error, Exception: self._on_crash}
        routes = [
            Route("/v1/mirror", self._status),
            Route("/v1/mirror/{verb}", self._verb, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _status(self, _: Request) -> Response:
        return self._envelope("MirrorStatus", await picture(self._shell))

    async def _verb(self, request: Request) -> Response:
        verb, body = str(request.path_params["verb"]), await read_object(request, MAX_BODY_BYTES)
        if verb in ("verify", "diff"):
            shell, repair = self._shell, bool(body.get("repair"))
            connected = shell.control is not None
            job = await shell.comparing.begin(Mode[verb.upper()], ORDER_S, connected=connected, repair=repair)
            return self._envelope("Operation", {"text": f"{verb} has begun", "job": job.number})
        if verb == "resync" and "rate_bytes_s" in body:
            return self._limit(body["rate_bytes_s"])
        order = self._order(verb, body)
        if isinstance(order, Demote | Stop) and not body.get("force"):
            await asyncio.to_thread(self._nobody_is_in, verb)
        await self._shell.order(order, ORDER_S)
        return self._envelope("Operation", {"text": _DONE[verb]})

    def _limit(self, rate_bytes_s: object) -> Response:
        if type(rate_bytes_s) is not int or not 0 <= rate_bytes_s < 1 << 40:
            raise BadRequest("rate_bytes_s", f"{rate_bytes_s!r} is no number of bytes", "Give 0 or more bytes a second")
        self._shell.resync.limit(rate_bytes_s)
        limit = f"sends at most {rate_bytes_s / 1e6:,.1f} MB/s" if rate_bytes_s else "has no limit"
        return self._envelope("Operation", {"text": f"a resync {limit} from now on"})

    def _order(self, verb: str, body: dict[str, Any]) -> Order:
        match verb:
            case "promote":
                word = str(body.get("accept", "nothing")).upper()
                if word not in Accept.__members__:
                    known = ", ".join(each.name.lower() for each in Accept)
                    raise BadRequest("accept", f"there is no {word.lower()!r}", f"Give one of {known}")
                return Promote(Accept[word])
            case "demote" | "swap" | "stop":
                return Stop() if verb == "stop" else Demote(handover=verb == "swap")
            case "resync":
                return GiveUp() if body.get("give_up") else Resync()
        raise BadRequest(verb, "there is no such order", f"The orders are {', '.join(_DONE)}")

    def _nobody_is_in(self, verb: str) -> None:
        """The directory goes away: whoever has files open there would lose them."""
        config = self._shell.config
        if not self._shell.serving.is_mounted:
            return
        for path in config.paths:
            if found := users(path):
                cause = f"{path} is in use by {', '.join(found)}"
                raise Refused(verb, cause, "Stop them first; with --force their files end with errors")

    def _envelope(self, kind: str, data: Mapping[str, Any], status: int = 200) -> Response:
        body = {
            "apiVersion": API_VERSION,
            "kind": kind,
            "generatedAt": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "node": f"node {self._shell.config.node}",
            "warnings": [],
            "data": data,
        }
        return JSONResponse(body, status)

    async def _on_error(self, _: Request, error: FarmError) -> Response:
        data = {"code": error.code, "subject": error.subject, "cause": error.cause, "next_step": error.next_step}
        return self._envelope("Error", data, _STATUS.get(error.code, 500))

    async def _on_crash(self, request: Request, error: Exception) -> Response:
        _log.error("%s failed", request.url.path, exc_info=error)
        fault = FarmError(str(request.url.path), f"farmd has a fault ({error!r})", "Report it with the log")
        return await self._on_error(request, fault)


_DONE = {
    "promote": "this node is primary; the directory can be written",
    "demote": "this node is no longer primary",
    "swap": "this node has handed over",
    "stop": "this node is stopped",
    "resync": "ordered",
    "verify": "",
    "diff": "",
}
