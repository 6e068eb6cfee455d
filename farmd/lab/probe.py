# SPDX-License-Identifier: Apache-2.0
"""Bounded SYN probes from client namespaces, and takeover as the observer's records tell it.

A probe is a bare SYN with a sequence number of its own. A node answers it from its stack; the client's kernel, which
knows nothing of it, resets what the answer opened. So every probe is a full test of the path and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from farmd.lab.netns import in_namespace
from farmd.lab.observer import Asked, Observer
from farmd.lab.packets import Flow, syn_frame
from farmd.lab.plan import FIRST_CLIENT_PORT, PORT_BY_CONNECTION, VIP, VIP6, Host, LabPlan

MAX_RATE = 2000
"""Probes a second that a prober sends at most: it measures, it does not load."""
_FIRST_PORT = 2000
_STEP_S = 0.005
_ETHERNET_BYTES = 14


@dataclass(frozen=True, slots=True)
class Takeover:
    """How long sampled clients of a lost node went without an answer; milliseconds after the fault.

    `first_ms`: the first probe of any of its buckets that was answered again. `all_ms`: the moment at which every
    sampled bucket had been answered again; this is the takeover time we publish. `silent`: buckets with no answer yet.
    """

    first_ms: float | None
    all_ms: float | None
    sampled: int
    silent: int


class Prober:
    """Sends SYNs of a set of flows in turn, `rate` a second in all, in a thread, between `start` and `stop`."""

    def __init__(self, plan: LabPlan, flows: Sequence[Flow], rate: int) -> None:
        if not flows or not 0 < rate <= MAX_RATE:
            raise ValueError(f"a prober needs flows and a rate of 1..{MAX_RATE} a second")
        self._rate = rate
        hosts = {flow: _home_of(plan, flow) for flow in flows}
        self._senders = {name: _Sender(plan, plan.host(name)) for name in {host.name for host in hosts.values()}}
        self._flows = [(flow, self._senders[hosts[flow].name]) for flow in flows]
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.sent = 0

    def start(self) -> None:
        """Begin to send."""
        self._thread = threading.Thread(target=self._send, name="prober", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sending and close. Safe to repeat."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for sender in self._senders.values():
            sender.close()

    def __enter__(self) -> Prober:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _send(self) -> None:
        began, randomness = time.monotonic(), random.Random()
        while not self._stopping.wait(_STEP_S):
            due = int((time.monotonic() - began) * self._rate)
            # After a stall we do not send in a burst what is overdue: probes are samples of time.
            self.sent = max(self.sent, due - self._rate // 20)
            while self.sent < due:
                flow, sender = self._flows[self.sent % len(self._flows)]
                with contextlib.suppress(OSError):  # nobody answers for the VIP yet: a lost probe like any other
                    sender.send(flow, randomness.getrandbits(32))
                self.sent += 1


def flows_of(plan: LabPlan, each: int, *, vport: int = PORT_BY_CONNECTION, ipv6: bool = False) -> list[Flow]:
    """`each` flows from every client address; with affinity `client-ip-port` each is a bucket of its own."""
    vip = VIP6 if ipv6 else VIP
    return [
        Flow(address.ip, _FIRST_PORT + number, vip, vport)
        for number in range(each)
        for host in plan.client_hosts
        for address in host.addresses
        if address.version == vip.version
    ]


def owners(asked: Iterable[Asked]) -> dict[Flow, bytes]:
    """Who last answered each probed flow, by MAC. Real connections are left out: nobody asks for them again."""
    return {one.flow: one.answers[-1][1] for one in asked if one.answers and one.flow.port < FIRST_CLIENT_PORT}


def takeover(asked: Iterable[Asked], victims: Iterable[Flow], fault_ns: int) -> Takeover:
    """The takeover of the flows `victims` after a fault at `fault_ns`. Pure.

    Only SYNs sent after the fault count, so an answer that was under way when the link went down is none.
    """
    waiting = set(victims)
    sampled = len(waiting)
    first: int | None = None
    last: int | None = None
    for one in sorted(asked, key=lambda one: one.answers[0][0] if one.answers else 0):
        if one.answers and one.at_ns > fault_ns and one.flow in waiting:
            waiting.discard(one.flow)
            last = one.answers[0][0]
            first = last if first is None else first
    return Takeover(
        first_ms=None if first is None else (first - fault_ns) / 1e6,
        all_ms=None if last is None or waiting else (last - fault_ns) / 1e6,
        sampled=sampled,
        silent=len(waiting),
    )


def takeover_of(observer: Observer, node: str, fault_ns: int) -> Takeover:
    """The takeover of the buckets that `node` served in the second before the fault. Its own answers don't count."""
    mac = observer.plan.host(node).links[0].mac
    before = owners(observer.asked(fault_ns - 1_000_000_000, fault_ns))
    victims = [flow for flow, owner in before.items() if owner == mac]
    return takeover([one for one in observer.asked(fault_ns) if mac not in one.answered_by], victims, fault_ns)


def last_answer_ms(observer: Observer, node: str, fault_ns: int) -> float:
    """How long after the fault `node` gave its last answer, so far; 0 if it gave none."""
    mac = observer.plan.host(node).links[0].mac
    times = [at for one in observer.asked(fault_ns) for at, by in one.answers if by == mac]
    return max(0.0, (max(times, default=fault_ns) - fault_ns) / 1e6)


class _Sender:
    """Sends SYNs from one client host."""

    def __init__(self, plan: LabPlan, host: Host) -> None:
        self._mac = host.links[0].mac
        self._target = plan.virtual_mac
        self._sockets = in_namespace(host.namespace, partial(self._open, host.links[0].device))

    def _open(self, device: str) -> dict[int, socket.socket]:
        """By IP version. Where VIPs have no MAC of their own, the client's kernel finds out where to send."""
        if self._target is not None:
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: it never receives
            wire.bind((device, 0))
            return {4: wire, 6: wire}
        return {
            version: socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6))
        }

    def send(self, flow: Flow, sequence: int) -> None:
        wire = self._sockets[flow.vip.version]
        if self._target is not None:
            wire.send(syn_frame(flow, sequence, self._mac, self._target))
        else:
            wire.sendto(syn_frame(flow, sequence, self._mac, self._mac)[_ETHERNET_BYTES:], (str(flow.vip), 0))

    def close(self) -> None:
        for wire in self._sockets.values():
            wire.close()


def _home_of(plan: LabPlan, flow: Flow) -> Host:
    for host in plan.client_hosts:
        if any(address.ip == flow.client for address in host.addresses):
            return host
    raise ValueError(f"no client of the lab has the address {flow.client}")
