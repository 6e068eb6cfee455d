# SPDX-License-Identifier: Apache-2.0
"""What happened, kept on disk: a bounded ring of events whose ids increase for ever, also across restarts.

Two JSON lines files in the state folder: `events.jsonl` is appended to, one `write` a line, and becomes
`events.1.jsonl` (over the one before) when it holds `keep` lines; so `keep` to 2 x `keep` events are on disk. A
killed process leaves whole lines; a power cut may tear the last ones, and what cannot be read is passed over. A full
disk loses events on disk, never in memory, and never stops the daemon.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from farmd.model.answers import EventData
from farmd.model.errors import KernelError

KEEP = 4096
"""Events in memory, and lines in one file."""
_CURRENT = "events.jsonl"
_PREVIOUS = "events.1.jsonl"

_log = logging.getLogger(__name__)


class EventLog:
    """The ring and its readers. All calls come from the daemon's event loop; an event is on disk before it is seen."""

    def __init__(self, folder: Path, *, keep: int = KEEP, now: Callable[[], datetime] | None = None) -> None:
        """Read back what `folder` holds and go on from there; the folder is made if it is missing.

        Raises:
            KernelError: the folder or file cannot be written.
        """
        self._path = folder / _CURRENT
        self._previous = folder / _PREVIOUS
        self._keep = keep
        self._now = now or (lambda: datetime.now(UTC))
        self._closed = False
        self._waiters: set[asyncio.Future[None]] = set()
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            current = _read(self._path)
            self._ring = deque(_increasing([*_read(self._previous), *current]), maxlen=keep)
            self._file = _open(self._path)
            self._lines = len(current)
        except OSError as error:
            raise KernelError(
                f"event log {self._path}",
                f"cannot be opened: {error.strerror or error}",
                "Run farmd as root and see that state_dir can be written",
            ) from error
        self._lost = False

    @property
    def last_id(self) -> int:
        """Id of the newest event, 0 before the first."""
        return self._ring[-1]["id"] if self._ring else 0

    @property
    def lost(self) -> bool:
        """Whether the newest event could not be written to disk."""
        return self._lost

    def append(self, kind: str, text: str, data: Mapping[str, Any] | None = None) -> EventData:
        """Log an event of type `kind` and wake whoever waits for one. `data` holds plain JSON values."""
        at = self._now().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = EventData(id=self.last_id + 1, at=at, type=kind, text=text, data=dict(data or {}))
        self._write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
        self._ring.append(event)
        self._wake()
        return event

    def since(self, after: int, limit: int) -> list[EventData]:
        """The oldest `limit` events with an id above `after`; a negative `after` counts back from the last id.

        An `after` above the last id comes from a log that is gone (the state folder was emptied): such a reader gets
        everything.
        """
        if after < 0:
            after += self.last_id
        elif after > self.last_id:
            after = 0
        return [event for event in self._ring if event["id"] > after][:limit]

    async def wait(self, after: int, limit: int, wait_s: float) -> list[EventData]:
        """Like `since`, but when there is nothing, wait up to `wait_s` seconds for the next event or for `close`."""
        events = self.since(after, limit)
        if events or wait_s <= 0 or self._closed:
            return events
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(wait_s):
                await waiter
        except TimeoutError:
            return []
        finally:
            self._waiters.discard(waiter)
        return self.since(after, limit)

    def close(self) -> None:
        """Let every waiting reader go and close the file; `since` still answers."""
        self._closed = True
        self._wake()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _write(self, line: bytes) -> None:
        try:
            if self._file < 0:
                raise OSError("it is closed")
            if self._lines >= self._keep:
                self._rotate()
            end = os.fstat(self._file).st_size
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, end)
                raise OSError(f"{written} of {len(line)} bytes written")
        except OSError as error:
            if not self._lost:
                _log.error("event log %s: %s; events are kept in memory only", self._path, error.strerror or error)
            self._lost = True
        else:
            self._lines += 1
            self._lost = False

    def _rotate(self) -> None:
        os.replace(self._path, self._previous)
        fresh = _open(self._path)
        os.close(self._file)
        self._file, self._lines = fresh, 0


def _open(path: Path) -> int:
    """`path` for appending, without a torn last line: what is appended next starts on a line of its own."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        whole = path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(file, whole)
    return file


def _read(path: Path) -> list[EventData]:
    """The events in `path`; lines that are none are passed over."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    return [event for line in raw.split(b"\n")[:-1] if (event := _parse(line)) is not None]


def _increasing(events: list[EventData]) -> list[EventData]:
    kept: list[EventData] = []
    for event in events:
        if not kept or event["id"] > kept[-1]["id"]:
            kept.append(event)
    return kept


def _parse(line: bytes) -> EventData | None:
    try:
        value = json.loads(line)
        event = EventData(
            id=value["id"], at=value["at"], type=value["type"], text=value["text"], data=dict(value["data"])
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = (event["at"], event["type"], event["text"])
    return event if type(event["id"]) is int and all(isinstance(text, str) for text in texts) else None
