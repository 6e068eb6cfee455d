# SPDX-License-Identifier: Apache-2.0
"""The client of a node's local API: blocking, standard library only, one connection a call."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from farmd.model.answers import API_VERSION, Counters, EventList, Explanation, FarmStatus, Operation
from farmd.model.errors import (
    BadRequest,
    DaemonUnreachable,
    FarmError,
    KernelError,
    NotFound,
    NotPermitted,
    PeerError,
    Refused,
    TimedOut,
)

DEFAULT_SOCKET = Path("/run/farmd/api.sock")
DEFAULT_TIMEOUT_S = 5.0

_ERRORS: dict[str, type[FarmError]] = {
    kind.code: kind
    for kind in (BadRequest, DaemonUnreachable, KernelError, NotFound, NotPermitted, PeerError, Refused, TimedOut)
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """An envelope: the typed `data`, who said it and when, and the whole as it came (`raw`), unknown keys included."""

    data: T
    node: str
    generated_at: str
    """RFC 3339, UTC."""
    warnings: tuple[str, ...]
    raw: dict[str, Any]


class RemoteError(FarmError):
    """An error that the daemon reported with a code of its own."""

    def __init__(self, code: str, subject: str, cause: str, next_step: str) -> None:
        super().__init__(subject, cause, next_step)
        self.code = code


class Client:
    """Calls to the farmd behind `path`.

    Every call may raise FarmError: DaemonUnreachable when nobody listens, or it is no farmd; NotPermitted when the
    socket may not be opened; TimedOut without an answer in `timeout_s`; anything else is what the daemon answered.
    """

    def __init__(self, path: Path = DEFAULT_SOCKET, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.path = path
        self.timeout_s = timeout_s

    def status(self) -> Answer[FarmStatus]:
        """The farm as this node sees it."""
        return self._call("GET", "/v1/status", "FarmStatus")

    def counters(self) -> Answer[Counters]:
        """Packets by rule, reason and verdict."""
        return self._call("GET", "/v1/counters", "Counters")

    def events(self, after: int = 0, limit: int = 100, wait_s: float = 0.0) -> Answer[EventList]:
        """Up to `limit` events after id `after`; when there are none, wait up to `wait_s` (60 at most) for one.

        A negative `after` counts back from the last id: -20 begins with the newest 20.
        """
        query = urlencode({"after": after, "limit": limit, "wait": wait_s})
        return self._call("GET", f"/v1/events?{query}", "EventList", extra_s=wait_s)

    def drain(self, member: str, *, force: bool = False, reason: str | None = None) -> Answer[Operation]:
        """Give `member` no new clients."""
        return self._change(member, "drain", {"force": force, "reason": reason})

    def ready(self, member: str) -> Answer[Operation]:
        """End the drain of `member`."""
        return self._change(member, "ready", {})

    def set_weight(self, member: str, weight: int, group: str | None = None) -> Answer[Operation]:
        """Set the weight of `member` in `group`, or in every group."""
        return self._change(member, "weight", {"weight": weight, "group": group})

    def explain(
        self,
        client: str,
        port: int | None = None,
        vip: str | None = None,
        vport: int | None = None,
        protocol: str | None = None,
        packet: str | None = None,
        identification: int | None = None,
    ) -> Answer[Explanation]:
        """Which node serves this client, and why. `packet` is a `PacketKind`; None: one that opens a connection."""
        given = {"client": client, "port": port, "vip": vip, "vport": vport, "protocol": protocol}
        given |= {"packet": packet, "id": identification}
        query = urlencode({name: value for name, value in given.items() if value is not None})
        return self._call("GET", f"/v1/explain?{query}", "Explanation")

    def reload(self) -> Answer[Operation]:
        """Let the daemon put farm.toml as it is now in force; an invalid one is refused and changes nothing."""
        return self._call("POST", "/v1/reload", "Operation", {})

    def leave(self, *, force: bool = False) -> Answer[Operation]:
        """Let this node leave the farm as planned. Refused without `force` if the farm would go dark."""
        return self._call("POST", "/v1/leave", "Operation", {"force": force})

    def mirror(self) -> Answer[dict[str, Any]]:
        """The state of the mirror whose socket this is."""
        return self._call("GET", "/v1/mirror", "MirrorStatus")

    def order_mirror(self, verb: str, body: dict[str, Any]) -> Answer[dict[str, Any]]:
        """Give the mirror an order."""
        return self._call("POST", f"/v1/mirror/{quote(verb, safe='')}", "Operation", body)

    def _change(self, member: str, what: str, body: dict[str, Any]) -> Answer[Operation]:
        return self._call("POST", f"/v1/members/{quote(member, safe='')}/{what}", "Operation", body)

    def _call(
        self, method: str, target: str, kind: str, body: dict[str, Any] | None = None, *, extra_s: float = 0.0
    ) -> Answer[Any]:
        connection = _UnixConnection(self.path, self.timeout_s + extra_s)
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, target, payload, {"Content-Type": "application/json"} if payload else {})
            response = connection.getresponse()
            status, raw = response.status, response.read()
        except TimeoutError as error:
            raise self._timed_out(method) from error
        except PermissionError as error:
            raise NotPermitted(
                f"socket {self.path}",
                "you may not open it",
                "Run farmctl as root, or as a member of the socket's group",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        return self._read(status, raw, kind)

    def _read(self, status: int, raw: bytes, kind: str) -> Answer[Any]:
        try:
            envelope = json.loads(raw)
            if envelope["apiVersion"] != API_VERSION:
                raise ValueError(f"API version {envelope['apiVersion']}")
            data = envelope["data"]
            if envelope["kind"] == "Error":
                raise _error(data)
            if status != 200 or envelope["kind"] != kind:
                raise ValueError(f"{envelope['kind']} with status {status}")
            return Answer(data, envelope["node"], envelope["generatedAt"], tuple(envelope["warnings"]), envelope)
        except (ValueError, KeyError, TypeError) as error:
            raise DaemonUnreachable(
                f"socket {self.path}",
                f"what answers there does not speak {API_VERSION} ({error})",
                "Check --socket, and that farmd and farmctl are of the same release",
            ) from error

    def _timed_out(self, method: str) -> TimedOut:
        rest = "" if method == "GET" else "; what you asked for may still be done"
        return TimedOut(
            f"farmd on {self.path}",
            f"it did not answer within {self.timeout_s:g} s{rest}",
            "Look at farmd's log, or wait longer with --timeout",
        )

    def _unreachable(self, error: OSError | http.client.HTTPException) -> DaemonUnreachable:
        if isinstance(error, FileNotFoundError):
            cause = "there is no such socket, so farmd does not run or serves another one"
        elif isinstance(error, ConnectionRefusedError):
            cause = "nobody listens on it, so farmd has stopped"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            cause = f"the connection failed ({reason})"
        return DaemonUnreachable(
            f"socket {self.path}", cause, "Start farmd (systemctl start farmd), or name its socket with --socket"
        )


class _UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the socket, within the same timeout."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _error(data: dict[str, Any]) -> FarmError:
    code, subject, cause, next_step = data["code"], data["subject"], data["cause"], data["next_step"]
    kind = _ERRORS.get(code)
    return RemoteError(code, subject, cause, next_step) if kind is None else kind(subject, cause, next_step)
