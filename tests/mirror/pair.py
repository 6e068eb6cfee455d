# SPDX-License-Identifier: Apache-2.0
"""A primary and a secondary on this machine, each an engine process of its own, joined by TCP over loopback."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from farmd.mirror.engine import MESSAGE_BYTES
from tests.mirror.uring import WANTED

DEADLINE_S = 60.0


class EngineError(Exception):
    """What the engine answered instead of `ok`."""


class EngineProcess:
    """`python -m farmd.mirror.engine`, or another such module, and our end of its control socket."""

    def __init__(self, *inherited: int, module: str = "farmd.mirror.engine") -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "--control", str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *inherited],
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            )
        self.control = ours
        self.events: list[dict[str, Any]] = []
        self._last = 0

    def _read(self, timeout_s: float) -> dict[str, Any] | None:
        if not select.select([self.control], [], [], timeout_s)[0]:
            return None
        data = self.control.recv(MESSAGE_BYTES)
        if not data:
            raise EngineError("the engine is gone")
        message: dict[str, Any] = json.loads(data)
        return message

    def do(self, verb: str, *fds: int, **order: Any) -> dict[str, Any]:
        """One order and its answer; events that come meanwhile are kept."""
        self._last += 1
        message = json.dumps({"id": self._last, "do": verb} | order).encode()
        socket.send_fds(self.control, [message], list(fds))
        end = time.monotonic() + DEADLINE_S
        while (left := end - time.monotonic()) > 0:
            answer = self._read(left)
            if answer is not None and "event" in answer:
                self.events.append(answer)
            elif answer is not None and answer["id"] == self._last:
                if "error" in answer:
                    raise EngineError(answer["error"]["text"])
                return answer
        raise EngineError(f"no answer to {verb}")

    def wait_for(self, event: str, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """The next event of this name, also one that came before."""
        return self.wait_for_any(event, timeout_s=timeout_s)

    def wait_for_any(self, *names: str, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """The next event of one of these names."""
        end = time.monotonic() + timeout_s
        while True:
            for index, each in enumerate(self.events):
                if each["event"] in names:
                    return self.events.pop(index)
            message = self._read(max(0.0, end - time.monotonic()))
            if message is None:
                raise EngineError(f"no event {names} within {timeout_s} s; had {self.events[-5:]}")
            self.events.append(message)

    def kill(self) -> None:
        """As a crash would end it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """The engine unmounts by force and ends when its control socket closes."""
        self.control.close()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()


def connected() -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    return client, accepted


class Pair:
    """Directories `backing` (mounted at `mount`) and `copy` under one scratch folder, and the engines for them."""

    def __init__(self, folder: Path | None = None, copies: Path | None = None, **settings: Any) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="mirrorfs-", dir=folder))
        self.base.chmod(0o755)
        self.backing, self.mount = self.base / "backing", self.base / "mount"
        self.copy = (copies or self.base) / "copy"
        for each in (self.backing, self.mount, self.copy):
            each.mkdir()
        self.settings = {"uring": WANTED} | settings
        self.session = 100
        self.primary = EngineProcess()
        self.secondary = EngineProcess()

    def __enter__(self) -> Pair:
        try:
            wanted = {"backing": str(self.backing), "mount_point": str(self.mount)} | self.settings
            self.primary.do("mount", settings=wanted)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def join(
        self,
        tls: tuple[dict[str, str], dict[str, str]] | None = None,
        ends: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:
        """Start replication, over `ends` or a connection of its own; both trees must be equal."""
        self.session += 1
        ours, theirs = ends or connected()
        with ours, theirs:
            order: dict[str, Any] = {"session": self.session, "epoch": 1}
            theirs_order = order | {"backing": str(self.copy)} | ({"tls": tls[1]} if tls else {})
            self.secondary.do("receive", theirs.fileno(), **theirs_order)
            self.primary.do("attach", ours.fileno(), **order | ({"tls": tls[0]} if tls else {}))

    def settle(self) -> None:
        """Until the copy has everything."""
        self.primary.do("settle", timeout_ms=int(DEADLINE_S * 1000))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.primary.close()
        self.secondary.close()
        # A killed engine leaves a dead mount behind.
        subprocess.run(["umount", "-l", str(self.mount)], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", "--one-file-system", str(self.base), str(self.copy)], check=False)
