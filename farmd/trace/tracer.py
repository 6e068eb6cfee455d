# SPDX-License-Identifier: Apache-2.0
"""The trace itself: compiles and attaches the probes, and hands on what they see, within bounds.

The kernel detaches everything when this process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from farmd.client import Client
from farmd.dataplane.kernel import xdp_presence
from farmd.dataplane.reasons import Verdict
from farmd.dataplane.tap import HEAD_BYTES, Tap, Wish
from farmd.model.config import Delivery, FarmConfig
from farmd.model.errors import FarmError, KernelError, NotFound, Refused
from farmd.model.rules import Address
from farmd.net import interfaces
from farmd.trace import btf, loader, program
from farmd.trace.pcap import PcapFile
from farmd.trace.places import Places
from farmd.trace.records import decode
from farmd.trace.sampler import Sampler

_POLL_MS = 20
_FOLLOW_NS = 500_000_000
"""How often to look whether farmd has put a new filter in the place of the one that is watched."""
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
        tap = stack.enter_context(Tap(config.pin_dir, _wish(wishes)))
        pcap = None if wishes.pcap is None else stack.enter_context(PcapFile(wishes.pcap, HEAD_BYTES))
        types = btf.running_kernel()
        probes, headers = _compile(types, wishes, vips)
        stack.callback(probes.cleanup)
        daemon = Client(config.api_socket, _API_TIMEOUT_S)
        places = Places(config, daemon, time.monotonic_ns)
        names = types.enumerators("skb_drop_reason")
        sampler = Sampler(config, places, names)
        tell(_start(config, headers))
        before = _counters(daemon)
        pace = _watch(probes, tap, sampler, wishes, tell, pcap)
        tell(_summary(probes, tap, pace, before, _counters(daemon)))


def _compile(types: btf.Types, wishes: Wishes, vips: tuple[Address, ...]) -> tuple[Any, str]:
    """bcc's object with the probes attached, and which headers it took."""
    bcc = loader.load_bcc()
    scope = program.Scope(
        namespace=os.stat("/proc/thread-self/ns/net").st_ino,
        vips=vips,
        client=wishes.client,
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


def _wish(wishes: Wishes) -> Wish:
    mask, client = (struct.pack("=QQ", *words) for words in program.client_words(wishes.client))
    vip = bytes(16) if wishes.vip is None else program.mapped(wishes.vip)
    return Wish(wishes.verdicts, mask, client, vip, wishes.rate)


def _watch(probes: Any, tap: Tap, sampler: Sampler, wishes: Wishes, tell: Tell, pcap: PcapFile | None) -> Pace:
    """Poll until a bound is met; says how many events were told."""
    raw: list[bytes] = []
    probes["records"].open_ring_buffer(lambda _context, data, size: raw.append(ctypes.string_at(data, size)))
    epoch_ns = time.time_ns() - time.monotonic_ns()
    end_ns = time.monotonic_ns() + int(wishes.seconds * 1e9)
    follow_ns = 0
    pace = Pace(wishes.rate)
    while (now_ns := time.monotonic_ns()) < end_ns:
        if now_ns >= follow_ns:
            tap.follow()
            follow_ns = now_ns + _FOLLOW_NS
        for sample in tap.read(_POLL_MS):
            sampler.receive(sample)
        probes.ring_buffer_poll(0)
        while raw:
            sampler.receive(decode(raw.pop(0)))
        for event in sampler.settle(time.monotonic_ns()):
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


def _start(config: FarmConfig, headers: str) -> dict[str, Any]:
    found = []
    for facts in interfaces.facts(config.interfaces or config.me.addresses[:1]):
        mode = "native" if xdp_presence(facts.ifindex).native else "generic"
        found.append({"interface": facts.name, "mode": mode})
    return {"type": "start", "node": config.me.name, "interfaces": found, "headers": headers}


def _counters(daemon: Client) -> dict[tuple[str | None, str], int]:
    """What the filter has counted so far; nothing if the daemon does not answer."""
    try:
        found = daemon.counters().data["counters"]
    except FarmError:
        return {}
    return {(each["rule"], each["reason"]): each["packets"] for each in found}


def _summary(
    probes: Any,
    tap: Tap,
    pace: Pace,
    before: Mapping[tuple[str | None, str], int],
    after: Mapping[tuple[str | None, str], int],
) -> dict[str, Any]:
    """The last line: what was told, what the bounds held back, and what the filter itself counted meanwhile."""
    held_back = sum(int(value.value) for value in probes["suppressed"].values())
    counted = [
        {"rule": rule, "reason": reason, "packets": packets - before.get((rule, reason), 0)}
        for (rule, reason), packets in sorted(after.items(), key=lambda item: (item[0][0] or "", item[0][1]))
        if packets > before.get((rule, reason), 0)
    ]
    return {
        "type": "summary",
        "events": pace.told,
        "suppressed": {"frames": tap.suppressed, "kernel_events": held_back, "over_rate": pace.withheld},
        "counted": counted,
    }
