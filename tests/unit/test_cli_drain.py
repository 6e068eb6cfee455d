# SPDX-License-Identifier: Apache-2.0
"""`farmctl drain`, `ready`, `leave`, `weight`: what they ask for, and how waiting ends."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from farmd.cli.main import run
from farmd.model.answers import FarmStatus
from tests.unit.fakefarmd import Served, line_of, running_farmctl, serving


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


def ctl(farm: Served, *arguments: str) -> int:
    return run(["--socket", str(farm.path), *arguments])


def test_drain_prints_the_connections_as_they_fall(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    farm.backend.draining = [12, 12, 3]

    code = ctl(farm, "drain", "node2", "--reason", "disk")

    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        "node2 takes no new clients from the next view on",
        "node2  DRAINING  12 connections left",
        "node2  DRAINING  3 connections left",
        "node2  DRAINED   0 connections left",
    ]
    assert lines[-1].startswith("drained in ")
    assert farm.backend.asked == [("drain", "node2", False, "disk")]


def test_drain_in_json_is_one_object_a_line(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    farm.backend.draining = [2]

    assert ctl(farm, "--json", "drain", "node2") == 0

    first, *rest = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["kind"], first["data"]["accepted"]) == ("Operation", True)
    assert [(line["kind"], line["data"]["state"], line["data"]["connections"]) for line in rest] == [
        ("DrainProgress", "draining", 2),
        ("DrainProgress", "drained", 0),
    ]


def test_no_wait_returns_at_once(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    farm.backend.draining = [12] * 1000

    assert ctl(farm, "drain", "node2", "--no-wait") == 0
    assert capsys.readouterr().out == "node2 takes no new clients from the next view on\n"


def test_a_wait_that_is_over_is_7_and_says_that_the_drain_goes_on(
    farm: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    farm.backend.draining = [12] * 1000

    assert ctl(farm, "drain", "node2", "--timeout", "0.3") == 7
    assert "12 connections are left after 0.3s; the drain goes on." in capsys.readouterr().err


def test_the_last_serving_node_needs_force(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(farm, "drain", "node1") == 8
    assert "use --force" in capsys.readouterr().err
    assert ctl(farm, "drain", "node1", "--force") == 0
    assert farm.backend.asked[-1] == ("drain", "node1", True, None)


def test_a_node_that_is_away_stays_drained(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    farm.backend.current["members"][1].update({"state": "failed", "connections": None})

    assert ctl(farm, "drain", "node2") == 0
    assert "not in the farm (failed)" in capsys.readouterr().err


def test_a_node_that_dies_while_it_drains_is_a_failure(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    status, calls = farm.backend.status, 0

    async def dying() -> FarmStatus:
        nonlocal calls
        calls += 1
        answer = await status()
        if calls == 2:
            answer["members"][1].update({"state": "failed", "connections": None})
        return answer

    farm.backend.draining = [12] * 1000
    farm.backend.status = dying  # type: ignore[method-assign]

    assert ctl(farm, "drain", "node2") == 1
    assert "went away (failed) before its last connection ended" in capsys.readouterr().err


def test_ctrl_c_ends_the_waiting_and_says_what_goes_on(farm: Served) -> None:
    farm.backend.draining = [12] * 1000
    with running_farmctl("--socket", str(farm.path), "drain", "node2") as draining:
        line_of(draining.stdout)
        line_of(draining.stdout)
        draining.send_signal(signal.SIGINT)
        _, errors = draining.communicate(timeout=20)
        assert draining.returncode == 130
    assert errors == "farmctl: the drain of node2 goes on; `farmctl ready node2` ends it\n"


def test_a_daemon_restart_does_not_end_the_waiting(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with serving(tmp_path) as farm:
            farm.backend.draining = [12] * 1000
            draining = stack.enter_context(running_farmctl("--socket", str(farm.path), "drain", "node2"))
            line_of(draining.stdout)
            line_of(draining.stdout)
        assert "farmctl: socket" in line_of(draining.stderr)
        with serving(tmp_path) as farm:
            farm.backend.current["members"][1]["state"] = "draining"
            output, _ = draining.communicate(timeout=20)
            assert draining.returncode == 0
        assert "DRAINED" in output


def test_ready_and_leave(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(farm, "ready", "node2") == 0
    assert ctl(farm, "leave", "--json") == 0
    assert farm.backend.asked == [("ready", "node2"), ("leave", False)]
    text = capsys.readouterr().out
    assert text.startswith("node2 takes its share again from the next view on\n{")
    assert json.loads(text.partition("\n")[2])["kind"] == "Operation"


def test_weight_sets_and_shows(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(farm, "weight", "node2", "50", "--group", "heavy") == 0
    assert farm.backend.asked == [("weight", "node2", 50, "heavy")]
    capsys.readouterr()

    assert ctl(farm, "weight", "node2") == 0
    assert capsys.readouterr().out == ("GROUP    WEIGHT  NOW  BUCKETS  SHARE\ndefault     100  100     1366  33.4%\n")
    assert ctl(farm, "weight", "node2", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["kind"], answer["node"], answer["data"]["member"]) == ("MemberWeights", "node1", "node2")


def test_weight_of_what_is_not_there_is_4(farm: Served) -> None:
    assert ctl(farm, "weight", "node9") == 4
    assert ctl(farm, "weight", "node9", "5") == 4
    assert ctl(farm, "weight", "node2", "--group", "nope") == 4
