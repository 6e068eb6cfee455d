# SPDX-License-Identifier: Apache-2.0
"""The dashboard, alerts and rules as files: whole, documented, and about metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from farmd.metrics import monitoring
from farmd.metrics.catalogue import CATALOGUE, Kind
from farmd.model.errors import NotPermitted

ROOT = Path(__file__).parents[2]
FILES = ROOT / "farmd" / "metrics" / "files"
DASHBOARD: dict[str, Any] = json.loads((FILES / "farm-overview.json").read_text())
ALERTS = (FILES / "farm-alerts.yml").read_text()
RULES = (FILES / "farm-rules.yml").read_text()
CASES = (ROOT / "tests" / "metrics" / "farm-alerts.test.yml").read_text()

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
VARIABLES = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
GRAFANA = {"__rate_interval", "__range"}
"""Variables that Grafana itself sets."""

SERIES = {
    name + suffix
    for name, spec in CATALOGUE.items()
    for suffix in (("_bucket", "_sum", "_count") if spec.kind is Kind.HISTOGRAM else ("",))
}


def titles(panels: list[dict[str, Any]]) -> list[str]:
    return [panel["title"] for panel in panels]


def named(text: str) -> set[str]:
    """The farm metrics in an expression; labels and recorded series are no metrics."""
    return set(re.findall(r"\bfarm_\w+(?![\w:])", text))


def test_the_dashboard_has_an_identity_and_no_leftovers() -> None:
    assert DASHBOARD["uid"]
    assert DASHBOARD["title"]
    assert DASHBOARD["id"] is None
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert len(set(titles(PANELS))) == len(PANELS)


def test_rows_are_questions() -> None:
    assert len(ROWS) == 7
    assert all(title.endswith("?") for title in titles(ROWS))


@pytest.mark.parametrize("panel", PANELS, ids=titles(PANELS))
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_data_source_is_the_variable() -> None:
    def sources(node: object) -> list[dict[str, str]]:
        if isinstance(node, list):
            return [found for one in node for found in sources(one)]
        if not isinstance(node, dict):
            return []
        own = [node["datasource"]] if isinstance(node.get("datasource"), dict) else []
        return own + [found for one in node.values() for found in sources(one)]

    uids = {source["uid"] for source in sources(DASHBOARD)}
    assert uids == {"${datasource}", "-- Grafana --"}, "the latter is Grafana's own annotations"


def test_variables_are_used_and_exist() -> None:
    assert {"datasource", "job", "farm", "member"} == VARIABLES
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([DASHBOARD["panels"], DASHBOARD["annotations"]])))
    assert used - GRAFANA == VARIABLES


def test_annotations_show_changes() -> None:
    own = [one for one in DASHBOARD["annotations"]["list"] if not one.get("builtIn")]
    assert any("farm_membership_changes_total" in one["expr"] for one in own)


@pytest.mark.parametrize(
    "text",
    [json.dumps([DASHBOARD["panels"], DASHBOARD["annotations"]]), ALERTS, RULES],
    ids=["dashboard", "alerts", "rules"],
)
def test_only_metrics_that_exist_are_asked_for(text: str) -> None:
    expressions = re.sub(r"farm_(member|node):\w+", "", text)
    assert named(expressions) - SERIES == set()


def test_every_metric_is_shown_or_watched() -> None:
    """What nobody looks at need not be exported. The exceptions are joined to other metrics by people."""
    shown = named(json.dumps(DASHBOARD) + ALERTS)
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} | shown
    assert set(CATALOGUE) - bases == {
        "farm_config_info",
        "farm_phase",
        "farm_view_started",
        "farm_view_start_timestamp_seconds",
        "farm_views_started_total",
    }


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", ALERTS)


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_is_complete_and_has_its_case(alert: str) -> None:
    body = ALERTS.split(f"- alert: {alert}\n")[1].split("- alert: ")[0]
    assert alert.startswith("Farm")
    assert re.search(r"labels: \{severity: (critical|warning|info)\}", body)
    summary = re.search(r"summary: (.+)", body)
    assert summary is not None
    assert summary[1].endswith(".")
    assert "{{" not in summary[1]
    assert "description: " in body
    assert f"alertname: {alert}, exp_alerts: []" in CASES
    assert re.search(rf"alertname: {alert}\n +exp_alerts:\n", CASES)


def test_alert_names_are_unique() -> None:
    assert len(alerts()) == len(set(alerts())) > 20


def test_export_writes_the_files(tmp_path: Path) -> None:
    written = monitoring.export(tmp_path / "new" / "folder")
    assert [path.name for path in written] == list(monitoring.FILES)
    for path in written:
        assert path.read_bytes() == (FILES / path.name).read_bytes()
    assert {path.name for path in FILES.iterdir()} == set(monitoring.FILES)


def test_export_to_where_nobody_can_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotPermitted, match=str(tmp_path / "file")):
        monitoring.export(tmp_path / "file")
