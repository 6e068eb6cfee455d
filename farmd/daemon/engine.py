# SPDX-License-Identifier: Apache-2.0
"""The engine process: runs the membership core over UDP and the kernel, and does nothing else.

It is the only writer of the planes and the lease. No disk, name service, subprocess or HTTP on this loop: a late engine
darkens its own node. Commands of the core are executed strictly in order, because "release, then promise" is what makes
the farm exclusive.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from farmd.daemon.clock import boot_ns, suspended_ns
from farmd.daemon.directed import Directed
from farmd.daemon.engineserver import EngineServer
from farmd.daemon.fingerprint import fingerprint
from farmd.daemon.keyfile import read_key_file
from farmd.daemon.log import log
from farmd.daemon.realtime import go_realtime
from farmd.daemon.report import EngineReport, PeerReport, encode_report
from farmd.daemon.servicewatch import ServiceWatch, service_interfaces
from farmd.daemon.transport import Transport
from farmd.membership.commands import Announce, Command, Halt, Happened, Send, WriteLease, WritePlanes, WriteRoutes
from farmd.membership.core import Node
from farmd.membership.keys import KeyRing
from farmd.membership.messages import Macs, Message
from farmd.membership.requests import Drain, Leave, Ready, Request, SetWeight
from farmd.membership.settings import Settings
from farmd.membership.wire import Channel, DropReason, Opened
from farmd.model import farmfile
from farmd.model.buckets import PlaneOf, plane_of
from farmd.model.config import Delivery, FarmConfig
from farmd.model.errors import FarmError
from farmd.model.nodes import BootId, NodeId, Role
from farmd.model.planes import CLOSED, Planes
from farmd.model.view import NO_BALLOT, weights_table

if TYPE_CHECKING:
    from farmd.dataplane.routes import RouteControl

_BATCH = 64
"""Datagrams taken from one socket before the loop looks at its timers again."""
_SUSPEND_TOLERANCE_NS = 50_000_000
"""Jiffies stand still in a suspend and BOOTTIME goes on; below this the two clocks just drift."""


class Kernel(Protocol):
    """The seam to the filter's maps: `farmd.dataplane.planes.KernelPlanes`, or nothing where there is no filter."""

    def write(self, group: int, planes: Planes) -> None:
        """Replace a group's planes."""

    def renew(self, deadline_boot_ns: int) -> None:
        """Let the filter accept until that instant; 0 closes it."""


