# SPDX-License-Identifier: Apache-2.0
"""A child of a node (`farmd.mirrord.worker`) and this end of its control socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from farmd.mirror.engine import MESSAGE_BYTES
from farmd.model.errors import KernelError

Message = dict[str, Any]
ANSWER_S = 30.0


class Engine:
    """Orders go in, answers come back in any order, events are handed on. `on_event` gets {"event": "gone"} last."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process, self._control = process, control
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._number = 0
        self.on_event: Callable[[Message], None] = lambda _: None
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, *inherited: int) -> Engine:
        """A process that has the descriptors `inherited` under their numbers."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "farmd.mirrord.worker", "--control", str(theirs.fileno())),
                pass_fds=[theirs.fileno(), *inherited],
            )
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    async def do(self, verb: str, *fds: int, **order: Any) -> Message:
        """One order and its answer. Raises KernelError: refused, or the process is gone."""
        self._number += 1
        number = self._number
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        data = json.dumps({"id": number, "do": verb} | order).encode()
        try:
            socket.send_fds(self._control, [data], list(fds))
            async with asyncio.timeout(ANSWER_S):
                answer: Message = await answered
        except (OSError, TimeoutError) as error:
            raise KernelError(
                "the mirror's data path", f"{verb} was not answered ({error!r})", "See the log"
            ) from error
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            raise KernelError("the mirror's data path", answer["error"]["text"], "See the log")
        return answer

    async def end(self) -> None:
        """End the process and wait until it is gone: nothing of it touches the disk any more."""
        self._control.close()
        self._reader.cancel()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self._control, MESSAGE_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            message = json.loads(data)
            if "event" in message:
                self.on_event(message)
            elif (answered := self._waiting.get(message["id"])) is not None and not answered.done():
                answered.set_result(message)
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_exception(ConnectionResetError("the process is gone"))
        self.on_event({"event": "gone"})


def path_of(fd: int) -> str:
    """A path that names the directory behind a descriptor, whatever is mounted on its own path."""
    os.fstat(fd)
    return f"/proc/self/fd/{fd}"
