# SPDX-License-Identifier: Apache-2.0
"""`farmctl status`: what people read, what scripts read, and waiting for green."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from farmd.cli.main import run
from farmd.cli.output import Style, age, duration, table
from farmd.cli.status import render, spell_out_watch, unhealthy
from farmd.client import Answer
from farmd.model.answers import FarmStatus, GroupShare
from farmd.model.errors import KernelError
from tests.unit.fakefarmd import Served, farm_status, farmctl, line_of, member, running_farmctl, serving

NOW = "2026-08-01T12:03:12.400Z"


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


def shown(status: FarmStatus, style: Style | None = None) -> str:
    return render(Answer(status, "node1", NOW, (), {}), style or Style())


def test_a_healthy_farm_reads_like_this() -> None:
    assert shown(farm_status()) == (
        """\
farm web as node1 sees it (serving): healthy

  view      epoch 12, started 3m12s ago
  lease     valid, 0.41s left
  profile   exclusive
  delivery  flood
  VIPs      10.77.0.100, fd77::100
  filter    eth0 generic (veth)

NODE   STATE  SINCE  WEIGHT  SHARE  CONNS  HELD  HEARD
node1  UP     3m12s     100  33.4%      4     0  self
node2  UP     3m12s     100  33.4%      4     0  0.05s
node3  UP     3m12s     100  33.4%      4     0  0.05s

RULE  VIP          PORT    AFFINITY   GROUP
web   10.77.0.100  80/tcp  client-ip  default"""
    )


def test_a_farm_in_trouble_says_so_first() -> None:
    status = farm_status()
    status["rules"] = []
    status["exclusive"] = False
    status["lease"] = {"left_seconds": 0.0, "valid": False}
    status["problems"] = [
        {"severity": "warning", "text": "the disk is slow", "next_step": "Look at it"},
        {"severity": "error", "text": "node3 is failed", "next_step": "See whether its farmd runs"},
    ]
    draining = member(2, "draining", connections=7)
    draining["groups"] = [GroupShare(group="default", weight=100, effective_weight=0, buckets=0, share=0.0)]
    gone = member(3, "failed", connections=None)
    gone.update({"held_connections": None, "since": "2026-08-01T12:03:00.000Z", "last_heard_seconds": 12.031})
    witness = member(4, "unseen", role="witness", connections=None)
    witness.update({"since": None, "last_heard_seconds": None, "held_connections": None})
    status["members"] = [member(1), draining, gone, witness]

    assert shown(status) == (
        """\
farm web as node1 sees it (serving): NOT HEALTHY: this node has no lease; node3 is failed

!! node3 is failed
   -> See whether its farmd runs
!  the disk is slow
   -> Look at it

  view      epoch 12, started 3m12s ago
  lease     over: this node accepts nothing
  profile   exclusive, exclusive=false
  delivery  flood
  VIPs      10.77.0.100, fd77::100
  filter    eth0 generic (veth)

