# SPDX-License-Identifier: Apache-2.0
"""Prometheus's own tool on what we ship and what we say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from farmd.metrics.families import families
from tests.metrics.running import FILES, promtool
from tests.unit.test_metrics import NODE, README, everything

HERE = Path(__file__).parent


class Fixed:
    """A collector of metrics that are always the same."""

    def collect(self) -> list[Metric]:
        return list(families(everything(), NODE))


def test_the_exposition_has_no_flaw() -> None:
    registry = CollectorRegistry()
    registry.register(Fixed())
    assert promtool("check", "metrics", stdin=generate_latest(registry)) == ""


@pytest.mark.parametrize("name", ["farm-rules.yml", "farm-alerts.yml"])
def test_rules_are_valid(name: str) -> None:
    promtool("check", "rules", str(FILES / name))


@pytest.mark.parametrize("name", ["farm-rules.test.yml", "farm-alerts.test.yml"])
def test_rules_do_what_their_cases_say(name: str) -> None:
    promtool("test", "rules", str(HERE / name))


def test_the_readme_shows_a_valid_configuration(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    assert shown is not None
    (tmp_path / "prometheus.yml").write_text(shown[1])
    for rules in FILES.glob("*.yml"):
        (tmp_path / rules.name).write_bytes(rules.read_bytes())
    promtool("check", "config", str(tmp_path / "prometheus.yml"))
