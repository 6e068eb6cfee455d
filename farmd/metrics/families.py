# SPDX-License-Identifier: Apache-2.0
"""From what a node says to metric families. Pure: the same answers, the same metrics.

A metric is there when it is known and left out when it is not: without an answer from the engine there is no
`farm_member_state`, rather than one that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from farmd.metrics.catalogue import CATALOGUE, COMMON_LABELS, Kind
from farmd.metrics.totals import BOUNDS_MS, Durations, Totals
from farmd.model.answers import Counters, EngineData, FarmStatus, FilterData, MemberData, ProblemData, ViewData
from farmd.model.buckets import BUCKETS
from farmd.model.nodes import MemberState, Role

PHASES = ("serving", "waiting", "joining", "leaving", "closed")
ATTACH_MODES = ("native", "generic")
SEVERITIES = ("warning", "error")
CHANGES = {
    "failure": "member.failed",
    "join": "member.joined",
    "leave": "member.left",
    "drain": "member.drained",
    "ready": "member.ready",
    "weight": "weight.changed",
}
"""Reasons of `farm_membership_changes_total`, and the event that each of them counts."""

Rows = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True)
class ExporterFacts:
    """What does not change while an exporter runs."""

    farm: str
    node: str
    role: Role
    version: str
    python: str


@dataclass(frozen=True, slots=True)
class Reading:
    """How one part of a scrape went."""

    collector: str
    success: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one scrape found; None for what could not be read."""

    status: FarmStatus | None
    counters: Counters | None
    totals: Totals | None
    readings: tuple[Reading, ...] = ()


def families(snapshot: Snapshot, facts: ExporterFacts) -> Iterator[Metric]:
    """Every metric that `snapshot` knows something about."""
    common = (facts.farm, facts.node)
    for name, rows in _everything(snapshot, facts):
        spec = CATALOGUE[name]
        family = _FAMILIES[spec.kind](name, spec.help, labels=(*COMMON_LABELS, *spec.labels))
        for labels, value in rows:
            family.add_metric((*common, *labels), value)
        if family.samples:
            yield family
    if snapshot.totals is not None:
        yield _failovers(snapshot.totals.failovers, common)


_FAMILIES: dict[Kind, type[GaugeMetricFamily | CounterMetricFamily]] = {
    Kind.GAUGE: GaugeMetricFamily,
    Kind.COUNTER: CounterMetricFamily,
}


def _everything(snapshot: Snapshot, facts: ExporterFacts) -> Iterator[tuple[str, Rows]]:
    status = snapshot.status
    yield "farm_up", [((facts.role,), status is not None and _does_its_part(status, facts.role))]
    yield "farm_build_info", [((facts.version, facts.python), 1)]
    yield "farm_collector_success", [((one.collector,), one.success) for one in snapshot.readings]
    yield "farm_collector_duration_seconds", [((one.collector,), one.seconds) for one in snapshot.readings]
    if status is not None:
        yield from _node(status, facts.role)
        yield from _view(status["view"])
        yield "farm_buckets", [((group,), BUCKETS) for group in status["groups"]]
        yield from _members(status["members"])
        yield from _engine(status.get("engine"))
    if snapshot.counters is not None:
        counted = snapshot.counters["counters"]
        yield (
            "farm_filter_packets_total",
            [((one["rule"] or "", one["verdict"], one["reason"]), one["packets"]) for one in counted],
        )
    if snapshot.totals is not None:
        yield from _happened(snapshot.totals.counts)


def _does_its_part(status: FarmStatus, role: Role) -> bool:
    if status["phase"] != "serving":
        return False
    return role is Role.WITNESS or (status["lease"]["valid"] and bool(status["filter"]))


def _node(status: FarmStatus, role: Role) -> Iterator[tuple[str, Rows]]:
    yield "farm_config_info", [((status["profile"], status["delivery"]), 1)]
    if "config_hash" in status:
        yield "farm_config_hash_info", [((status["config_hash"],), 1)]
    yield "farm_phase", _one_of(PHASES, status["phase"])
    yield "farm_exclusive", [((), status["exclusive"])]
    if role is Role.NODE:
        yield "farm_lease_left_seconds", [((), status["lease"]["left_seconds"])]
    yield "farm_problems", _problems(status["problems"])
    yield "farm_filter_attached", _attached(status["filter"])


