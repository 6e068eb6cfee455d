# SPDX-License-Identifier: Apache-2.0
"""The simulator: hosts, a network, one queue of events in true time, and the two checks.

*Safety* is checked at every write to any kernel: a filter changes only there and at deadlines, which only close.
*Availability* is sampled: which share of all buckets is accepted by somebody.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from farmd.membership.commands import Command, Event, Halt, Happened, Send, WriteLease, WritePlanes
from farmd.membership.core import Node
from farmd.membership.messages import Message
from farmd.membership.requests import Request
from farmd.membership.settings import Settings
from farmd.model.buckets import BUCKETS
from farmd.model.config import Profile, Timing
from farmd.model.nodes import BootId, NodeId, Role
from farmd.model.planes import CLOSED
from farmd.model.view import weights_table
from tests.sim.host import Clock, Host
from tests.sim.wiring import Wiring

MS = 1_000_000
SECOND = 1_000_000_000
SIM_TIMING = Timing(100 * MS, 500 * MS, hold_down_ns=400 * MS, hold_down_max_ns=1600 * MS)
SIM_FAST = Timing(50 * MS, 300 * MS, hold_down_ns=400 * MS, hold_down_max_ns=1600 * MS)


class Violation(AssertionError):
    """Two nodes accept the same bucket at the same instant."""


@dataclass(slots=True)
class Network:
    """How bad the network is now. Delays in nanoseconds."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_ns: tuple[int, int] = (MS // 10, MS)
    late: float = 0.0
    """Share of messages that are late by up to `late_ns`: they arrive out of order."""
    late_ns: int = 0
    cut: set[tuple[NodeId, NodeId]] = field(default_factory=set)
    """Directions that carry nothing."""


@dataclass(frozen=True, slots=True)
class Farm:
    """What is simulated."""

    nodes: int
    witness: bool = False
    groups: int = 1
    timing: Timing = SIM_TIMING
    profile: Profile = Profile.EXCLUSIVE
    clock_ppm: int = 9_000
    wire: bool = False
    """Seal and open real datagrams instead of handing messages over."""


