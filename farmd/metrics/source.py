# SPDX-License-Identifier: Apache-2.0
"""Where the numbers come from: the daemon in this process, or any daemon through its local API."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from farmd.client import Client
from farmd.model.answers import Counters, EventData, EventList, FarmStatus
from farmd.model.errors import DaemonUnreachable, TimedOut

_PAGE = 1000
"""Events in one answer: the most that the API gives."""
_TIMEOUT_S = 5.0

T = TypeVar("T")


class Source(Protocol):
    """What a scrape reads. Every method blocks, for seconds at most, and may raise FarmError."""

    def status(self) -> FarmStatus:
        """The farm as the node sees it."""

    def counters(self) -> Counters:
        """The filter's counters."""

    def events(self, after: int) -> Sequence[EventData]:
        """The oldest events after id `after`, none if there are none; all that are kept if `after` is no id there."""


class ApiSource:
    """A daemon behind its unix socket."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def status(self) -> FarmStatus:
        """The farm as the node sees it."""
        return self._client.status().data

    def counters(self) -> Counters:
        """The filter's counters."""
        return self._client.counters().data

    def events(self, after: int) -> Sequence[EventData]:
        """A page of events after id `after`."""
        return self._client.events(after=after, limit=_PAGE).data["events"]


class Backend(Protocol):
    """The part of `farmd.daemon.api.Backend` that a scrape needs."""

    async def status(self) -> FarmStatus:
        """The farm as the node sees it."""

    async def counters(self) -> Counters:
        """The filter's counters."""

    async def events(self, after: int, limit: int, wait_s: float) -> EventList:
        """Up to `limit` events after id `after`."""


class LoopSource:
    """The daemon of this process: called from the exporter's threads, answered on the daemon's event loop."""

    def __init__(self, backend: Backend, loop: asyncio.AbstractEventLoop) -> None:
        self._backend = backend
        self._loop = loop

    def status(self) -> FarmStatus:
        """The farm as the node sees it."""
        return self._ask(self._backend.status())

    def counters(self) -> Counters:
        """The filter's counters."""
        return self._ask(self._backend.counters())

    def events(self, after: int) -> Sequence[EventData]:
        """A page of events after id `after`."""
        return self._ask(self._backend.events(after, _PAGE, 0.0))["events"]

    def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        try:
            future = asyncio.run_coroutine_threadsafe(question, self._loop)
        except RuntimeError as error:
            question.close()
            raise DaemonUnreachable("farmd", "it is ending", "Scrape again once it runs") from error
        try:
            return future.result(_TIMEOUT_S)
        except TimeoutError as error:
            future.cancel()
            raise TimedOut("farmd", f"its loop did not answer within {_TIMEOUT_S:g} s", "See its log") from error
