# SPDX-License-Identifier: Apache-2.0
"""From a sampled frame and what became of it to reason, rule, bucket and owner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from farmd.client import Client
from farmd.dataplane.filter import Probe
from farmd.dataplane.kernel import Program
from farmd.dataplane.reasons import REASONS, VERDICTS, Reason, Verdict
from farmd.model.config import FarmConfig
from farmd.model.errors import FarmError, KernelError
from farmd.model.rules import Affinity, Rule
from farmd.trace.packets import Packet

_LONGEST_PROBE = 3500
"""BPF_PROG_TEST_RUN takes a frame of one page without its own overhead; longer frames are probed as if shorter."""
_BY_ADDRESS = ("arp", "nd", "icmp")
"""What no rule can name, and the owner of the client's bucket answers all the same."""
_REMEMBERED_NS = 1_000_000_000
"""How long an owner is believed: buckets move."""


class Twin(Protocol):
    """What the attached filter says to a frame."""

    def __call__(self, head: bytes, length: int, ifindex: int) -> Probe | None:
        """Its answer to a frame of `length` bytes that begins with `head`; None if it cannot be asked."""


class KernelTwin:
    """The pinned `farm_explain`: the attached program's code on the attached program's maps; it counts nothing."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __call__(self, head: bytes, length: int, ifindex: int) -> Probe | None:
        """See `Twin`. What is missing is filled up, because the filter compares the length with what headers say."""
        try:
            run = self._program.run_xdp(head.ljust(min(length, _LONGEST_PROBE), b"\0"), ifindex)
        except KernelError:
            return None
        return Probe(VERDICTS[run.result & 0xFF], run.frame, REASONS[run.result >> 8 & 0xFF], run.result >> 16)


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict with its reason. `reason` None: the filter decides otherwise by now, so nobody can tell any more."""

    verdict: Verdict
    reason: Reason | None
    rule: Rule | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client belongs: bucket, group, and the owner's name; None = not known."""

    bucket: int | None = None
    group: str | None = None
    owner: str | None = None


def judge(config: FarmConfig, probe: Probe | None, dropped: bool) -> Judged | None:
    """What the filter did with a frame (`dropped` is observed) and why, by what its twin said to the same frame.

    None if the frame is not the filter's business.
    """
    observed = Verdict.DROP if dropped else Verdict.PASS
    if probe is None:
        return Judged(observed, None, None)
    if probe.reason is None:
        return None
    rule = next((rule for rule in config.rules if rule.index == probe.rule), None)
    if dropped == (probe.verdict is Verdict.DROP):
        return Judged(probe.verdict, probe.reason, rule)
    return Judged(observed, None, rule)


class Places:
    """Asks the daemon for bucket and owner, and remembers the answers for a second."""

    def __init__(self, config: FarmConfig, client: Client, clock_ns: Callable[[], int]) -> None:
        self._config = config
        self._client = client
        self._clock_ns = clock_ns
        self._known: dict[tuple[object, ...], tuple[int, Place]] = {}

    def of(self, packet: Packet, rule: Rule | None) -> Place:
        """Where the sender of a packet to a VIP belongs; an empty `Place` if the daemon does not answer."""
        if rule is None and packet.protocol in _BY_ADDRESS:
            rule = self._steers_by_address(packet)
        if rule is None or rule.affinity is Affinity.PACKET_ID:  # a `Packet` does not tell its identification
            return Place()
        port = packet.source_port if rule.affinity is Affinity.CLIENT_IP_PORT else None
        key = (packet.source, port, rule.index)
        now = self._clock_ns()
        if key not in self._known or now - self._known[key][0] > _REMEMBERED_NS:
            self._known[key] = (now, self._ask(packet, port, rule))
        return self._known[key][1]

    def _ask(self, packet: Packet, port: int | None, rule: Rule) -> Place:
        try:
            answer = self._client.explain(str(packet.source), port, str(rule.vip), rule.port, rule.protocol).data
        except FarmError:
            return Place()
        return Place(answer["bucket"], answer["group"], answer["owner"])

    def _steers_by_address(self, packet: Packet) -> Rule | None:
        """A rule that steers as the filter steers what has no rule: by client-ip, in group 0; if there is one."""
        for rule in self._config.rules:
            if rule.vip.version == packet.source.version and rule.group == 0 and rule.affinity is Affinity.CLIENT_IP:
                return rule
        return None
