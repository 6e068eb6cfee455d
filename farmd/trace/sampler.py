# SPDX-License-Identifier: Apache-2.0
"""Joins records to what a person reads: one event a sampled frame or kernel event. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from farmd.dataplane.reasons import Reason
from farmd.dataplane.tap import Sample
from farmd.model.config import FarmConfig
from farmd.model.rules import Address, Rule
from farmd.trace.packets import Packet, read_frame, read_ip
from farmd.trace.places import Place, Places
from farmd.trace.program import Kind
from farmd.trace.records import Form, Record, connection

SETTLED_NS = 50_000_000
"""CPUs and rings hand over out of turn; after this long nothing older comes any more."""
_NAMES = {
    Kind.STACK_DROP: "stack-drop",
    Kind.RESET_SENT: "reset-sent",
    Kind.RESET_RECEIVED: "reset-received",
    Kind.RETRANSMIT: "retransmit",
}
_ANSWERS = (Reason.ARP_ANSWERED, Reason.ND_ANSWERED)
_UNREMARKABLE = frozenset(("NOT_DROPPED_YET", "CONSUMED"))


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the trace: its time (CLOCK_MONOTONIC), what it says, and the frame if it is about one."""

    at_ns: int
    data: dict[str, Any]
    head: bytes = b""
    length: int = 0


class Sampler:
    """Holds what came for a moment, and gives events in the order of their times."""

    def __init__(self, config: FarmConfig, places: Places, drop_reasons: Mapping[int, str]) -> None:
        self._config = config
        self._places = places
        self._drop_reasons = drop_reasons
        self._rules = {rule.index: rule for rule in config.rules}
        self._waiting: list[Record | Sample] = []

    def receive(self, record: Record | Sample) -> None:
        """Take a verdict or a kernel event in."""
        self._waiting.append(record)

    def settle(self, now_ns: int) -> Iterator[Event]:
        """Events of everything that is old enough for its place in the order to be certain."""
        self._waiting.sort(key=lambda waiting: waiting.at_ns)
        while self._waiting and now_ns - self._waiting[0].at_ns >= SETTLED_NS:
            waiting = self._waiting.pop(0)
            if isinstance(waiting, Sample):
                yield from self._verdict(waiting)
            else:
                yield from self._kernel_event(waiting)

    def _verdict(self, sample: Sample) -> Iterator[Event]:
        packet = read_frame(sample.head)
        if packet is None:
            return
        if sample.reason in _ANSWERS:
            packet = packet.turned()  # it was taken as it left
        rule = self._rules.get(sample.rule)
        place = self._places.of(packet, rule)
        data = _who("verdict", packet) | {
            "length": sample.length,
            "verdict": sample.verdict.value,
            "reason": None if sample.reason is None else sample.reason.value,
            "rule": None if rule is None else rule.name,
        }
        yield Event(sample.at_ns, data | _where(place), sample.head, sample.length)

    def _kernel_event(self, record: Record) -> Iterator[Event]:
        packet = connection(record.head) if record.form is Form.TUPLE else read_ip(record.head)
        if packet is None:
            return
        inbound = packet.target in self._config.vips
        packet = packet if inbound else packet.turned()
        detail = None
        if record.kind is Kind.STACK_DROP:
            number = record.reason
            detail = self._drop_reasons.get(number, str(number)).removeprefix("SKB_DROP_REASON_").removeprefix("SKB_")
            if detail in _UNREMARKABLE:
                return
            detail = detail.lower().replace("_", "-")
        rule = self._rule(packet.target, packet)
        data = _who(_NAMES[record.kind], packet) | {"detail": detail, "rule": rule.name if rule else None}
        yield Event(record.at_ns, data | _where(self._places.of(packet, rule)))

    def _rule(self, vip: Address, packet: Packet) -> Rule | None:
        for rule in self._config.rules:
            if (rule.vip, rule.protocol.value) == (vip, packet.protocol) and packet.target_port in rule.ports:
                return rule
        return None


def _who(kind: str, packet: Packet) -> dict[str, Any]:
    """The parts that every line has. The sender is the client: packets are turned so before."""
    return {
        "type": kind,
        "client": str(packet.source),
        "port": packet.source_port,
        "vip": str(packet.target),
        "vport": packet.target_port,
        "protocol": packet.protocol,
        "flags": packet.flags,
    }


def _where(place: Place) -> dict[str, Any]:
    return {"bucket": place.bucket, "group": place.group, "owner": place.owner}