class World:
    """A farm in virtual time; everything in it follows from `seed`."""

    def __init__(self, seed: int, farm: Farm) -> None:
        self.random = random.Random(seed)
        self.farm = farm
        self.now_ns = 0
        self.network = Network()
        self.events: list[tuple[int, NodeId, Event]] = []
        self.sent = 0
        self.mid_stall = 0.0
        """Chance that a host stalls between two commands."""
        self.drop_backlog = True
        self._queue: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0
        names = [NodeId(number) for number in range(farm.nodes + farm.witness)]
        self.nodes = frozenset(names[: farm.nodes])
        self.everyone = frozenset(names)
        self.hosts = {name: self._host(name) for name in names}
        self.wiring = Wiring(farm.wire, self.random, self.everyone)

    def _host(self, name: NodeId) -> Host:
        clock = Clock(
            self.random.randrange(SECOND, 1000 * SECOND), self.random.choice((-1, 0, 1)) * self.farm.clock_ppm
        )
        return Host(name, clock, (CLOSED,) * self.farm.groups)

    def settings(self, name: NodeId) -> Settings:
        table = weights_table(dict.fromkeys(self.nodes, 100))
        voters = self.everyone if len(self.everyone) <= 8 else frozenset(sorted(self.everyone)[:7])
        return Settings(
            me=name,
            role=Role.NODE if name in self.nodes else Role.WITNESS,
            voters=voters,
            nodes=self.nodes,
            witnesses=self.everyone - self.nodes,
            weights=(table,) * self.farm.groups,
            timing=self.farm.timing,
            profile=self.farm.profile,
        )

    # ---- the queue ----

    def at(self, time_ns: int, call: Callable[..., None], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._queue, (time_ns, self._count, call, arguments))

    def run(self, until_ns: int) -> None:
        queue = self._queue
        while queue and queue[0][0] <= until_ns:
            self.now_ns, _, call, arguments = heapq.heappop(queue)
            call(*arguments)
        self.now_ns = until_ns

    # ---- servers ----

    def boot(self, name: NodeId) -> None:
        """Start the engine; the kernel is as an earlier engine left it."""
        host = self.hosts[name]
        if host.node is not None:
            return
        host.boots += 1
        host.halted = False
        host.backlog.clear()
        host.postponed.clear()
        host.stalled_until_ns = 0
        boot = BootId(self.random.getrandbits(64))
        self.wiring.boot(name, boot)
        host.node = Node(self.settings(name), boot, host.clock.local(self.now_ns))
        self._tick(host)

    def crash(self, name: NodeId) -> None:
        """Kill the engine; planes and lease stay in the kernel."""
        host = self.hosts[name]
        host.node = None
        host.wake_ns = 0

    def power_off(self, name: NodeId) -> None:
        """Engine and kernel are gone."""
        self.crash(name)
        host = self.hosts[name]
        host.planes = (CLOSED,) * self.farm.groups
        host.deadline_ns = 0

    def stall(self, name: NodeId, for_ns: int) -> None:
        """The engine does not run for a while; the kernel does."""
        host = self.hosts[name]
        if host.node is None or host.stalled_until_ns > self.now_ns:
            return
        host.stalled_since_ns = self.now_ns
        host.stalled_until_ns = self.now_ns + for_ns
        self.at(host.stalled_until_ns, self._resume, host, host.node)

    def request(self, name: NodeId, request: Request) -> None:
        """Somebody asks a node for a change."""
        if (node := self._running(name)) is not None:
            self._execute(self.hosts[name], node.request(self._local(name), request))

    def gateway(self, name: NodeId, reachable: bool) -> None:
        """Whether a node reaches the gateway."""
        if (node := self._running(name)) is not None:
            self._execute(self.hosts[name], node.gateway(self._local(name), reachable))

    def service(self, name: NodeId, usable: bool) -> None:
        """Whether clients can reach a node; its peers still hear it."""
        if (node := self._running(name)) is not None:
            self._execute(self.hosts[name], node.service(self._local(name), usable))

    def _running(self, name: NodeId) -> Node | None:
        """A node that is up and does not stall: a stalled one must not be made to act."""
        host = self.hosts[name]
        return None if host.stalled_until_ns > self.now_ns else host.node

    def _local(self, name: NodeId) -> int:
        return self.hosts[name].clock.local(self.now_ns)

    def _resume(self, host: Host, node: Node) -> None:
        if host.node is not node or host.stalled_until_ns > self.now_ns:
            return
        host.stalled_until_ns = 0
        postponed, host.postponed = host.postponed, []
        self._execute(host, postponed)
        backlog, host.backlog = host.backlog, []
        for_ns = self.now_ns - host.stalled_since_ns
        if host.node is node and not (self.drop_backlog and for_ns > self.farm.timing.lease_ns // 2):
            for sender, item in backlog:
                self._deliver(host, sender, item)
        if host.node is node and host.stalled_until_ns == 0:
            self._execute(host, node.stalled(host.clock.local(self.now_ns), for_ns))

    def _tick(self, host: Host) -> None:
        if host.node is not None:
            self._execute(host, host.node.tick(host.clock.local(self.now_ns)))

    def _wake(self, host: Host, node: Node, at_ns: int) -> None:
        if host.node is node and host.wake_ns == at_ns:
            host.wake_ns = 0
            if host.stalled_until_ns <= self.now_ns:
                self._tick(host)

    def _schedule(self, host: Host) -> None:
        node = host.node
        if node is None:
            return
        wake_ns = max(self.now_ns + 1000, host.clock.true(node.next_wakeup_ns()))
        if host.wake_ns == 0 or wake_ns < host.wake_ns:
            host.wake_ns = wake_ns
            self.at(wake_ns, self._wake, host, node, wake_ns)

    # ---- commands ----

    def _execute(self, host: Host, commands: list[Command] | list[object]) -> None:
        changed = False
        for place, command in enumerate(commands):
            if self.mid_stall and self.random.random() < self.mid_stall:
                host.postponed = [*commands[place:], *host.postponed]
                self.stall(host.id, self.random.randrange(MS, 1500 * MS))
                return
            if isinstance(command, Send):
                targets = self.hosts if command.to is None else (command.to,)
                self._send(host, targets, command.message)
                continue
            changed = True
            if isinstance(command, WritePlanes):
                host.planes = command.planes
                self._check(host)
            elif isinstance(command, WriteLease):
                host.deadline_ns = host.clock.true(command.deadline_ns) if command.deadline_ns else 0
                self._check(host)
            elif isinstance(command, Happened):
                self.events.append((self.now_ns, host.id, command.event))
            elif isinstance(command, Halt):
                self.crash(host.id)
                host.halted = True
                return
        if host.node is not None:
            if changed:
                host.node.check_invariants()
            if host.stalled_until_ns <= self.now_ns:
                self._schedule(host)

    def _send(self, host: Host, targets: object, message: Message) -> None:
        network, rng, now = self.network, self.random, self.now_ns
        low, high = network.delay_ns
        item = self.wiring.seal(host.id, message)
        for target in targets:  # type: ignore[attr-defined]
            if target == host.id or (host.id, target) in network.cut:
                continue
            self.sent += 1
            copies = 2 if network.duplication and rng.random() < network.duplication else 1
            for _ in range(copies):
                if network.loss and rng.random() < network.loss:
                    continue
                delay = low + int(rng.random() * (high - low))
                if network.late and rng.random() < network.late:
                    delay += int(rng.random() * network.late_ns)
                self._count += 1
                heapq.heappush(self._queue, (now + delay, self._count, self._arrive, (target, host.id, item)))

    def _arrive(self, target: NodeId, sender: NodeId, item: Message | bytes) -> None:
        host = self.hosts[target]
        if host.node is None:
            return
        if host.stalled_until_ns > self.now_ns:
            if len(host.backlog) < 200:
                host.backlog.append((sender, item))
            return
        self._deliver(host, sender, item)

    def _deliver(self, host: Host, sender: NodeId, item: Message | bytes) -> None:
        node = host.node
        if node is None:
            return
        if host.stalled_until_ns > self.now_ns:
            host.backlog.append((sender, item))
            return
        now_ns = host.clock.local(self.now_ns)
        message, answer = self.wiring.open(host.id, item, now_ns)
        if answer is not None and (host.id, sender) not in self.network.cut:
            self.at(self.now_ns + MS // 5, self._arrive, sender, host.id, answer)
        if message is not None:
            self._execute(host, node.receive(now_ns, sender, message))

    # ---- the observer ----

    def _check(self, host: Host) -> None:
        """At most one node accepts any bucket at this instant."""
        mine = host.open_planes(self.now_ns)
        if mine is None or self.farm.profile is Profile.AVAILABLE:
            return
        for other in self.hosts.values():
            if other is host or other.deadline_ns <= self.now_ns:
                continue
            for group, own in enumerate(mine):
                both = own & other.planes[group].own
                if both:
                    seconds = self.now_ns / SECOND
                    raise Violation(f"{seconds:.3f} s: {both.bit_count()} buckets at {host.id} and at {other.id}")

    def served(self) -> float:
        """The share of group 0's buckets that somebody accepts now."""
        return self.open_now().bit_count() / BUCKETS

    def open_now(self) -> int:
        """The plane of group 0's buckets that somebody accepts now."""
        plane = 0
        for host in self.hosts.values():
            if host.deadline_ns > self.now_ns:
                plane |= host.planes[0].own
        return plane

    def whole(self) -> bool:
        """Every running node is in one started view, and every bucket of every group is served."""
        views = set()
        for host in self.hosts.values():
            if host.node is None:
                return False
            status = host.node.status(host.clock.local(self.now_ns))
            if not status.started or status.view.members != self.nodes:
                return False
            views.add(status.view.ballot)
        opened = [0] * self.farm.groups
        for host in self.hosts.values():
            for group, own in enumerate(host.open_planes(self.now_ns) or ()):
                opened[group] |= own
        return len(views) == 1 and all(plane.bit_count() == BUCKETS for plane in opened)
