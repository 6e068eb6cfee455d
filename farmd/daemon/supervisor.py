# SPDX-License-Identifier: Apache-2.0
"""Keeps one engine running and the line to it open.

An engine that already runs is taken over as it is: it outlives its daemon, which is why restarting farmd loses no
packet. Only one that runs with another configuration is asked to leave, in the planned way, and replaced.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from farmd.daemon.enginelink import EngineLink
from farmd.daemon.report import EngineReport
from farmd.model.config import Delivery, FarmConfig
from farmd.model.errors import DaemonUnreachable, FarmError, PeerError

_CONNECT_TIMEOUT_S = 10.0
_CONNECT_INTERVAL_S = 0.02
_RESTART_PAUSE_S = 1.0
_REPLACE_TIMEOUT_S = 10.0

Tell = Callable[[str, str], None]
"""Records an event: type and text."""


class EngineSupervisor:
    """Owns the engine process's coming and going; `report` and `ask` go to whichever runs."""

    def __init__(
        self,
        config: FarmConfig,
        config_path: Path,
        fingerprint: str,
        on_event: Callable[[dict[str, Any]], None],
        tell: Tell,
        *,
        maps_are_new: bool = False,
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._fingerprint = fingerprint
        self._on_event = on_event
        self._tell = tell
        self._maps_are_new = maps_are_new
        self._link: EngineLink | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.leaving = False
        """Set before asking for a planned leave: the engine's end is then the wanted end."""

    async def run(self) -> None:
        """Keep an engine until it leaves the farm on request."""
        while not self.leaving:
            try:
                link = await self._connect_or_start()
            except FarmError as error:
                self._tell("engine.failed", str(error))
                await asyncio.sleep(_RESTART_PAUSE_S)
                continue
            listener = asyncio.create_task(link.listen(self._on_event), name="engine listener")
            try:
                if await self._is_ours(link):
                    self._link = link
                    await link.lost.wait()
                    self._link = None
                    self._reap()
                    if not self.leaving:
                        self._tell("engine.lost", "the membership engine ended; starting another")
            finally:
                link.close()
                listener.cancel()
                with suppress(asyncio.CancelledError):
                    await listener

    async def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Ask the engine (see `EngineLink.ask`).

        Raises:
            DaemonUnreachable: none runs now.
        """
        return await self._running().ask(what, **arguments)

    async def report(self) -> EngineReport:
        """The engine's snapshot of itself."""
        return await self._running().report()

    def _running(self) -> EngineLink:
        if self._link is None:
            raise DaemonUnreachable(
                "the membership engine", "it is not running yet", "Look again in a second; else see the log"
            )
        return self._link

    async def _connect_or_start(self) -> EngineLink:
        link = await EngineLink.connect(self._config.engine_socket)
        if link is not None:
            self._tell("engine.found", "an engine is running: taking it over, the farm did not notice")
            return link
        self._maps_are_new = False
        self._process = _start_engine(self._config_path)
        deadline = asyncio.get_running_loop().time() + _CONNECT_TIMEOUT_S
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_CONNECT_INTERVAL_S)
            if self._process.poll() is not None:
                raise PeerError(
                    "the membership engine",
                    f"it ended at its start with status {self._process.returncode}",
                    "Its last log line says why",
                )
            link = await EngineLink.connect(self._config.engine_socket)
            if link is not None:
                self._tell("engine.started", f"the membership engine runs as process {self._process.pid}")
                return link
        raise PeerError(
            "the membership engine", f"it did not open its socket within {_CONNECT_TIMEOUT_S:.0f} s", "See the log"
        )

    async def _is_ours(self, link: EngineLink) -> bool:
        """Whether the engine runs with our configuration; one that doesn't is told to leave, and we wait for that."""
        try:
            report = await link.report()
            if report.fingerprint == self._fingerprint and not self._maps_are_new:
                if self._config.delivery is Delivery.DIRECTED:
                    vips = [str(vip) for vip in self._config.vips]
                    await link.ask("service", vips=vips, interfaces=self._config.interfaces)
                return True
            reason = "the filter's maps are new" if self._maps_are_new else "it runs with another configuration"
            # The next engine opens the maps of now.
            self._maps_are_new = False
        except (FarmError, KeyError, TypeError, ValueError) as error:
            reason = f"it does not speak our version ({error})"
        self._tell("engine.replaced", f"{reason}: it leaves the farm, a new one joins")
        with suppress(FarmError):
            await link.ask("request", kind="leave")
        with suppress(TimeoutError):
            async with asyncio.timeout(_REPLACE_TIMEOUT_S):
                await link.lost.wait()
        return False

    def _reap(self) -> None:
        """Engines of ours that ended; one may be from before a reload, so a pid alone is not enough."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.5)
        with suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


def _start_engine(config_path: Path) -> subprocess.Popen[bytes]:
    # Its own session, so that no signal meant for the daemon's group reaches it. Not asyncio's subprocess: that one
    # kills its child when the loop closes.
    return subprocess.Popen(
        [sys.executable, "-m", "farmd.daemon.engine", "--config", str(config_path)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
