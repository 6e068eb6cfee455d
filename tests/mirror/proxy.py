# SPDX-License-Identifier: Apache-2.0
"""A bad wire: `python -m tests.mirror.proxy LISTEN_PORT HOST PORT` forwards TCP and does what its standard input says.

One order a line: `delay SECONDS` (of everything, in each direction), `rate BYTES` a second (0: no limit), `flip COUNT`
(one bit of the next COUNT pieces that go to HOST), `stall` (nothing moves any more), `go` (as at first).
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from types import TracebackType


class Wire:
    """What happens to bytes."""

    def __init__(self) -> None:
        self.delay_s, self.rate, self.flips = 0.0, 0.0, 0
        self.moving = asyncio.Event()
        self.moving.set()

    def order(self, line: str) -> None:
        word, _, value = line.strip().partition(" ")
        match word:
            case "delay":
                self.delay_s = float(value)
            case "rate":
                self.rate = float(value)
            case "flip":
                self.flips = int(value)
            case "stall":
                self.moving.clear()
            case "go":
                self.delay_s, self.rate, self.flips = 0.0, 0.0, 0
                self.moving.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, outward: bool) -> None:
        """Everything from one side to the other, later if there is a delay."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        sending = asyncio.create_task(self._send(line, writer))
        now = asyncio.get_running_loop().time
        try:
            while data := await reader.read(65536):
                if outward and self.flips and len(data) > 200:
                    self.flips -= 1
                    data = data[:100] + bytes([data[100] ^ 4]) + data[101:]
                await line.put((now() + self.delay_s, data))
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
        except OSError:
            pass
        await line.put((0.0, b""))
        await sending

    async def _send(self, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = await line.get()
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
                await self.moving.wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        writer.close()
        # The other task must not wait for room that nobody makes.
        while not line.empty():
            line.get_nowait()


async def _run(port: int, host: str, to: int) -> None:
    wire = Wire()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(wire.carry(reader, back, True), wire.carry(there, writer, False))

    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with await asyncio.start_server(accept, "0.0.0.0", port):
        print("ready", flush=True)
        while line := await orders.readline():
            wire.order(line.decode())


class Proxy:
    """A wire that runs in a network namespace, and our hand on it."""

    def __init__(self, netns: str, port: int, host: str, to: int) -> None:
        command = ["nsenter", f"--net=/run/netns/{netns}", sys.executable, "-m", "tests.mirror.proxy"]
        command += [str(port), host, str(to)]
        here = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Proxy:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def order(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    asyncio.run(_run(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
