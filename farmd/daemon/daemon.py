# SPDX-License-Identifier: Apache-2.0
"""The daemon process: wires filter, network, engine, sockets and API together, and lets each of them fail alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farmd.daemon import api, httpd
from farmd.daemon.backend import DaemonBackend
from farmd.daemon.clock import boot_ns
from farmd.daemon.connections import Census, count_behind_balancer, take_census
from farmd.daemon.eventlog import EventLog
from farmd.daemon.fingerprint import fingerprint
from farmd.daemon.healthserver import HealthChecks, HealthServer, drop_inherited
from farmd.daemon.keyfile import read_key_file
from farmd.daemon.log import log
from farmd.daemon.report import EngineReport
from farmd.daemon.supervisor import EngineSupervisor
from farmd.dataplane.filter import Filter
from farmd.dataplane.hash import bucket_of
from farmd.membership.keys import KeyRing
from farmd.model import farmfile
from farmd.model.answers import ProblemData
from farmd.model.config import Delivery, FarmConfig, Profile
from farmd.model.errors import ConfigError, FarmError
from farmd.model.interfaces import InterfaceFacts
from farmd.model.nodes import Role
from farmd.model.rules import Protocol
from farmd.net import gateway, listeners, sockets, solicited

if TYPE_CHECKING:
    from farmd.metrics.server import MetricsServer

_CENSUS_S = 1.0
_CENSUS_HOLDING_S = 0.25
"""While connections of moved buckets are waited for: a drain should end when the last one does."""
_GATEWAY_S = 0.2
_ANSWER_FIRST_S = 0.1
"""Between a reload's answer and the end of the server that sends it."""


class Ending(StrEnum):
    """Why a daemon ended."""

    STOPPED = "stopped"
    LEFT = "left"
    RELOAD = "reload"