NODE     ROLE     STATE     SINCE  WEIGHT  SHARE  CONNS  HELD  HEARD
node1    node     UP        3m12s     100  33.4%      4     0  self
node2    node     DRAINING  3m12s  0(100)   0.0%      7     0  0.05s
node3    node     FAILED    12s       100  33.4%      -     -  12s
witness  witness  UNSEEN    -           -      -      -     -  never"""
    )


def test_groups_get_columns_of_their_own() -> None:
    status = farm_status()
    status["groups"] = ["default", "heavy"]
    status["members"] = [member(1)]
    status["members"][0]["groups"].append(
        GroupShare(group="heavy", weight=50, effective_weight=50, buckets=4096, share=1.0)
    )

    head, row = shown(status).split("\n\n")[2].splitlines()

    assert head.split()[3:7] == ["WEIGHT:default", "SHARE:default", "WEIGHT:heavy", "SHARE:heavy"]
    assert row.split()[3:7] == ["100", "33.4%", "50", "100.0%"]


def test_colour_changes_no_letter_and_no_column() -> None:
    plain, coloured = shown(farm_status()), shown(farm_status(), Style(colour=True))

    stripped = coloured
    for code in ("\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[33m", "\x1b[0m"):
        stripped = stripped.replace(code, "")
    assert coloured != plain
    assert stripped == plain


def test_a_node_without_a_view_is_not_healthy() -> None:
    status = farm_status()
    status["view"] = None
    assert unhealthy(status) == ["no view has started"]
    assert "view      none yet" in shown(status)


def test_a_witness_needs_no_lease_and_drained_nodes_are_healthy() -> None:
    status = farm_status()
    status["lease"] = {"left_seconds": 0.0, "valid": False}
    status["members"] = [member(1, role="witness"), member(2, "drained"), member(3, "draining")]
    assert unhealthy(status) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.414, "0.414s"), (-1, "0s"), (9.9, "9.9s"), (59.9, "59s"), (60, "1m00s"), (7500, "2h05m"), (356400, "4d03h")],
)
def test_durations_show_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ages_are_counted_from_the_answers_own_clock() -> None:
    assert age("2026-08-01T12:00:00.000Z", NOW) == "3m12s"
    assert age(None, NOW) == ""


def test_tables_have_as_many_fields_in_every_line() -> None:
    text = table(("A", "LONG"), [("x", ""), ("yyy", "1")], right=("LONG",))
    assert text == "A    LONG\nx       -\nyyy     1"


def test_the_command_prints_warnings_on_stderr_and_the_status_on_stdout(farm: Served) -> None:
    farm.backend.said.append("the engine is slow")

    result = farmctl("--socket", str(farm.path), "status")

    assert result.returncode == 0
    assert result.stdout.startswith("farm web as node1 sees it (serving): healthy\n")
    assert result.stderr == "farmctl: warning: the engine is slow\n"


def test_json_is_the_daemons_envelope(farm: Served) -> None:
    result = farmctl("status", "--json", FARMCTL_SOCKET=str(farm.path))

    answer = json.loads(result.stdout)
    assert (answer["kind"], answer["data"]) == ("FarmStatus", farm_status())


def test_check_exits_3_and_still_shows(farm: Served) -> None:
    farm.backend.current["members"][2]["state"] = "failed"
    farm.backend.problem("node3 is failed")

    result = farmctl("--socket", str(farm.path), "status", "--check")

    assert result.returncode == 3
    assert "!! node3 is failed" in result.stdout
    assert result.stderr == "farmctl: farm web: not healthy: node3 is failed. Look at it.\n"


def test_wait_ends_when_the_last_node_is_there(
    farm: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node3, answer = farm.backend.current["members"][2], farm.backend.status
    states = iter(["joining", "joining", "up"])

    async def status() -> FarmStatus:
        node3["state"] = next(states)
        return await answer()

    monkeypatch.setattr(farm.backend, "status", status)

    code = run(["--socket", str(farm.path), "status", "--wait", "--wait-duration", "30"])

    output = capsys.readouterr()
    assert code == 0
    assert output.err == "waiting: node3 is joining\n"
    assert "healthy" in output.out


def test_wait_gives_up_with_3(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    farm.backend.current["lease"]["valid"] = False

    assert run(["--socket", str(farm.path), "status", "--wait", "--wait-duration", "0.3"]) == 3
    assert "not healthy after 0.3s: this node has no lease" in capsys.readouterr().err


def test_wait_may_begin_before_farmd_does(tmp_path: Path) -> None:
    with running_farmctl("--socket", str(tmp_path / "api.sock"), "status", "--wait") as waiting:
        assert "does not answer yet" in line_of(waiting.stderr)
        with serving(tmp_path):
            output, _ = waiting.communicate(timeout=30)
        assert waiting.returncode == 0
    assert "healthy" in output


def test_wait_for_a_farmd_that_never_comes_is_6(tmp_path: Path) -> None:
    assert run(["--socket", str(tmp_path / "api.sock"), "status", "--wait", "--wait-duration", "0"]) == 6


def test_wait_does_not_hide_other_errors(farm: Served) -> None:
    farm.backend.fault = KernelError("a", "b", "c")
    assert run(["--socket", str(farm.path), "status", "--wait"]) == 1


def test_watch_streams_json_lines_until_interrupted(farm: Served) -> None:
    with running_farmctl("--socket", str(farm.path), "status", "--watch", "0.1", "--json") as watching:
        lines = [json.loads(line_of(watching.stdout)) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=20)
        assert (watching.returncode, errors) == (130, "")
    assert [line["kind"] for line in lines] == ["FarmStatus"] * 3


def test_watch_outlives_the_daemon(tmp_path: Path) -> None:
    with running_farmctl("--socket", str(tmp_path / "api.sock"), "status", "--watch=0.1", "--json") as watching:
        assert "there is no such socket" in line_of(watching.stderr)
        for _ in range(2):
            with serving(tmp_path):
                assert json.loads(line_of(watching.stdout))["kind"] == "FarmStatus"


def test_watch_needs_no_number() -> None:
    assert list(spell_out_watch(["status", "--watch"])) == ["status", "--watch=2"]
    assert list(spell_out_watch(["status", "--watch", "--json"])) == ["status", "--watch=2", "--json"]
    assert list(spell_out_watch(["status", "--watch", "0.5"])) == ["status", "--watch", "0.5"]
    assert list(spell_out_watch(["lab", "exec", "n1", "--", "x", "--watch"]))[-1] == "--watch"
