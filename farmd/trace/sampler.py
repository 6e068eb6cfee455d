# SPDX-License-Identifier: Apache-2.0
"""Joins records to what a person reads: one event a sampled frame or kernel event. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from farmd.dataplane.filter import Probe
from farmd.dataplane.reasons import Verdict
from farmd.model.config import FarmConfig
from farmd.model.rules import Address, Rule
from farmd.trace.packets import Packet, read_frame, read_ip
from farmd.trace.program import Kind
from farmd.trace.records import Form, Record, connection
from farmd.trace.verdicts import Place, Places, Twin, judge

SETTLED_NS = 50_000_000
"""A frame that the filter drops is dropped within microseconds; after this long it was not."""
_FRAMES = (Kind.FRAME, Kind.DROPPED_FRAME)
_NAMES = {
    Kind.STACK_DROP: "stack-drop",
    Kind.RESET_SENT: "reset-sent",
    Kind.RESET_RECEIVED: "reset-received",
    Kind.RETRANSMIT: "retransmit",
}
_UNREMARKABLE = frozenset(("NOT_DROPPED_YET", "CONSUMED"))


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the trace: its time (CLOCK_MONOTONIC), what it says, and the frame if it is about one."""

    at_ns: int
    data: dict[str, Any]
    head: bytes = b""
    length: int = 0


@dataclass(slots=True)
class _Waiting:
    """A record until it is settled. The twin is asked at once, while it still thinks as the filter did."""

    record: Record
    probe: Probe | None = None
    dropped: bool = False


class Sampler:
    """Holds records until it is known what became of the frames; gives events in the order of their times."""

    def __init__(
        self,
        config: FarmConfig,
        twin: Twin,
        places: Places,
        drop_reasons: Mapping[int, str],
        wanted: frozenset[Verdict],
    ) -> None:
        self._config = config
        self._twin = twin
        self._places = places
        self._drop_reasons = drop_reasons
        self._wanted = wanted
        self._waiting: list[_Waiting] = []
        self._frames: dict[int, _Waiting] = {}

    def receive(self, record: Record) -> None:
        """Take a record in."""
        if record.kind is Kind.DROPPED:
            if frame := self._frames.get(record.sequence):
                frame.dropped = True
            return
        waiting = _Waiting(record, dropped=record.kind is Kind.DROPPED_FRAME)
        if record.kind in _FRAMES:
            waiting.probe = self._twin(record.head, record.length, record.ifindex)
            self._frames[record.sequence] = waiting
        self._waiting.append(waiting)

    def settle(self, now_ns: int) -> Iterator[Event]:
        """Events of everything that is old enough to be certain."""
        self._waiting.sort(key=lambda waiting: waiting.record.at_ns)  # CPUs may have handed over out of turn
        while self._waiting and now_ns - self._waiting[0].record.at_ns >= SETTLED_NS:
            waiting = self._waiting.pop(0)
            if waiting.record.kind in _FRAMES:
                del self._frames[waiting.record.sequence]
                yield from self._verdict(waiting)
            else:
                yield from self._kernel_event(waiting.record)

    def _verdict(self, waiting: _Waiting) -> Iterator[Event]:
        frame = waiting.record
        packet = read_frame(frame.head)
        judged = judge(self._config, waiting.probe, waiting.dropped)
        if packet is None or judged is None or judged.verdict not in self._wanted:
            return
        place = self._places.of(packet, judged.rule)
        data = _who("verdict", packet) | {
            "length": frame.length,
            "verdict": judged.verdict.value,
            "reason": None if judged.reason is None else judged.reason.value,
            "rule": None if judged.rule is None else judged.rule.name,
        }
        yield Event(frame.at_ns, data | _where(place), frame.head, frame.length)

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
