# SPDX-License-Identifier: Apache-2.0
"""Counters made from events, and their memory across restarts.

The event log on disk is a ring: it forgets, and a counter must not. So totals are folded from the log, event by event,
and kept with the place up to which they count in a small file of their own, replaced as a whole. After a restart
counting goes on at that place: nothing is counted twice, and nothing is missed that the log still holds.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from farmd.model.answers import EventData

FAILOVER = "failover.done"
"""The event that carries how long each phase of a takeover took, in nanoseconds: `detect_ns` and so on."""
PHASES = ("detect", "agree", "program")
BOUNDS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 750, 1000, 1500, 2500, 5000, 10000)
"""Upper bounds of the histogram's buckets; the timings promise takeovers around 350 and 600 ms."""

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Durations:
    """A histogram: observations by bucket (the last one has no bound), and their sum."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_MS) + 1)
    sum_ns: int = 0

    def observe(self, duration_ns: int) -> Durations:
        """With one more observation."""
        place = next((n for n, bound in enumerate(BOUNDS_MS) if duration_ns <= bound * 1_000_000), len(BOUNDS_MS))
        counts = tuple(count + (n == place) for n, count in enumerate(self.counts))
        return Durations(counts, self.sum_ns + duration_ns)


def _no_durations() -> dict[str, Durations]:
    return {phase: Durations() for phase in PHASES}


@dataclass(frozen=True, slots=True)
class Totals:
    """Events so far by type, takeover times by phase, and the last event that is in them."""

    last_id: int = 0
    last_at: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    failovers: Mapping[str, Durations] = field(default_factory=_no_durations)

    def fold(self, events: Iterable[EventData]) -> Totals:
        """With the events that are not in yet. Ids that begin again are a new log: there, later events are new."""
        new = [event for event in events if event["id"] > self.last_id or event["at"] > self.last_at]
        if not new:
            return self
        counts = Counter(self.counts)
        failovers = dict(self.failovers)
        for event in new:
            counts[event["type"]] += 1
            for phase in PHASES:
                duration_ns = event["data"].get(f"{phase}_ns") if event["type"] == FAILOVER else None
                if isinstance(duration_ns, int) and duration_ns >= 0:
                    failovers[phase] = failovers[phase].observe(duration_ns)
        return Totals(new[-1]["id"], new[-1]["at"], dict(counts), failovers)


class Memory:
    """Totals in a file, or, without one, for as long as this process lives."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> Totals:
        """What was saved last; nothing if there is no file or it cannot be understood: the event log is then all."""
        try:
            return _decode(json.loads(self._path.read_bytes())) if self._path else Totals()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Totals()

    def save(self, totals: Totals) -> None:
        """Replace the file as a whole. Raises OSError when the disk refuses; the file is then as it was."""
        if self._path is None:
            return
        beside = self._path.with_suffix(".new")
        with beside.open("w") as file:
            json.dump(_encode(totals), file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)


def _encode(totals: Totals) -> dict[str, Any]:
    failovers = {phase: {"counts": one.counts, "sum_ns": one.sum_ns} for phase, one in totals.failovers.items()}
    return {
        "version": _VERSION,
        "last_id": totals.last_id,
        "last_at": totals.last_at,
        "counts": dict(totals.counts),
        "bounds_ms": BOUNDS_MS,
        "failovers": failovers,
    }


def _decode(data: dict[str, Any]) -> Totals:
    if data["version"] != _VERSION:
        raise ValueError(f"version {data['version']}")
    totals = Totals(int(data["last_id"]), str(data["last_at"]), {k: int(n) for k, n in data["counts"].items()})
    if data["bounds_ms"] != list(BOUNDS_MS):
        return totals  # Written with other buckets: what was counted in them cannot be told apart any more.
    read = {name: Durations(tuple(one["counts"]), one["sum_ns"]) for name, one in data["failovers"].items()}
    return replace(totals, failovers={**totals.failovers, **read})