def _problems(problems: Iterable[ProblemData]) -> Rows:
    severities = [problem["severity"] for problem in problems]
    return [((severity,), severities.count(severity)) for severity in SEVERITIES]


def _attached(filters: Iterable[FilterData]) -> Rows:
    return [((one["interface"], mode), one["mode"] == mode) for one in filters for mode in ATTACH_MODES]


def _view(view: ViewData | None) -> Iterator[tuple[str, Rows]]:
    if view is None:
        return
    yield "farm_view_epoch", [((), view["epoch"])]
    yield "farm_view_started", [((), view["started"])]
    if view["started"] and view["since"] is not None:
        yield "farm_view_start_timestamp_seconds", [((), _timestamp(view["since"]))]


def _members(members: list[MemberData]) -> Iterator[tuple[str, Rows]]:
    yield (
        "farm_member_info",
        [((one["name"], str(one["number"]), one["role"], "yes" if one["voter"] else "no"), 1) for one in members],
    )
    yield (
        "farm_member_state",
        [((one["name"], *state), is_it) for one in members for state, is_it in _one_of(MemberState, one["state"])],
    )
    yield (
        "farm_member_state_timestamp_seconds",
        [((one["name"],), _timestamp(one["since"])) for one in members if one["since"] is not None],
    )
    yield (
        "farm_member_silence_seconds",
        [
            ((one["name"],), one["last_heard_seconds"])
            for one in members
            if one["last_heard_seconds"] is not None and not one["self"]
        ],
    )
    yield from _shares(members)
    yield (
        "farm_member_connections",
        [((one["name"],), one["connections"]) for one in _serving(members) if one["connections"] is not None],
    )
    yield (
        "farm_member_held_connections",
        [((one["name"],), one["held_connections"]) for one in _serving(members) if one["held_connections"] is not None],
    )


def _serving(members: Iterable[MemberData]) -> Iterator[MemberData]:
    return (one for one in members if one["role"] == Role.NODE)


def _shares(members: Iterable[MemberData]) -> Iterator[tuple[str, Rows]]:
    shares = [(one["name"], share) for one in members for share in one["groups"]]
    yield (
        "farm_member_weight",
        [
            ((member, share["group"], kind), weight)
            for member, share in shares
            for kind, weight in (("configured", share["weight"]), ("effective", share["effective_weight"]))
        ],
    )
    yield "farm_member_buckets", [((member, share["group"]), share["buckets"]) for member, share in shares]


def _engine(engine: EngineData | None) -> Iterator[tuple[str, Rows]]:
    if engine is None:
        return
    yield "farm_engine_datagrams_dropped_total", [((why,), n) for why, n in sorted(engine["datagrams_dropped"].items())]
    yield "farm_engine_send_errors_total", [((), engine["send_errors"])]


def _happened(counts: Mapping[str, int]) -> Iterator[tuple[str, Rows]]:
    yield "farm_views_started_total", [((), counts.get("view.started", 0))]
    yield "farm_membership_changes_total", [((reason,), counts.get(kind, 0)) for reason, kind in CHANGES.items()]
    yield "farm_leases_lost_total", [((), counts.get("lease.lost", 0))]
    yield "farm_engine_stalls_total", [((), counts.get("engine.stalled", 0))]
    yield "farm_engine_starts_total", [((), counts.get("engine.started", 0))]
    yield "farm_requests_total", [((outcome,), counts.get(f"request.{outcome}", 0)) for outcome in ("done", "expired")]
    reloads = [((outcome,), counts.get(f"config.{outcome}", 0)) for outcome in ("accepted", "rejected")]
    yield "farm_config_reloads_total", reloads


def _failovers(failovers: Mapping[str, Durations], common: tuple[str, str]) -> Metric:
    spec = CATALOGUE["farm_failover_duration_seconds"]
    family = HistogramMetricFamily(spec.name, spec.help, labels=(*COMMON_LABELS, *spec.labels))
    bounds = [*(f"{bound / 1000:g}" for bound in BOUNDS_MS), "+Inf"]
    for phase, durations in failovers.items():
        buckets = [(bound, float(sum(durations.counts[: n + 1]))) for n, bound in enumerate(bounds)]
        family.add_metric((*common, phase), buckets, durations.sum_ns / 1e9)
    return family


def _one_of(names: Iterable[str], current: str) -> Rows:
    return [((str(name),), name == current) for name in names]


def _timestamp(rfc3339: str) -> float:
    return datetime.fromisoformat(rfc3339).timestamp()
