# SPDX-License-Identifier: Apache-2.0
"""One pass of the checksum engine over a connection between the nodes, in a thread, with TLS if there are keys."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from farmd.mirror.checksum import Finding, Mode, Options, Pass, Progress, Run
from farmd.mirrord.keys import Keys, check_name
from farmd.model.errors import PeerError

MAX_FINDINGS = 20_000
MAX_FINDING_BYTES = 2 << 20
"""Names that a report carries, and their bytes; there may be more, and then it says so."""
_PART_BYTES = 64 * 1024
"""Of names, in one message."""
_BESIDE_PATH_BYTES = 16
_Item = TypeVar("_Item")
_CHUNK = 256 * 1024
_HANDSHAKE_S = 5.0


class BulkPass:
    """One end of one pass. `run` may be called once; `stop` and `progress` at any time."""

    def __init__(
        self,
        root: Path,
        record: Path,
        mode: Mode,
        passes: Pass,
        rate_bytes_s: int,
        probe_bytes: int,
        excluded: tuple[str, ...] = (),
        only: tuple[bytes, ...] | None = None,
    ) -> None:
        changes = mode is Mode.SYNC and only is None
        self.mode = mode
        self._run = Run(
            Options(
                root,
                # A comparison, or one of a few names, must neither believe nor replace what the last sync recorded.
                record=record if changes else None,
                mode=mode,
                passes=passes,
                resume=changes,
                rate_bytes_s=rate_bytes_s,
                probe_bytes=probe_bytes,
                excluded=excluded,
                only=only,
            )
        )
        self.findings: tuple[Finding, ...] = ()
        self.more = False
        """There were more findings than a report carries."""

    async def run(self, sock: socket.socket, *, source: bool, keys: Keys | None, peer: str) -> Progress:
        """Until the pass is over; `sock` is closed. Raises FarmError."""
        try:
            return await asyncio.to_thread(self.over, sock, source=source, keys=keys, peer=peer)
        except asyncio.CancelledError:
            self.stop()
            raise

    def stop(self) -> None:
        """End soon: `run` raises."""
        self._run.stop()

    def limit(self, rate_bytes_s: int, read_bytes_s: int = 0) -> None:
        """What a source sends of contents from now on, and what this side reads of them; 0: no limit."""
        self._run.limit(rate_bytes_s, read_bytes_s)

    def progress(self) -> Progress:
        """The counters now."""
        return self._run.progress()

    def over(self, sock: socket.socket, *, source: bool, keys: Keys | None, peer: str) -> Progress:
        """`run`, for a thread that may block."""
        sock.setblocking(True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            plain = stack.enter_context(_secured(sock, keys, peer, server=not source)) if keys else sock
            end = self._run.source if source else self._run.target
            try:
                counters = end(plain.fileno(), plain.fileno())
                self.findings = tuple(_some(self._run.findings()))
                self.more = len(self.findings) < _count(counters)
            finally:
                self._run.close()
        return counters


@contextlib.contextmanager
def secured(sock: socket.socket, keys: Keys | None, peer: str) -> Iterator[socket.socket]:
    """What to read and write when the peer has called: TLS if there are keys. For one thread. Raises FarmError."""
    if keys is None:
        yield sock
        return
    with _shake_hands(sock, keys, peer, server=True) as tls:
        tls.settimeout(None)
        yield tls


@contextlib.contextmanager
def _secured(sock: socket.socket, keys: Keys, peer: str, *, server: bool) -> Any:
    """A plain socket whose bytes travel over `sock` under TLS."""
    tls = _shake_hands(sock, keys, peer, server=server)
    ours, theirs = socket.socketpair()
    pump = threading.Thread(target=_pump, args=(theirs, tls), name="mirror-tls")
    pump.start()
    try:
        yield ours
    finally:
        ours.close()
        pump.join()
        theirs.close()
        tls.close()


def _shake_hands(sock: socket.socket, keys: Keys, peer: str, *, server: bool) -> ssl.SSLSocket:
    sock.settimeout(_HANDSHAKE_S)
    context = keys.server() if server else keys.client()
    try:
        tls = context.wrap_socket(sock, server_side=server, server_hostname=None if server else peer)
    except (OSError, ssl.SSLError) as error:
        raise PeerError("the peer", f"the TLS handshake failed ({error})", "See that both nodes have keys") from error
    try:
        check_name(tls, peer)
    except PeerError:
        tls.close()
        raise
    return tls


def _pump(plain: socket.socket, tls: ssl.SSLSocket) -> None:
    """Both directions in one thread: a TLS connection must not be read and written by two."""
    plain.setblocking(False)
    tls.setblocking(False)
    out, into = b"", b""  # from plain to TLS, from TLS to plain
    with contextlib.suppress(OSError):
        while True:
            reading: list[socket.socket] = [] if into else [tls]
            reading += [] if out else [plain]
            writing: list[socket.socket] = ([tls] if out else []) + ([plain] if into else [])
            ready = tls.pending() and not into
            select.select(reading, writing, [], 0 if ready else 60)
            if not out:
                with contextlib.suppress(BlockingIOError):
                    out = plain.recv(_CHUNK)
                    if not out:
                        return
            if out:
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    out = out[tls.send(out) :]
            if not into:
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    into = tls.recv(_CHUNK)
                    if not into:
                        plain.shutdown(socket.SHUT_WR)
                        return
            if into:
                with contextlib.suppress(BlockingIOError):
                    into = into[plain.send(into) :]


def _some(findings: Iterator[Finding]) -> Iterator[Finding]:
    room = MAX_FINDING_BYTES
    for one in itertools.islice(findings, MAX_FINDINGS):
        room -= len(one.path)
        if room < 0:
            return
        yield one


def _count(counters: Progress) -> int:
    return counters.files_differing + counters.files_changing + counters.errors


def parts(bulk: BulkPass) -> Iterator[list[list[Any]]]:
    """What the target's end found, JSON-ready, in parts that fit a message."""
    for some in in_parts(bulk.findings, lambda one: one.path):
        yield [[int(one.kind), one.path.hex(), one.error] for one in some]


def in_parts(items: Iterable[_Item], path_of: Callable[[_Item], bytes]) -> Iterator[list[_Item]]:
    """So many at a time that they fit a message."""
    part, room = list[_Item](), _PART_BYTES
    for one in items:
        size = len(path_of(one)) + _BESIDE_PATH_BYTES
        if part and size > room:
            yield part
            part, room = [], _PART_BYTES
        part.append(one)
        room -= size
    if part:
        yield part
