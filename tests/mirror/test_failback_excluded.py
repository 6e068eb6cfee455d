# SPDX-License-Identifier: Apache-2.0
"""Failback from the log with exclusions: what is excluded is neither sent nor removed nor touched on the other side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from farmd.mirror import journalfile
from farmd.mirrord.logbook import Logbook
from tests.mirror.logpair import MIRROR, LogPair
from tests.mirror.nodes import TwoNodes
from tests.mirror.operations import prepare
from tests.mirror.test_failback import SEEDS, act, files, poke

pytestmark = pytest.mark.root

PATTERNS = ("*.tmp", "/cache", "logs/old")


@pytest.fixture(name="pair")
def _pair() -> Iterator[LogPair]:
    with LogPair(excluded=PATTERNS) as pair:
        yield pair


def plant(root: Path, names: list[str], text: str) -> dict[Path, str]:
    """Excluded files, put there without a trace in their directories' times."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        above = path.parent.stat()
        path.write_text(f"{name} {text}")
        os.utime(path.parent, ns=(above.st_atime_ns, above.st_mtime_ns))
    return {root / name: f"{name} {text}" for name in names}


def untouched(planted: dict[Path, str]) -> None:
    assert {path: path.read_text() for path in planted if path.exists()} == planted


def excluded_below(root: Path) -> list[str]:
    found = [str(path.relative_to(root)) for path in root.rglob("*")]
    return sorted(name for name in found if name.endswith(".tmp") or name.startswith(("cache", "logs/old")))


