# SPDX-License-Identifier: Apache-2.0
"""From a node's answers to metrics: pure, and complete against the catalogue and README.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from farmd.metrics.catalogue import CATALOGUE, COMMON_LABELS, Kind
from farmd.metrics.families import ATTACH_MODES, CHANGES, PHASES, ExporterFacts, Reading, Snapshot, families
from farmd.metrics.totals import Totals
from farmd.model.answers import CounterData, Counters, EngineData, EventData, FarmStatus, LeaseData, ProblemData
from farmd.model.nodes import MemberState, Role
from tests.unit.fakefarmd import farm_status, member

README = Path(__file__).parents[2] / "farmd" / "metrics" / "README.md"
NODE = ExporterFacts("web", "node1", Role.NODE, "1.2.3", "3.11.2")
WITNESS = ExporterFacts("web", "witness", Role.WITNESS, "1.2.3", "3.11.2")


def status() -> FarmStatus:
    found = farm_status()
    found["engine"] = EngineData(datagrams_dropped={"forged": 3, "duplicate": 40}, send_errors=2)
    found["config_hash"] = "0123456789abcdef"
    return found


def counters() -> Counters:
    return Counters(
        counters=[
            CounterData(rule=None, reason="drop-lease-over", verdict="drop", packets=3),
            CounterData(rule="web", reason="accept-own", verdict="pass", packets=2**53),
        ]
    )


def event(number: int, kind: str, **data: object) -> EventData:
    return EventData(id=number, at=f"2026-08-01T12:00:{number:02}.000Z", type=kind, text="", data=data)


def totals() -> Totals:
    took = event(3, "failover.done", detect_ns=450_000_000, agree_ns=8_000_000, program_ns=900_000)
    return Totals().fold([event(1, "view.started"), event(2, "member.failed"), took])


def samples(snapshot: Snapshot, facts: ExporterFacts = NODE) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """By name and labels, those that every metric has left out."""
    return {
        (sample.name, frozenset(sample.labels.items()) - {("farm", facts.farm), ("node", facts.node)}): sample.value
        for family in families(snapshot, facts)
        for sample in family.samples
    }


def value(snapshot: Snapshot, name: str, facts: ExporterFacts = NODE, **labels: str) -> float | None:
    return samples(snapshot, facts).get((name, frozenset(labels.items())))


def everything() -> Snapshot:
    return Snapshot(status(), counters(), totals(), (Reading("status", True, 0.002),))


def test_every_metric_of_the_catalogue_is_exported_and_no_other() -> None:
    exported = {
        family.name + ("_total" if family.type == "counter" else ""): family for family in families(everything(), NODE)
    }
    assert set(exported) == set(CATALOGUE)
    for name, spec in CATALOGUE.items():
        assert exported[name].type == spec.kind
        assert exported[name].documentation == spec.help
        for sample in exported[name].samples:
            assert set(sample.labels) - {"le"} == {*COMMON_LABELS, *spec.labels}, name


def test_names_follow_prometheus_rules() -> None:
    for name, spec in CATALOGUE.items():
        assert re.fullmatch(r"farm_[a-z_]+", name)
        assert name.endswith("_total") == (spec.kind is Kind.COUNTER)
        assert spec.help.endswith(".")
        assert not set(spec.labels) & {*COMMON_LABELS, "job", "instance"}


def test_readme_documents_exactly_what_is_exported() -> None:
    documented = {}
    for line in README.read_text().splitlines():
        if line.startswith("| `farm_"):
            name, kind, labels, text = (cell.strip() for cell in line.strip("|").split("|"))
            assert text
            documented[name.strip("`")] = (kind, tuple(re.findall(r"`(\w+)`", labels)))
    assert documented == {name: (spec.kind, spec.labels) for name, spec in CATALOGUE.items()}


def test_readme_names_no_metric_that_does_not_exist() -> None:
    named = set(re.findall(r"\bfarm_\w+", README.read_text())) - {"farm_member_"}
    assert named == set(CATALOGUE)


def test_no_metric_could_name_a_client() -> None:
    assert not {
        label for spec in CATALOGUE.values() for label in spec.labels if "client" in label or "address" in label
    }
    values = {value for _, labels in samples(everything()) for _, value in labels}
    assert not {value for value in values if re.fullmatch(r"\d+\.\d+\.\d+\.\d+|[0-9a-f]*::[0-9a-f:]*", value)}


def test_a_member_has_one_series_for_each_state() -> None:
    changed = status()
    changed["members"][1]["state"] = "draining"
    seen = {
        state: value(Snapshot(changed, None, None), "farm_member_state", member="node2", state=state)
        for state in MemberState
    }
    assert seen == {state: float(state == "draining") for state in MemberState}


def test_weights_and_buckets() -> None:
    changed = status()
    share = changed["members"][2]["groups"][0]
    share["weight"], share["effective_weight"], share["buckets"] = 50, 0, 0
    snapshot = Snapshot(changed, None, None)
    for kind, weight in (("configured", 50), ("effective", 0)):
        assert value(snapshot, "farm_member_weight", member="node3", group="default", kind=kind) == weight
    assert value(snapshot, "farm_member_buckets", member="node3", group="default") == 0
    assert value(snapshot, "farm_buckets", group="default") == 4096


def test_packets_keep_rule_verdict_and_reason() -> None:
    snapshot = Snapshot(None, counters(), None)
    name = "farm_filter_packets_total"
    assert value(snapshot, name, rule="web", verdict="pass", reason="accept-own") == 2**53
    assert value(snapshot, name, rule="", verdict="drop", reason="drop-lease-over") == 3


def test_the_filter_says_in_which_mode_it_is_attached() -> None:
    snapshot = Snapshot(status(), None, None)
    assert value(snapshot, "farm_filter_attached", interface="eth0", mode="generic") == 1
    assert value(snapshot, "farm_filter_attached", interface="eth0", mode="native") == 0


def test_a_node_is_up_only_while_it_serves_under_a_lease_behind_a_filter() -> None:
    def up(changed: FarmStatus | None) -> float | None:
        return value(Snapshot(changed, None, None), "farm_up", role="node")

    assert up(status()) == 1
    assert up(None) == 0
    waiting, bare, late = status(), status(), status()
    waiting["phase"] = "waiting"
    bare["filter"] = []
    late["lease"] = LeaseData(left_seconds=0.0, valid=False)
    assert [up(one) for one in (waiting, bare, late)] == [0, 0, 0]


def test_a_witness_has_no_lease_and_is_up_without_one() -> None:
    changed = status()
    changed["lease"] = LeaseData(left_seconds=0.0, valid=False)
    changed["filter"] = []
    changed["members"].append(member(4, role="witness", connections=None))
    snapshot = Snapshot(changed, None, None)
    assert value(snapshot, "farm_up", WITNESS, role="witness") == 1
    assert value(snapshot, "farm_lease_left_seconds", WITNESS) is None
    assert value(snapshot, "farm_member_state", WITNESS, member="witness", state="up") == 1
    assert value(snapshot, "farm_member_connections", WITNESS, member="witness") is None
    assert value(snapshot, "farm_member_info", WITNESS, member="witness", number="3", role="witness", voter="yes") == 1


def test_what_is_not_known_is_left_out() -> None:
    changed = status()
    changed["view"] = None
    del changed["engine"]
    unheard = changed["members"][1]
    unheard["since"] = unheard["last_heard_seconds"] = unheard["connections"] = unheard["held_connections"] = None
    names = {(name, dict(labels).get("member")) for name, labels in samples(Snapshot(changed, None, None))}
    assert not {name for name, _ in names if name.startswith(("farm_view", "farm_engine", "farm_filter_packets"))}
    for name in (
        "farm_member_state_timestamp_seconds",
        "farm_member_silence_seconds",
        "farm_member_connections",
        "farm_member_held_connections",
    ):
        assert (name, "node2") not in names
        assert (name, "node3") in names


def test_a_node_does_not_hear_itself() -> None:
    snapshot = Snapshot(status(), None, None)
    assert value(snapshot, "farm_member_silence_seconds", member="node1") is None
    assert value(snapshot, "farm_member_silence_seconds", member="node2") == 0.05


def test_a_view_has_no_start_before_it_started() -> None:
    changed = status()
    assert changed["view"] is not None
    assert value(Snapshot(changed, None, None), "farm_view_start_timestamp_seconds") == 1785585600
    changed["view"]["started"] = False
    assert value(Snapshot(changed, None, None), "farm_view_started") == 0
    assert value(Snapshot(changed, None, None), "farm_view_start_timestamp_seconds") is None


def test_problems_are_counted_by_severity() -> None:
    changed = status()
    changed["problems"] = [ProblemData(severity="error", text="", next_step="")] * 2
    snapshot = Snapshot(changed, None, None)
    assert value(snapshot, "farm_problems", severity="error") == 2
    assert value(snapshot, "farm_problems", severity="warning") == 0


def test_changes_and_takeovers_come_from_events() -> None:
    snapshot = Snapshot(None, None, totals())
    assert value(snapshot, "farm_views_started_total") == 1
    assert value(snapshot, "farm_membership_changes_total", reason="failure") == 1
    assert value(snapshot, "farm_membership_changes_total", reason="join") == 0
    name = "farm_failover_duration_seconds"
    assert value(snapshot, f"{name}_sum", phase="detect") == 0.45
    assert value(snapshot, f"{name}_count", phase="agree") == 1
    assert value(snapshot, f"{name}_bucket", phase="detect", le="0.25") == 0
    assert value(snapshot, f"{name}_bucket", phase="detect", le="0.5") == 1
    assert value(snapshot, f"{name}_bucket", phase="detect", le="+Inf") == 1
    assert value(snapshot, f"{name}_bucket", phase="program", le="0.001") == 1


def test_the_words_are_those_of_the_other_rooms() -> None:
    from farmd.membership.commands import EventType, Phase
    from farmd.model.config import AttachMode

    assert set(PHASES) == set(Phase)
    assert set(ATTACH_MODES) == set(AttachMode) - {AttachMode.AUTO}
    counted = {*CHANGES.values(), "view.started", "lease.lost", "engine.stalled", "request.done", "request.expired"}
    assert counted <= set(EventType)


@pytest.mark.parametrize("facts", [NODE, WITNESS], ids=["node", "witness"])
def test_the_same_answers_give_the_same_metrics(facts: ExporterFacts) -> None:
    assert samples(everything(), facts) == samples(everything(), facts)
