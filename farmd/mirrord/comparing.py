# SPDX-License-Identifier: Apache-2.0
"""Comparisons that people order: `diff` and `verify`, one at a time, while the mirror goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from farmd.mirror import commands as do
from farmd.mirror import events as on
from farmd.mirror.checksum import Mode
from farmd.mirror.orders import Check, Order
from farmd.mirror.orders import Resync as ResyncOrder
from farmd.mirrord.resync import Resync, Tree, outcome
from farmd.model.errors import FarmError, KernelError


@dataclass(slots=True)
class Job:
    """A verify or diff, from its beginning to its last word."""

    what: str
    number: int
    state: str = "running"
    result: dict[str, Any] = field(default_factory=dict)


class Comparing:
    """The comparison that goes on, or the last one."""

    def __init__(
        self,
        resync: Resync,
        tree: Tree,
        post: Callable[[on.Event], None],
        start: Callable[[Coroutine[Any, Any, None]], None],
        order: Callable[[Order, float], Awaitable[None]],
        epoch: Callable[[], int],
    ) -> None:
        """`start` begins a task of the present connection, `order` asks the core."""
        self._resync, self._tree, self._post = resync, tree, post
        self._start, self._order, self._epoch = start, order, epoch
        self.job: Job | None = None

    async def begin(self, what: Mode, timeout_s: float, *, connected: bool, repair: bool = False) -> Job:
        """Start a comparison. Raises KernelError if there is one or no peer, Refused if it is not this node's part."""
        if not connected:
            raise KernelError(what.name.lower(), "the peer is not connected", "See `farmctl mirror status`")
        if self.job is not None and self.job.state == "running":
            raise KernelError(what.name.lower(), f"a {self.job.what} goes on", "Wait for its end")
        before = self.job
        job = self.job = Job(what.name.lower(), (before.number if before else 0) + 1)
        if what is Mode.DIFF:
            self._start(self._compare(job, self._diff()))
            return job
        try:
            await self._order(Check(repair), timeout_s)
        except FarmError:
            self.job = before
            raise
        return job

    async def _compare(self, job: Job, work: Coroutine[Any, Any, dict[str, Any]]) -> None:
        try:
            job.result = await work
            job.state = "done"
        except (OSError, TimeoutError, FarmError) as error:
            job.state, job.result = "failed", {"error": str(error)}
        except asyncio.CancelledError:
            job.state, job.result = "failed", {"error": "the peer was lost"}
            raise

    def verify(self, command: do.Verify) -> None:
        """The core allows the check that `begin` ordered."""
        assert self.job is not None, "only `begin` orders a check"
        self._start(self._compare(self.job, self._verify(command)))

    async def _diff(self) -> dict[str, Any]:
        counters, found = await self._resync.compare(Mode.DIFF)
        return outcome(counters, found, self._resync.place) | {"estimate_s": self._resync.estimate(counters)}

    async def _verify(self, order: do.Verify) -> dict[str, Any]:
        epoch = self._epoch()
        try:
            counters, found = await self._resync.verify(self._tree, epoch, repair=order.repair)
        finally:
            if self._resync.mending:
                # Half mended, perhaps for the peer was lost, and no log knows of it: only a whole comparison helps.
                self._post(on.Ordered(ResyncOrder()))
        result = outcome(counters, found, self._resync.place) | {"repaired": order.repair}
        self._post(on.VerifyEnded(order.session, 0 if order.repair else result["differences"]))
        return result