def begin(pair: LogPair) -> dict[Path, str]:
    """Equal copies with a file in `logs/new`, `d0` to `d9`; then each side has excluded things of its own."""
    (pair.mount / "logs/new").mkdir(parents=True)
    (pair.mount / "logs/new/kept").write_text("kept")
    (pair.mount / "cache").mkdir()
    (pair.mount / "logs/old").mkdir()
    files(pair.mount, 40)
    pair.fail_back()
    pair.settled()
    for folder in ("cache", "logs/old"):
        assert not (pair.copy / folder).exists()
        (pair.copy / folder).mkdir()
    names = ["own.tmp", "d3/own.tmp", "cache/own", "cache/deep/own", "logs/old/own", "logs/new/own.tmp"]
    planted = plant(pair.copy, names, "of the target")
    for folder in ("", "logs"):
        times = (pair.backing / folder).stat()
        os.utime(pair.copy / folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    pair.part()
    for name in ["own.tmp", "d3/mine.tmp", "cache/mine", "logs/old/mine", "logs/new/own.tmp"]:
        (pair.mount / name).write_text("of the primary")
    return planted


@pytest.mark.parametrize("crash", [False, True])
def test_excluded_names_stay_as_they_are_on_both_sides(pair: LogPair, crash: bool) -> None:
    """After a crash what the log names is suspect, and is sent by another way."""
    planted = begin(pair)
    before = excluded_below(pair.copy)
    poke(pair.mount / "d3/f3", 5, b"changed")
    (pair.mount / "d3/new").write_text("new")
    (pair.mount / "d4/f4").unlink()
    (pair.mount / "cache/mine").write_bytes(os.urandom(100_000))
    (pair.mount / "d5/big.tmp").write_bytes(os.urandom(3 << 20))
    (pair.mount / "logs/new/more").write_text("more")
    (pair.mount / "own.tmp").rename(pair.mount / "other.tmp")
    if crash:
        pair.kill_primary()
        pair.start()
    came = pair.fail_back()
    assert came["bytes_moved"] < 300_000, "what is excluded travelled"
    assert pair.differences() == []
    untouched(planted)
    assert excluded_below(pair.copy) == before


@pytest.mark.parametrize("crash", [False, True])
def test_below_a_renamed_directory_nothing_excluded_is_sent(pair: LogPair, crash: bool) -> None:
    """As everywhere (docs/mirror.md), a directory that is gone goes with what is excluded in it; others stay."""
    planted = begin(pair)
    (pair.mount / "d3").rename(pair.mount / "moved")
    (pair.mount / "d5").rename(pair.mount / "logs/d5")
    (pair.mount / "moved/more.tmp").write_text("of the primary")
    (pair.mount / "moved/more").write_text("replicated")
    made = pair.mount / "made"
    made.mkdir()
    (made / "x.tmp").write_text("of the primary")
    (made / "x").write_text("replicated")
    made.rename(pair.mount / "made again")
    if crash:
        pair.kill_primary()
        pair.start()
    pair.fail_back()
    assert pair.differences() == []
    assert (pair.copy / "moved/more").read_text() == "replicated"
    gone = {path for path in planted if path.parent.name == "d3"}
    assert not any(path.exists() for path in gone)
    untouched({path: text for path, text in planted.items() if path not in gone})
    assert [name for name in excluded_below(pair.copy) if "moved" in name or "made" in name] == []


def test_a_removed_directory_goes_and_what_is_excluded_beside_it_stays(pair: LogPair) -> None:
    planted = begin(pair)
    for path in (pair.mount / "d3").iterdir():
        path.unlink()
    (pair.mount / "d3").rmdir()
    for path in (pair.mount / "d4").iterdir():
        path.unlink()
    (pair.mount / "d4").rmdir()
    (pair.mount / "d4").write_text("a file now")
    pair.fail_back()
    assert pair.differences() == []
    assert not (pair.copy / "d3").exists()
    untouched({path: text for path, text in planted.items() if path.parent.name != "d3"})


@pytest.mark.parametrize("seed", SEEDS)
def test_random_operations_while_alone(seed: int) -> None:
    """Some of the names that they use are excluded, one of them a directory."""
    with LogPair(excluded=("c", "/sub/deep", "other/b")) as pair:
        prepare(pair.mount)
        act(pair.mount, seed, 400)
        pair.fail_back()
        assert pair.differences() == []
        assert not (pair.copy / "c").exists()
        planted = plant(pair.copy, ["c"], "of the target")
        for turn in range(3):
            pair.part()
            act(pair.mount, 100 * seed + turn, 400)
            if turn == 1:
                pair.kill_primary()
                pair.start()
            pair.fail_back()
            untouched(planted)
            assert (pair.copy / "c").exists()
            assert pair.differences() == []


def test_a_journal_that_was_kept_under_other_exclusions_says_everything(tmp_path: Path) -> None:
    """What was excluded until now differs, and no log knows of it."""
    for before, after in (((), ("*.tmp",)), (("*.tmp",), ()), (("*.tmp",), ("*.log",)), (("a", "b"), ("a",))):
        logbook = Logbook(tmp_path, MIRROR, before)
        logbook.clear()
        assert logbook.recover(is_new=False)
        assert Logbook(tmp_path, MIRROR, before).recover(is_new=False)
        assert not Logbook(tmp_path, MIRROR, after).recover(is_new=False)
    assert journalfile.load(tmp_path / "journal", Logbook(tmp_path, MIRROR, ("a", "b")).owner).marks == {}


@pytest.mark.lab
def test_nodes_with_exclusions_fail_back_from_the_log_and_compare_all_when_these_change() -> None:
    with TwoNodes("fbx", "--exclude", "*.tmp", "--exclude", "/cache") as nodes:
        one, two = nodes.nodes
        for node in nodes.nodes:
            (node.data / "cache").mkdir()
            (node.data / "cache/own").write_text(f"of node {node.number}")
            (node.data / "own.tmp").write_text(f"of node {node.number}")
        one.ctl("promote", "--accept", "first")
        one.wait_in_sync()
        two.wait_in_sync()
        two.kill()
        one.wait("alone", lambda status: status["gate"] == "alone")
        (one.data / "alone").write_text("x")
        (one.data / "alone.tmp").write_text("x")
        two.ctl("start")
        assert one.wait_in_sync()["last_resync"]["plan"] == "log"
        assert sorted(os.listdir(two.data)) == ["alone", "cache", "own.tmp"]
        assert (two.data / "own.tmp").read_text() == (two.data / "cache/own").read_text() == "of node 2"
        assert one.ctl("verify")["equal"]

        for node in (one, two):
            node.ctl("stop")
            file = node.state / "m/mirror.json"
            file.write_text(file.read_text().replace("*.tmp", "*.log"))
        for node in (two, one):
            node.ctl("start")
        one.ctl("promote")
        status = one.wait("in sync again", lambda status: bool(status["in_sync"] and status["last_resync"]))
        assert status["last_resync"]["plan"] == "compare"
        assert (two.data / "own.tmp").read_text() == "of node 1"
        assert (two.data / "cache/own").read_text() == "of node 2"
        assert one.ctl("verify")["equal"]
