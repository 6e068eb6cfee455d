# SPDX-License-Identifier: Apache-2.0
"""One scrape: ask the source, fold the events, hand out the metrics. Each part may fail alone."""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector

from farmd import __version__
from farmd.metrics.families import ExporterFacts, Reading, Snapshot, families
from farmd.metrics.source import Source
from farmd.metrics.totals import Memory, Totals
from farmd.model.errors import FarmError
from farmd.model.nodes import Role

MEMORY_FILE = "metrics.json"
"""In the state folder: the totals made from events."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def facts_of(farm: str, node: str, role: Role) -> ExporterFacts:
    """The facts of an exporter of this release."""
    return ExporterFacts(farm, node, role, __version__, platform.python_version())


def registry_of(source: Source, facts: ExporterFacts, state_dir: Path | None) -> CollectorRegistry:
    """A registry of our own with the farm's metrics and this process's; totals are kept in `state_dir`, if given."""
    memory = Memory(None if state_dir is None else state_dir / MEMORY_FILE)
    # auto_describe would scrape once at registration, before there is anything to scrape.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FarmCollector(source, facts, memory))
    ProcessCollector(registry=registry)
    return registry


class FarmCollector:
    """Reads everything anew on each scrape. Scrapes at the same time wait for each other."""

    def __init__(self, source: Source, facts: ExporterFacts, memory: Memory) -> None:
        self._source = source
        self._facts = facts
        self._memory = memory
        self._totals = memory.load()
        self._failing: set[str] = set()
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        readings: list[Reading] = []
        with self._lock:
            status = self._measured(readings, "status", self._source.status)
            counters = self._measured(readings, "counters", self._source.counters)
            totals = self._measured(readings, "events", self._count)
        return families(Snapshot(status, counters, totals, tuple(readings)), self._facts)

    def _count(self) -> Totals:
        """The totals with what happened since the last scrape."""
        before = self._totals
        while (totals := self._totals.fold(self._source.events(self._totals.last_id))) is not self._totals:
            self._totals = totals
        if self._totals is not before:
            with suppress(OSError):  # The event log, in the same folder, has said that it cannot be written.
                self._memory.save(self._totals)
        return self._totals

    def _measured(self, readings: list[Reading], collector: str, read: Callable[[], _T]) -> _T | None:
        """What `read` returns, or None if it fails: the rest of a scrape is worth having without it."""
        begin = time.perf_counter()
        found: _T | None = None
        try:
            found = read()
            self._failing.discard(collector)
        except Exception as error:
            if collector not in self._failing:  # Once is enough: a scrape comes every few seconds.
                _log.warning("metrics: %s: %s", collector, error, exc_info=not isinstance(error, FarmError))
            self._failing.add(collector)
        readings.append(Reading(collector, found is not None, time.perf_counter() - begin))
        return found
