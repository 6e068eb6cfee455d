# SPDX-License-Identifier: Apache-2.0
"""A farmd without a farm: the real API on a real socket, in front of answers that a test sets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from farmd.daemon import httpd
from farmd.daemon.api import build
from farmd.daemon.eventlog import EventLog
from farmd.model.answers import (
    CounterData,
    Counters,
    EventList,
    Explanation,
    FarmStatus,
    FilterData,
    GroupShare,
    LeaseData,
    MemberData,
    Operation,
    PlanesData,
    ProblemData,
    ProofData,
    RuleData,
    ViewData,
)
from farmd.model.errors import NotFound, Refused
from farmd.model.question import PacketKind, Question

ROOT = Path(__file__).parents[2]


def member(number: int, state: str = "up", *, connections: int | None = 4, role: str = "node") -> MemberData:
    share = GroupShare(group="default", weight=100, effective_weight=100, buckets=1366, share=0.3335)
    return MemberData(
        name=f"node{number}" if role == "node" else "witness",
        number=number - 1,
        role=role,
        voter=True,
        self=number == 1,
        state=state,
        since="2026-08-01T12:00:00.000Z",
        last_heard_seconds=0.0 if number == 1 else 0.05,
        groups=[share] if role == "node" else [],
        connections=connections,
        held_connections=0,
    )


def farm_status() -> FarmStatus:
    return FarmStatus(
        farm="web",
        profile="exclusive",
        exclusive=True,
        delivery="flood",
        phase="serving",
        view=ViewData(epoch=12, ballot="12.0.ab12", started=True, since="2026-08-01T12:00:00.000Z"),
        lease=LeaseData(left_seconds=0.41, valid=True),
        filter=[FilterData(interface="eth0", mode="generic", reason="veth", reattached=False)],
        vips=["10.77.0.100", "fd77::100"],
        members=[member(1), member(2), member(3)],
        groups=["default"],
        rules=[RuleData(name="web", vip="10.77.0.100", protocol="tcp", port=80, affinity="client-ip", group="default")],
        problems=[],
    )


class FakeFarmd:
    """Implements `farmd.daemon.api.Backend`; what it answers and what it was asked lies open."""

    def __init__(self, folder: Path) -> None:
        self.name = "node1"
        self.said: list[str] = []
        self.current = farm_status()
        self.log = EventLog(folder / "state")
        self.asked: list[tuple[object, ...]] = []
        self.draining: list[int] = []
        """Connections of a drained node, one number a status call; then it is drained."""
        self.agrees = True
        self.fault: Exception | None = None

    def warnings(self) -> Sequence[str]:
        return self.said

    async def status(self) -> FarmStatus:
        if self.fault:
            raise self.fault
        for one in self.current["members"]:
            if one["state"] == "draining":
                one["connections"] = self.draining.pop(0) if self.draining else 0
                one["state"] = "draining" if one["connections"] else "drained"
        return self.current

    async def counters(self) -> Counters:
        return Counters(
            counters=[
                CounterData(rule=None, reason="lease-over", verdict="drop", packets=3),
                CounterData(rule="web", reason="accept-own", verdict="pass", packets=123456),
                CounterData(rule="web", reason="not-owner", verdict="drop", packets=99),
            ]
        )

    async def events(self, after: int, limit: int, wait_s: float) -> EventList:
        return EventList(events=await self.log.wait(after, limit, wait_s))

    async def drain(self, member: str, force: bool, reason: str | None) -> Operation:
        self.asked.append(("drain", member, force, reason))
        target = self._member(member)
        if member == "node1" and not force:
            raise Refused("drain node1", "no other node would serve", "Bring another node up first, or use --force")
        if target["state"] == "up":
            target["state"] = "draining"
        return Operation(accepted=True, text=f"{member} takes no new clients from the next view on")

    async def ready(self, member: str) -> Operation:
        self.asked.append(("ready", member))
        self._member(member)["state"] = "up"
        return Operation(accepted=True, text=f"{member} takes its share again from the next view on")

    async def set_weight(self, member: str, weight: int, group: str | None) -> Operation:
        self.asked.append(("weight", member, weight, group))
        self._member(member)
        return Operation(accepted=True, text=f"weight {weight} for {member} from the next view on")

    async def explain(self, question: Question) -> Explanation:
        client, port, vip = question.client, question.port, question.vip
        asked: tuple[object, ...] = ("explain", str(client), port, None if vip is None else str(vip))
        asked += (question.vport, question.protocol)
        if question.packet is not PacketKind.OPENING:
            asked += (question.packet, question.identification)
        self.asked.append(asked)
        return Explanation(
            client=str(client),
            port=port,
            vip="10.77.0.100",
            vport=80,
            protocol="tcp",
            rule="web",
            affinity="client-ip",
            key=str(client),
            hash="0x9c3f00000000a8a2",
            bucket=2210,
            group="default",
            owner="node2",
            why="view 12 (started), weights: node1 100, node2 100, node3 100",
            planes=PlanesData(own=False, held=True, fresh=False),
            proof=ProofData(node="node1", verdict="drop", reason="not-owner", sent_to=None, agrees=self.agrees),
        )

    async def reload(self) -> Operation:
        self.asked.append(("reload",))
        return Operation(accepted=True, text="farm.toml is valid and put in force")

    async def leave(self, force: bool) -> Operation:
        self.asked.append(("leave", force))
        return Operation(accepted=True, text="node1 hands its buckets over and stops")

    def problem(self, text: str, severity: str = "error") -> None:
        self.current["problems"].append(ProblemData(severity=severity, text=text, next_step="Look at it"))

    def _member(self, name: str) -> MemberData:
        for one in self.current["members"]:
            if one["name"] == name:
                return one
        raise NotFound(f"node {name}", "the farm has no such member", "It has node1, node2, node3")


class Served:
    """A FakeFarmd on its socket. `in_loop` runs something where the server runs."""

    def __init__(self, backend: FakeFarmd, path: Path) -> None:
        self.backend = backend
        self.path = path
        self.loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="fake-farmd")

    def start(self) -> None:
        listening = threading.Event()
        self.loop.call_soon(listening.set)
        self._thread.start()
        assert listening.wait(10)
        while not self.path.exists():
            assert self._thread.is_alive()
            self._thread.join(0.005)

    def append(self, kind: str, text: str) -> None:
        done = threading.Event()

        def call() -> None:
            self.backend.log.append(kind, text, {"node": "node1"})
            done.set()

        self.loop.call_soon_threadsafe(call)
        assert done.wait(10)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.backend.log.close)
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(20)
        assert not self._thread.is_alive()
        if not self.loop.is_closed():
            self.loop.close()

    def _run(self) -> None:
        self.loop.run_until_complete(httpd.serve(build(self.backend), self.path, self._stop))


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """A fake farmd on `folder`/api.sock, until the end of the block."""
    served = Served(FakeFarmd(folder), folder / "api.sock")
    served.start()
    try:
        yield served
    finally:
        served.stop()


def farmctl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """farmctl in a process of its own."""
    return subprocess.run(
        farmctl_command(*arguments),
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@contextlib.contextmanager
def running_farmctl(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """farmctl in a process of its own, with pipes, ended at the end of the block at the latest."""
    with subprocess.Popen(
        farmctl_command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(stream: IO[str] | None) -> str:
    """The next line that a process writes; the test fails if it ends instead."""
    assert stream is not None
    line = stream.readline()
    assert line
    return line


def farmctl_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "farmd.cli", *arguments]


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FARMCTL_", "NO_COLOR"))}
    return kept | {"PYTHONPATH": str(ROOT), "TZ": "UTC"} | more
