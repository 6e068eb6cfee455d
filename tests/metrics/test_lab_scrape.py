# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes the nodes of a lab: every expression of dashboard and rules runs on what they say."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from farmd.lab.farm import Farm
from farmd.lab.lab import Lab
from farmd.lab.netns import Part
from farmd.lab.plan import PORT_BY_ADDRESS, VIP, LabPlan
from farmd.metrics.catalogue import CATALOGUE, Kind
from farmd.metrics.totals import PHASES
from farmd.model.buckets import BUCKETS
from farmd.model.config import METRICS_PORT
from tests.metrics.running import FILES, Prometheus, exporter, prometheus, promtool, scrape, wait

pytestmark = [pytest.mark.root, pytest.mark.lab]

NODES = ("node1", "node2", "node3")
DASHBOARD: dict[str, Any] = json.loads((FILES / "farm-overview.json").read_text())
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
} | {note["name"]: note["expr"] for note in DASHBOARD["annotations"]["list"] if "expr" in note}
VARIABLES = {"$job": "farm", "$farm": ".*", "$member": ".*", "$__rate_interval": "2m", "$__range": "2m"}


@dataclass
class Watched:
    """A farm, the ports of its exporters, and who scrapes them."""

    farm: Farm
    ports: dict[str, int]
    prometheus: Prometheus


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Three nodes that have had a client, a drain and its end while they were scraped."""
    lab = Lab(LabPlan(name=f"m{os.getpid() % 10**6}"))
    with ExitStack() as stack:
        stack.callback(lab.down)
        lab.up()
        farm = Farm(lab)
        farm.wait_serving(NODES, seconds=60)
        ports = {node: stack.enter_context(exporter(lab.plan.home(lab.plan.host(node)) / "api.sock")) for node in NODES}
        server = stack.enter_context(prometheus(tmp_path_factory.mktemp("prometheus"), list(ports.values())))
        lab.api("node1").drain("node3")
        farm.wait_serving(("node1", "node2"))
        lab.api("node1").ready("node3")
        farm.wait_serving(NODES)
        for host in lab.plan.client_hosts:
            lab.exec(host.name, ["curl", "-sS", "-m", "5", f"http://{VIP}:{PORT_BY_ADDRESS}/"])
        wait("Prometheus has seen it", lambda: bool(server.query(_ready(QUERIES["Changes of the view"]))))
        wait("and a client's packets", lambda: bool(server.query(_ready(QUERIES["Packets accepted A"]))))
        yield Watched(farm, ports, server)


def _ready(expression: str) -> str:
    """`expression` as Grafana would send it."""
    for variable, text in VARIABLES.items():
        expression = expression.replace(variable, text)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize("title", QUERIES)
def test_every_panel_has_something_to_show(watched: Watched, title: str) -> None:
    assert watched.prometheus.query(_ready(QUERIES[title])), QUERIES[title]


def test_every_rule_is_evaluated(watched: Watched) -> None:
    def healthy() -> bool:
        return {rule["health"] for rule in watched.prometheus.rules()} == {"ok"}

    wait("every rule was evaluated without error", healthy)
    records = re.findall(r"record: (\S+)", (FILES / "farm-rules.yml").read_text())
    wait("everything is recorded", lambda: all(watched.prometheus.query(record) for record in records))


def test_no_alert_that_clients_would_feel_fires_on_a_calm_farm(watched: Watched) -> None:
    assert watched.prometheus.query('ALERTS{severity="critical"}') == []


def test_every_metric_is_fed_by_real_nodes(watched: Watched) -> None:
    for name, spec in CATALOGUE.items():
        series = f"{name}_count" if spec.kind is Kind.HISTOGRAM else name
        nodes = {sample["metric"]["node"] for sample in watched.prometheus.query(series)}
        assert nodes == set(NODES), name


def test_promtool_finds_no_flaw_in_a_nodes_exposition(watched: Watched) -> None:
    assert promtool("check", "metrics", stdin=scrape(watched.ports["node1"])) == ""


def test_numbers_are_those_of_the_farm(watched: Watched) -> None:
    server = watched.prometheus
    assert server.value('sum(farm_up{role="node"})') == 3
    for node in NODES:
        status = watched.farm.status(node)
        assert status["view"] is not None
        assert server.value(f'farm_view_epoch{{node="{node}"}}') == status["view"]["epoch"]
        assert server.value(f'sum(farm_member_buckets{{node="{node}"}})') == BUCKETS * len(status["groups"])
        assert server.value(f'sum(farm_filter_attached{{node="{node}",mode="generic"}})') == 1
    assert server.value("count(count by (hash) (farm_config_hash_info))") == 1
    assert server.value('max(farm_membership_changes_total{reason="drain"})') == 1
    assert server.value('max(farm_membership_changes_total{reason="ready"})') == 1


def _switch_on_metrics(lab: Lab, node: str) -> None:
    path = lab.plan.home(lab.plan.host(node)) / "farm.toml"
    if "[metrics]" not in path.read_text():
        path.write_text(f"{path.read_text()}\n[metrics]\n")


def _running(lab: Lab, node: str) -> set[Part]:
    return {process.part for host in lab.status().hosts if host.host.name == node for process in host.processes}


def test_a_daemon_that_restarts_takes_its_counters_along(watched: Watched) -> None:
    packets = 'sum(farm_filter_packets_total{node="node2"})'
    before = watched.prometheus.value(packets)
    views = watched.prometheus.value('farm_views_started_total{node="node2"}')
    watched.farm.lab.stop("node2")
    wait("its absence is noticed", lambda: watched.prometheus.value('farm_up{node="node2"}') == 0)
    assert watched.prometheus.value('farm_collector_success{node="node2",collector="status"}') == 0
    wait("it has ended", lambda: Part.DAEMON not in _running(watched.farm.lab, "node2"))
    _switch_on_metrics(watched.farm.lab, "node2")
    watched.farm.lab.start("node2")
    wait("it is back", lambda: watched.prometheus.value('farm_up{node="node2"}') == 1)
    own = watched.farm.lab.exec("node2", ["curl", "-sS", f"http://127.0.0.1:{METRICS_PORT}/metrics"])
    assert promtool("check", "metrics", stdin=own.stdout.encode()) == ""
    assert re.search(r'^farm_up\{.*node="node2".*\} 1.0$', own.stdout, re.MULTILINE), own
    after = watched.prometheus.value(packets)
    assert before is not None
    assert after is not None
    assert after >= before > 0
    assert watched.prometheus.value('farm_views_started_total{node="node2"}') == views
    resets = watched.prometheus.value('sum(resets(farm_filter_packets_total{node="node2"}[2m]))')
    assert resets == 0


def _values(watched: Watched, expression: str) -> dict[str, float]:
    return {sample["metric"]["phase"]: float(sample["value"][1]) for sample in watched.prometheus.query(expression)}


def test_a_lost_node_is_alerted(watched: Watched) -> None:
    watched.farm.lab.kill("node3")
    watched.farm.wait_serving(("node1", "node2"))

    def pending() -> set[str]:
        return {alert["metric"]["alertname"] for alert in watched.prometheus.query("ALERTS")}

    wait("alerts are on their way", lambda: {"FarmMemberDown", "FarmNodeNotServing"} <= pending())
    down = watched.prometheus.query('ALERTS{alertname="FarmMemberDown"}')
    assert [alert["metric"]["member"] for alert in down] == ["node3"]
    assert watched.prometheus.value('sum(farm_up{role="node"})') == 2
    told = "count by (phase) (farm_failover_duration_seconds_count == 1)"
    wait("both have told how long it took", lambda: _values(watched, told) == dict.fromkeys(PHASES, 2))
    took = watched.prometheus.value("max(sum by (node) (farm_failover_duration_seconds_sum))")
    assert took is not None
    assert 0.3 < took < 5
    assert watched.prometheus.value('max(farm_membership_changes_total{reason="failure"})') == 1
