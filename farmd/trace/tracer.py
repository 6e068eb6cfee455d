# SPDX-License-Identifier: Apache-2.0
"""The trace itself: compiles and attaches the probes, and hands on what they see, within bounds.

The kernel detaches everything when this process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from farmd.client import Client
from farmd.dataplane.kernel import Program, xdp_presence
from farmd.dataplane.reasons import Verdict
from farmd.model.config import Delivery, FarmConfig
from farmd.model.errors import FarmError, KernelError, NotFound, Refused
from farmd.model.rules import Address
from farmd.net import interfaces
from farmd.trace import btf, loader, program
from farmd.trace.pcap import PcapFile
from farmd.trace.records import decode
from farmd.trace.sampler import Event, Sampler
from farmd.trace.verdicts import KernelTwin, Places

_POLL_MS = 20
_OVERSAMPLING = 5
"""Frames taken for each one shown: those of a verdict that is not wanted are only known afterwards."""
_KALLSYMS = Path("/proc/kallsyms")
_API_TIMEOUT_S = 1.0

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to trace, and for how long at most. `limit` None: until the time is over."""

    client: IPv4Network | IPv6Network | None = None
    vip: Address | None = None
    verdicts: frozenset[Verdict] = frozenset(Verdict)
    rate: int = 100
    seconds: float = 30.0
    limit: int | None = None
    pcap: Path | None = None


def run(config: FarmConfig, wishes: Wishes, tell: Tell) -> None:
    """Trace, and `tell` every event; first one of type "start", last one "summary".

    Errors: FarmError with the package to install without bcc or headers; KernelError without root, BTF, or a filter
    (start farmd first); NotFound for a VIP that is none.
    """
    if config.delivery is Delivery.EXTERNAL:
        step = "Trace on the balancer; `farmctl status` shows what this node's health URLs say"
        raise Refused("trace", "with delivery external there is no filter: a load balancer outside decides", step)
    vips = config.vips if wishes.vip is None else (wishes.vip,)
    if not set(vips) <= set(config.vips):
        raise NotFound(f"VIP {wishes.vip}", "the farm has no such VIP", f"It has {', '.join(map(str, config.vips))}")
    with ExitStack() as stack:
        twin = stack.enter_context(_open_twin(config.pin_dir))
        pcap = None if wishes.pcap is None else stack.enter_context(PcapFile(wishes.pcap, program.HEAD_BYTES))
        types = btf.running_kernel()
        probes, headers = _compile(types, wishes, vips)
        stack.callback(probes.cleanup)
        daemon = Client(config.api_socket, _API_TIMEOUT_S)
        places = Places(config, daemon, time.monotonic_ns)
        names = types.enumerators("skb_drop_reason")
        sampler = Sampler(config, KernelTwin(twin), places, names, wishes.verdicts)
        tell(_start(config, headers))
        before = _counters(daemon)
        pace = _watch(probes, sampler, wishes, tell, pcap)
        tell(_summary(probes, pace, before, _counters(daemon)))


def _compile(types: btf.Types, wishes: Wishes, vips: tuple[Address, ...]) -> tuple[Any, str]:
    """bcc's object with the probes attached, and which headers it took."""
    bcc = loader.load_bcc()
    scope = program.Scope(
        namespace=os.stat("/proc/thread-self/ns/net").st_ino,
        vips=vips,
        client=wishes.client,
        frames_per_s=wishes.rate * _OVERSAMPLING,
        events_per_s=wishes.rate,
    )
    try:
        symbols = _KALLSYMS.read_text().splitlines()
    except OSError as error:
        raise KernelError(str(_KALLSYMS), f"it cannot be read: {error.strerror}", "Run as root") from error
    text = program.source(types, symbols, scope)
    with loader.kernel_headers() as headers:
        try:
            probes = bcc.BPF(text=text)
        except Exception as error:  # bcc raises nothing more precise, and prints the compiler's words to stderr
            step = "Run as root with CAP_BPF and CAP_PERFMON; if you did, report it with the lines above"
            raise KernelError("trace probes", f"bcc cannot compile or attach them: {error}", step) from error
    table = probes["vips"]
    for vip in vips:
        table[table.Key.from_buffer_copy(program.mapped(vip))] = ctypes.c_uint8(1)
    return probes, headers


