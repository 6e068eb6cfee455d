# SPDX-License-Identifier: Apache-2.0
"""Serves the local API on a unix socket that we bind ourselves, so that its mode is right from its first moment."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.types import ASGIApp

from farmd.model.errors import BadRequest, FarmError, KernelError, Refused

_UMASK = 0o117
"""Leaves mode 0660: root and the socket's group."""
_BACKLOG = 64
_GRACE_S = 1
"""How long requests that are under way may go on when the daemon stops."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals belong to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: ASGIApp, path: Path, stop: asyncio.Event) -> None:
    """Serve `app` at `path` until `stop` is set; requests under way get a second to end, then the socket is removed.

    Raises:
        Refused: another farmd serves this socket.
        KernelError: the socket cannot be made.
    """
    with listening(path) as listener:
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="api-server")
        stopping = asyncio.create_task(stop.wait(), name="api-stop")
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            server.should_exit = True
            await serving


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, mode 0660, and its file's removal at the end.

    A lock file beside the socket says whether its daemon lives: the kernel drops the lock with the process, so a dead
    daemon's socket file is told from a live one's without a race between two that start together.
    """
    with _lock(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        _remove_stale(path)
        # Under another name until it listens: whoever finds the socket can connect to it.
        unready = f"{path}.new"
        umask = os.umask(_UMASK)
        try:
            Path(unready).unlink(missing_ok=True)
            listener.bind(unready)
            listener.listen(_BACKLOG)
            os.rename(unready, path)
        except OSError as error:
            raise _cannot(path, error) from error
        finally:
            os.umask(umask)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _cannot(path, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _live(path) from error
        yield
    finally:
        os.close(lock)


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Refused(
                str(path),
                "a file that is not a socket is in the way",
                "Move it, or set another api_socket in farm.toml",
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        # BlockingIOError: somebody listens, with a full backlog.
        answer = probe.connect_ex(str(path))
    if answer in (0, errno.EAGAIN):
        raise _live(path)
    path.unlink(missing_ok=True)


def _live(path: Path) -> FarmError:
    return Refused(
        f"API socket {path}",
        "another process serves it",
        "Stop that farmd first, or set another api_socket in farm.toml",
    )


def _cannot(path: Path, error: OSError) -> FarmError:
    cause = error.strerror or str(error)  # "AF_UNIX path too long" has no errno
    return KernelError(
        f"API socket {path}", f"cannot be made: {cause}", "Run farmd as root and see that the folder can be written"
    )


async def read_object(request: Request, most_bytes: int) -> dict[str, Any]:
    """The JSON object in a request's body; an empty body counts as `{}`. Raises BadRequest."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > most_bytes:
            raise BadRequest("request body", f"it is longer than {most_bytes} bytes", "Send a shorter one")
    try:
        values = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest("request body", f"it is not JSON ({error})", "Send a JSON object") from error
    if not isinstance(values, dict):
        raise BadRequest("request body", "it is not a JSON object", "Send an object, such as {}")
    return values