class Engine:
    """Executes the core's commands and feeds it what happens."""

    def __init__(
        self,
        config: FarmConfig,
        ring: KeyRing,
        kernel: Kernel | None,
        transport: Transport,
        routes: RouteControl | None = None,
        plane_of: PlaneOf = plane_of,
    ) -> None:
        """`kernel` is None on a witness, `routes` unless the farm is directed; `plane_of` may be the fast one."""
        now = boot_ns()
        self._config = config
        self._fingerprint = fingerprint(config, ring)
        self._kernel = kernel
        self._transport = transport
        self._boot = BootId(secrets.randbits(64))
        self._node = Node(_settings(config), self._boot, now, plane_of)
        members = frozenset(member.id for member in config.members)
        self._channel = Channel(ring, config.farm, config.me.id, self._boot, members)
        self._written: list[Planes] = [CLOSED] * len(config.groups)
        self._deadline_ns = 0
        self._alive_ns = now
        self._suspended_ns = suspended_ns()
        self._timer: asyncio.TimerHandle | None = None
        names = service_interfaces(config)
        self._service = ServiceWatch(names, transport.sockets, config.timing, now)
        self._directed = None
        if routes is not None:
            self._directed = Directed(config, routes, names, transport.sockets[0], self._send, self._has_lease)
        self._usable = True
        self._stop = asyncio.Event()
        self._warnings: tuple[str, ...] = ()
        self._server = EngineServer(config.engine_socket, self._answer, self._orphaned)
        # A bench shows with it what a farm without `held` and `fresh` does to connections; never set in earnest.
        self._plain_swap = os.environ.get("FARMD_LAB_PLAIN_SWAP") == "1"

    async def run(self) -> None:
        """Serve until the core halts."""
        loop = asyncio.get_running_loop()
        if self._directed is not None:
            self._directed.forget_routes()
        self._close_filter()
        await self._server.start()
        for own in self._transport.sockets:
            loop.add_reader(own, self._readable, own)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave)
        self._warnings = go_realtime()
        for warning in self._warnings:
            log(self._config.me.name, "engine.slow", warning)
        self._wake()
        if self._directed is not None:
            self._directed.start()
        try:
            await self._stop.wait()
        finally:
            if self._directed is not None:
                self._directed.stop()
            self._close_filter()
            await self._server.close()
            self._transport.close()

    # What happens -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        now = self._notice_stall()
        usable = self._service.usable(now)
        if usable is not self._usable:
            self._usable = usable
            self._execute(self._node.service(now, usable))
        self._execute(self._node.tick(now))

    def _readable(self, own: socket.socket) -> None:
        self._notice_stall()
        for datagram, source in self._transport.receive(own, _BATCH):
            now = boot_ns()
            opened = self._channel.open(datagram, now)
            if isinstance(opened, Opened) or opened.reason is DropReason.DUPLICATE:
                self._service.heard(now, self._transport.sockets.index(own))
            if isinstance(opened, Opened) and isinstance(opened.message, Macs):
                if self._directed is not None:
                    self._directed.learn(opened.sender, opened.message)
            elif isinstance(opened, Opened):
                self._execute(self._node.receive(now, opened.sender, opened.message))
            elif opened.reply is not None:
                self._transport.reply(own, source, opened.reply)

    def _notice_stall(self) -> int:
        """Rule 8: after a stall of our own, what waits in the sockets is old news. Returns the time now."""
        now = boot_ns()
        pause, self._alive_ns = now - self._alive_ns, now
        suspended = suspended_ns()
        slept, self._suspended_ns = suspended - self._suspended_ns, suspended
        if slept > _SUSPEND_TOLERANCE_NS:
            self._write_lease(0)  # The planes stay as the core knows them: the next renewal opens them again.
        if pause > self._config.timing.lease_ns // 2 or slept > _SUSPEND_TOLERANCE_NS:
            self._transport.drop_backlog()
            now = self._alive_ns = boot_ns()
            self._execute(self._node.stalled(now, pause))
        return now

    def _orphaned(self) -> None:
        log(self._config.me.name, "engine.orphaned", "no daemon came back within the grace time: leaving the farm")
        self._leave()

    def _leave(self) -> None:
        self._execute(self._node.request(boot_ns(), Leave()))

    # What the core wants ----------------------------------------------------------------------------------------

    def _execute(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case WritePlanes(planes):
                    self._write_planes(planes)
                case WriteLease(deadline_ns):
                    self._write_lease(deadline_ns)
                case WriteRoutes():
                    if self._directed is not None:
                        self._directed.write(command)
                case Announce():
                    if self._directed is not None:
                        self._directed.announce()
                case Send(to, message):
                    self._send(message, to)
                case Happened(event):
                    log(self._config.me.name, event.type, event.text)
                    self._server.publish({"type": event.type, "text": event.text, "data": dict(event.data)})
                case Halt():
                    self._stop.set()
        self._arm()

    def _send(self, message: Message, to: NodeId | None) -> None:
        self._transport.send(self._channel.seal(message), to)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0, self._node.next_wakeup_ns() - boot_ns()) / 1e9
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _write_planes(self, planes: tuple[Planes, ...]) -> None:
        for group, wanted in enumerate(planes):
            if self._plain_swap:
                wanted = Planes(own=wanted.own)
            if self._kernel is not None and wanted != self._written[group]:
                self._kernel.write(group, wanted)
            self._written[group] = wanted

    def _write_lease(self, deadline_ns: int) -> None:
        if self._kernel is not None:
            self._kernel.renew(deadline_ns)
        self._deadline_ns = deadline_ns

    def _has_lease(self) -> bool:
        return self._deadline_ns > boot_ns()

    def _close_filter(self) -> None:
        """Rule 7, and our last act: accept nothing. The lease first, as it closes everything at once."""
        self._write_lease(0)
        for group in range(len(self._written)):
            if self._kernel is not None:
                self._kernel.write(group, CLOSED)
            self._written[group] = CLOSED

    # What the daemon asks ---------------------------------------------------------------------------------------

    def _answer(self, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
        now = boot_ns()
        match what:
            case "report":
                return {"report": encode_report(self._report(now))}
            case "request":
                self._execute(self._node.request(now, _request(arguments)))
            case "connections" if self._is_current(arguments):
                self._node.report_connections(arguments["established"], arguments["held"])
            case "forget-held" if self._is_current(arguments):
                for group, plane in enumerate(arguments["planes"]):
                    self._execute(self._node.forget_held(now, group, int(plane, 16)))
            case "connections" | "forget-held":
                pass  # Buckets have moved since the daemon looked; it looks again.
            case "gateway":
                self._execute(self._node.gateway(now, arguments["reachable"]))
            case "service":
                if self._directed is not None:
                    self._directed.configure([ip_address(vip) for vip in arguments["vips"]], arguments["interfaces"])
            case _:
                raise FarmError("the membership engine", f"it does not know {what!r}", "Restart farmd on this node")
        return {}

    def _is_current(self, arguments: dict[str, Any]) -> bool:
        """Whether the daemon looked at its sockets under the view of now."""
        return bool(arguments["ballot"] == str(self._node.ballot))

    def _report(self, now: int) -> EngineReport:
        status = self._node.status(now)
        return EngineReport(
            at_ns=now,
            pid=os.getpid(),
            boot=self._boot,
            fingerprint=self._fingerprint,
            phase=status.phase,
            exclusive=status.exclusive,
            view=None if status.view.ballot == NO_BALLOT else status.view,
            started=status.started,
            view_since_ns=status.started_ns or now,
            deadline_ns=self._deadline_ns,
            planes=tuple(self._written),
            peers=tuple(
                PeerReport(peer.node, peer.state, peer.since_ns, peer.last_heard_ns, peer.established, peer.held)
                for peer in status.peers
            ),
            warnings=self._warnings,
            dropped={
                **{str(reason): count for reason, count in self._channel.counters.items()},
                "send-errors": self._transport.send_errors,
            },
        )


def _settings(config: FarmConfig) -> Settings:
    return Settings(
        me=config.me.id,
        role=config.me.role,
        voters=config.voters,
        nodes=frozenset(member.id for member in config.nodes),
        witnesses=frozenset(member.id for member in config.members if member.role is Role.WITNESS),
        weights=tuple(weights_table(weights) for weights in config.weights),
        timing=config.timing,
        profile=config.profile,
        drain_deadline_ns=int(config.drain_deadline_s * 1e9),
        names={member.id: member.name for member in config.members},
        directed=config.delivery is Delivery.DIRECTED,
    )


def _request(arguments: dict[str, Any]) -> Request:
    match arguments["kind"]:
        case "drain":
            return Drain(NodeId(arguments["member"]))
        case "ready":
            return Ready(NodeId(arguments["member"]))
        case "weight":
            return SetWeight(NodeId(arguments["member"]), arguments["weight"], arguments["group"])
        case "leave":
            return Leave()
        case kind:
            raise FarmError("the membership engine", f"it does not know the request {kind!r}", "Restart farmd")


def main() -> None:
    """Entry point of the engine process."""
    parser = argparse.ArgumentParser(prog="farmd-engine", description="The membership engine; started by farmd.")
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        config = farmfile.load(arguments.config)
        ring = read_key_file(config.key_file)
        kernel = routes = None
        reader: PlaneOf = plane_of
        if config.filters:
            from farmd.dataplane import planes

            directed = config.delivery is Delivery.DIRECTED
            kernel = planes.KernelPlanes.open(config.pin_dir, directed=directed)
            reader = planes.plane_of
            if directed:
                from farmd.dataplane.routes import KernelRoutes

                routes = KernelRoutes.open(config.pin_dir)
        asyncio.run(Engine(config, ring, kernel, Transport(config), routes, reader).run())
    except FarmError as error:
        log("engine", "engine.failed", str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
