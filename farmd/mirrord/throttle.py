# SPDX-License-Identifier: Apache-2.0
"""Lets a resync, failback or verify give way to applications: what the data path measures, to the rate (`pace`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from farmd.mirror.config import Pace
from farmd.mirror.pace import Controller
from farmd.mirrord.wire import Message
from farmd.model.mirrorfile import MirrorConfig

TICK_S = 0.25
IDLE_S = 1.0
_KINDS = ("write_us", "sync_us")


class Work(Protocol):
    """What is throttled."""

    @property
    def gives_way(self) -> bool:
        """It goes on, and beside applications: a round in which they wait is never slowed down."""

    @property
    def ceiling_bytes_s(self) -> int:
        """The administrator's limit; 0: none."""

    async def pace(self, rate_bytes_s: int) -> None:
        """No faster from now on; 0: no limit."""


class Throttle:
    """One node's. `run` until it is cancelled."""

    def __init__(self, config: MirrorConfig, stats: Callable[[], Awaitable[Message]], work: Work) -> None:
        self._slowdown, self._stats, self._work = config.slowdown, stats, work
        self._before: dict[str, float] = {}
        self._usual: dict[str, float | None] = {}
        self._controller: Controller | None = None

    async def run(self) -> None:
        """Look a few times a second while there is work, once a second otherwise; nothing at all if it is off."""
        while self._slowdown:
            await asyncio.sleep(TICK_S if self._work.gives_way else IDLE_S)
            await self._look(self._fresh(await self._stats()))

    def shown(self) -> dict[str, Any] | None:
        """The rate now and why, for people; None: nothing is throttled."""
        if self._controller is None:
            return None
        return {"rate_bytes_s": self._controller.limit_bytes_s, "why": self._controller.why}

    async def _look(self, now: dict[str, float | None]) -> None:
        if not self._work.gives_way:
            self._usual, self._controller = now or self._usual, None
            return
        if self._controller is None:
            usual = [self._usual.get(kind) for kind in _KINDS]
            self._controller = Controller.start(Pace(slowdown=self._slowdown), *usual)
        limited = self._controller.limited(self._work.ceiling_bytes_s)
        self._controller = limited.sampled(*(now.get(kind) for kind in _KINDS))
        await self._work.pace(self._controller.limit_bytes_s)

    def _fresh(self, stats: Message) -> dict[str, float | None]:
        """Nanoseconds of each kind; None if the average has not moved, so that nobody did that since."""
        fresh = {kind: stats[kind] * 1000.0 for kind in _KINDS if kind in stats}
        before, self._before = self._before, fresh
        return {kind: ns if ns and ns != before.get(kind) else None for kind, ns in fresh.items()}