class Daemon:
    """One node's daemon, from after its set-up to its end."""

    def __init__(
        self,
        config: FarmConfig,
        config_path: Path,
        ring: KeyRing,
        filter_: Filter | None,
        facts: Sequence[InterfaceFacts],
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._ending = Ending.STOPPED
        self._hash_key = ring.hash_key
        self._facts = facts
        self._stop = asyncio.Event()
        self._moved = asyncio.Event()
        """Buckets have moved: time to count sockets again."""
        self._problems: list[ProblemData] = []
        self._events = EventLog(config.state_dir)
        self._engine = EngineSupervisor(
            config,
            config_path,
            fingerprint(config, ring),
            self._on_event,
            self._tell,
            maps_are_new=filter_ is not None and filter_.fresh_maps,
        )
        self._backend = DaemonBackend(
            config, ring.hash_key, self._engine, filter_, self._events, self._problems, self.reload
        )
        self._app = api.build(self._backend)
        self._health: HealthServer | None = None
        for one in () if filter_ is None else filter_.attachments:
            how = "reattached" if one.reattached else "attached"
            self._tell("filter.attached", f"{how} to {one.interface} in {one.mode} mode: {one.reason}")

    def stop(self) -> None:
        """End this process; filter, VIPs and engine stay as they are."""
        if self._health is not None:
            self._health.stop_soon()
        self._stop.set()

    def reload(self) -> None:
        """Have the configuration read again, by ending with `Ending.RELOAD`.

        A start is made to happen under traffic (the pins and the engine outlive this process), so a reload is a start
        whose files were found valid beforehand.

        Raises:
            ConfigError: they are not; everything stays as it is.
        """
        try:
            config = farmfile.load(self._config_path)
            read_key_file(config.key_file)
        except ConfigError as error:
            self._tell("config.rejected", str(error))
            raise
        self._tell("config.accepted", "farm.toml is valid: starting again with it")
        self._ending = Ending.RELOAD
        asyncio.get_running_loop().call_later(_ANSWER_FIRST_S, self._stop.set)

    async def run(self) -> Ending:
        """Serve until stopped, until a reload, or until this node has left the farm.

        Raises:
            FarmError: the API's socket cannot be had.
        """
        groups = solicited.join(self._config.vips, self._facts) if self._config.filters else None
        await self._serve_health()
        served = asyncio.create_task(httpd.serve(self._app, self._config.api_socket, self._stop), name="api")
        engine = asyncio.create_task(self._engine.run(), name="engine supervisor")
        others: list[asyncio.Task[Any]] = [asyncio.create_task(self._stop.wait(), name="stop")]
        if self._config.me.role is Role.NODE:
            others.append(asyncio.create_task(self._count_sockets(), name="socket census"))
        if self._config.profile is Profile.AVAILABLE:
            others.append(asyncio.create_task(self._watch_gateway(), name="gateway watch"))
        metrics = self._serve_metrics()
        done, _ = await asyncio.wait([served, engine, *others], return_when=asyncio.FIRST_COMPLETED)
        if metrics is not None:
            metrics.stop()
        if engine in done and self._engine.leaving:
            self._ending = Ending.LEFT
        await self._end_health()
        self._stop.set()
        self._events.close()
        for task in (engine, *others):
            task.cancel()
        ended = await asyncio.gather(engine, *others, return_exceptions=True)
        if groups is not None:
            groups.close()
        await served  # Ends by itself, requests under way first; if it could not start, this says why.
        for error in ended:
            if isinstance(error, Exception):
                raise error
        return self._ending

    def _serve_metrics(self) -> MetricsServer | None:
        """Answer Prometheus if farm.toml says so; an address that cannot be had is no reason not to serve clients."""
        if self._config.metrics is None:
            return None
        from farmd.metrics.serve import serve  # Only those who want metrics pay for them.

        try:
            return serve(self._backend, self._config)
        except FarmError as error:
            self._tell("metrics.failed", str(error))
            self._problems.append(ProblemData(severity="warning", text=str(error), next_step=error.next_step))
            return None

    async def _serve_health(self) -> None:
        """Answer load balancers if farm.toml says so; clients who need none are served even if that fails."""
        if self._config.health is None:
            drop_inherited()
            return
        checks = HealthChecks(self._config, self._engine.report, self._listeners, boot_ns)
        server = HealthServer(checks, self._config.health)
        try:
            await server.start()
        except FarmError as error:
            self._tell("health.failed", str(error))
            severity = "error" if self._config.delivery is Delivery.EXTERNAL else "warning"
            self._problems.append(ProblemData(severity=severity, text=str(error), next_step=error.next_step))
            return
        self._health = server

    async def _end_health(self) -> None:
        if self._health is None:
            return
        if self._ending is Ending.RELOAD:
            await self._health.hand_over()
        else:
            self._health.close()

    def _listeners(self) -> list[listeners.Listener]:
        kinds = {rule.protocol for rule in self._config.rules}
        return [one for kind in Protocol if kind in kinds for one in listeners.listeners(kind)]

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["type"] == "view.started":
            self._moved.set()
        self._events.append(event["type"], event["text"], event["data"])

    def _tell(self, kind: str, text: str) -> None:
        log(self._config.me.name, kind, text)
        self._events.append(kind, text, {})

    async def _count_sockets(self) -> None:
        """Tell the engine how many connections live here, and which held buckets nobody needs any more."""
        while True:
            holding = False
            with suppress(FarmError):
                holding = await self._census(await self._engine.report())
            with suppress(TimeoutError):
                async with asyncio.timeout(_CENSUS_HOLDING_S if holding else _CENSUS_S):
                    await self._moved.wait()
            self._moved.clear()

    async def _census(self, report: EngineReport) -> bool:
        census = await asyncio.to_thread(self._look, report)
        # The ballot says "unless buckets have moved meanwhile".
        ballot = str(report.view and report.view.ballot)
        await self._engine.ask("connections", established=census.established, held=census.held, ballot=ballot)
        if any(census.forgettable):
            # No SYN passes in a held bucket, so an empty one stays empty.
            planes = [f"{plane:x}" for plane in census.forgettable]
            await self._engine.ask("forget-held", planes=planes, ballot=ballot)
        return any(plane.held for plane in report.planes)

    def _look(self, report: EngineReport) -> Census:
        config = self._config
        if config.delivery is Delivery.EXTERNAL:
            places = (*config.vips, *config.me.addresses)
            return count_behind_balancer(sockets.connections(places), config.rules, report.planes)
        found = sockets.connections(config.vips)
        return take_census(found, config.rules, report.planes, self._hash_key, bucket_of)

    async def _watch_gateway(self) -> None:
        address = self._config.gateway
        if address is None:
            return
        while True:
            with suppress(FarmError):
                reachable = await gateway.reachable(address, self._facts[0], _GATEWAY_S, self._config.me.addresses[0])
                await self._engine.ask("gateway", reachable=reachable)
            await asyncio.sleep(_GATEWAY_S)
