# SPDX-License-Identifier: Apache-2.0
"""The daemon's end of its line to the engine: JSON lines over a unix socket of mode 0600.

The daemon asks (`{"ask": ..., "n": 7, ...}`) and gets one answer (`{"n": 7, ...}`); events come unasked
(`{"event": ...}`).
The engine closes nothing when the line breaks: it goes on for its grace time, so that a daemon can be restarted under
traffic, and leaves the farm by itself when nobody comes back.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from farmd.daemon.report import EngineReport, decode_report
from farmd.model.errors import DaemonUnreachable, FarmError, KernelError, TimedOut

LINE_LIMIT = 4 << 20
"""Longest line in bytes: a report with 16 groups is about 100 kB."""
_ANSWER_TIMEOUT_S = 2.0


class EngineLink:
    """A connection to a running engine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.lost = asyncio.Event()
        """Set once the engine is gone."""

    @classmethod
    async def connect(cls, path: Path) -> EngineLink | None:
        """The engine that listens at `path`, or None when there is none."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(path), limit=LINE_LIMIT)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise KernelError(f"engine socket {path}", error.strerror or str(error), "Run farmd as root") from error
        return cls(reader, writer)

    async def listen(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Deliver answers and events until the engine is gone; run this as a task."""
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                if "event" in message:
                    on_event(message["event"])
                    continue
                waiting = self._waiting.pop(message["n"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
        except (ConnectionError, ValueError):
            pass  # Torn off in the middle of a line: the same as a closed connection.
        finally:
            self.lost.set()
            self._writer.close()
            for waiting in self._waiting.values():
                waiting.cancel()

    async def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Ask the engine and wait for its answer.

        Raises:
            DaemonUnreachable: the engine is gone.
            TimedOut: it did not answer within two seconds.
            FarmError: what the engine itself refused.
        """
        if self.lost.is_set():
            raise _gone()
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._writer.write(json.dumps({"ask": what, "n": number, **arguments}).encode() + b"\n")
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await self._writer.drain()
                message = await answer
        except TimeoutError as error:
            raise TimedOut(
                "the membership engine",
                f"it did not answer within {_ANSWER_TIMEOUT_S:.0f} s",
                "If it stays so, see the daemon's log and restart farmd",
            ) from error
        except (ConnectionError, asyncio.CancelledError) as error:
            if self.lost.is_set() or isinstance(error, ConnectionError):
                raise _gone() from error
            raise
        finally:
            self._waiting.pop(number, None)
        if "error" in message:
            raise FarmError(*message["error"])
        return message

    async def report(self) -> EngineReport:
        """The engine's snapshot of itself."""
        return decode_report((await self.ask("report"))["report"])

    def close(self) -> None:
        """Hang up; the engine goes on."""
        self._writer.close()


def _gone() -> DaemonUnreachable:
    return DaemonUnreachable(
        "the membership engine", "its process ended", "farmd starts a new one; look again in a few seconds"
    )