@contextmanager
def _open_twin(pin_dir: Path) -> Iterator[Program]:
    try:
        twin = Program.get(pin_dir / "explain")
    except FileNotFoundError as error:
        raise KernelError(str(pin_dir), "no filter is pinned here", "Start farmd first: it loads the filter") from error
    with twin:
        yield twin


def _watch(probes: Any, sampler: Sampler, wishes: Wishes, tell: Tell, pcap: PcapFile | None) -> Pace:
    """Poll until a bound is met; says how many events were told."""
    raw: list[bytes] = []
    probes["records"].open_ring_buffer(lambda _context, data, size: raw.append(ctypes.string_at(data, size)))
    epoch_ns = time.time_ns() - time.monotonic_ns()
    end_ns = time.monotonic_ns() + int(wishes.seconds * 1e9)
    pace = Pace(wishes.rate)
    while time.monotonic_ns() < end_ns:
        probes.ring_buffer_poll(_POLL_MS)
        taken, raw[:] = raw.copy(), []
        for event in _events(sampler, taken):
            if not pace.allows(time.monotonic_ns()):
                continue
            tell({"at_ns": epoch_ns + event.at_ns, **event.data})
            if pcap is not None and event.head:
                pcap.write(epoch_ns + event.at_ns, event.head, event.length)
            if pace.told == wishes.limit:
                return pace
    return pace


class Pace:
    """At most `rate` events in any second of the clock; counts what was told and what was not."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._second = -1
        self._used = 0
        self.told = 0
        self.withheld = 0

    def allows(self, now_ns: int) -> bool:
        """Whether one more may be told now."""
        if now_ns // 1_000_000_000 != self._second:
            self._second, self._used = now_ns // 1_000_000_000, 0
        if self._used >= self._rate:
            self.withheld += 1
            return False
        self._used += 1
        self.told += 1
        return True


def _events(sampler: Sampler, taken: list[bytes]) -> Iterator[Event]:
    for each in taken:
        sampler.receive(decode(each))
    yield from sampler.settle(time.monotonic_ns())


def _start(config: FarmConfig, headers: str) -> dict[str, Any]:
    found = []
    for facts in interfaces.facts(config.interfaces or config.me.addresses[:1]):
        mode = "native" if xdp_presence(facts.ifindex).native else "generic"
        found.append(
            {"interface": facts.name, "mode": mode, "drops_sampled": mode == "generic" or facts.kind == "veth"}
        )
    return {"type": "start", "node": config.me.name, "interfaces": found, "headers": headers}


def _counters(daemon: Client) -> dict[tuple[str | None, str], int]:
    """What the filter has counted so far; nothing if the daemon does not answer."""
    try:
        found = daemon.counters().data["counters"]
    except FarmError:
        return {}
    return {(each["rule"], each["reason"]): each["packets"] for each in found}


def _summary(
    probes: Any, pace: Pace, before: Mapping[tuple[str | None, str], int], after: Mapping[tuple[str | None, str], int]
) -> dict[str, Any]:
    """The last line: what was told, what the bounds held back, and what the filter itself counted meanwhile."""
    held_back = [int(value.value) for value in probes["suppressed"].values()]
    counted = [
        {"rule": rule, "reason": reason, "packets": packets - before.get((rule, reason), 0)}
        for (rule, reason), packets in sorted(after.items(), key=lambda item: (item[0][0] or "", item[0][1]))
        if packets > before.get((rule, reason), 0)
    ]
    return {
        "type": "summary",
        "events": pace.told,
        "suppressed": {"frames": held_back[0], "kernel_events": held_back[1], "over_rate": pace.withheld},
        "counted": counted,
    }
