# SPDX-License-Identifier: Apache-2.0
"""Failback from the log of dirty zones, with the real data path: only what changed travels, and nothing is forgotten.

`FARMD_MIRROR_FAILBACKS=200` is the long form of the kills and of random operations.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from farmd.mirror import handles, journalfile
from farmd.mirror.zones import Cover, Kind, Mark, place
from farmd.mirror.zonewire import Link, Op
from tests.mirror.logpair import MIRROR, LogPair
from tests.mirror.operations import Actor, Planner, prepare
from tests.mirror.pair import DEADLINE_S, connected

pytestmark = pytest.mark.root

KILLS = int(os.environ.get("FARMD_MIRROR_FAILBACKS", "4"))
SEEDS = range(max(3, KILLS // 2))


@pytest.fixture(name="pair")
def _pair() -> Iterator[LogPair]:
    with LogPair() as pair:
        yield pair


def act(root: Path, seed: int, count: int) -> None:
    """Random operations of all kinds, by several users."""
    actor, planner = Actor(root), Planner(seed)
    for _ in range(count):
        actor.act(planner.draw())
    actor.close()


@contextmanager
def busy(root: Path, work: Callable[[Path], None]) -> Iterator[None]:
    """`work` again and again in a process of its own meanwhile."""
    pid = os.fork()
    if pid == 0:
        os.closerange(3, 4096)  # the engines end when their control sockets close
        while True:
            try:
                work(root)
            except OSError:
                time.sleep(0.01)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def files(root: Path, count: int, size: int = 3000) -> list[Path]:
    made = [root / f"d{number % 10}" / f"f{number}" for number in range(count)]
    for number, path in enumerate(made):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(size) + str(number).encode())
    return made


def poke(path: Path, offset: int, data: bytes) -> None:
    """Change a file in place; its size and, often, its modification time stay."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_only_what_changed_travels(pair: LogPair) -> None:
    made = files(pair.mount, 300)
    pair.fail_back()
    pair.settled()
    pair.part()
    for path in made[::10]:
        poke(path, 100, b"changed")
    came = pair.fail_back()
    assert came["files"] == 30
    assert came["bytes_moved"] < 30 * 4000
    assert pair.differences() == []


def test_of_a_large_file_only_its_blocks_travel(pair: LogPair) -> None:
    large = pair.mount / "large"
    large.write_bytes(os.urandom(40 << 20))
    pair.fail_back()
    pair.settled()
    pair.part()
    for block in (0, 7, 300, 639):
        poke(large, block * 65_536 + 5, b"changed")
    came = pair.fail_back()
    assert came["bytes_moved"] == 4 * 65_536
    assert pair.differences() == []


@pytest.mark.parametrize("crash", [False, True])
def test_a_file_that_was_emptied(pair: LogPair, crash: bool) -> None:
    """There is nothing to compare, and yet something to do."""
    made = [pair.mount / "large", pair.mount / "small", pair.mount / "linked"]
    for path in made:
        path.write_bytes(os.urandom(3 << 20 if path.name == "large" else 9000))
    os.link(made[2], pair.mount / "other name")
    pair.fail_back()
    pair.settled()
    pair.part()
    for path in made:
        os.truncate(path, 0)
    if crash:
        pair.kill_primary()
        pair.start()
    pair.fail_back()
    assert [(pair.copy / path.name).stat().st_size for path in made] == [0, 0, 0]
    assert pair.differences() == []


def test_names_follow_by_their_state(pair: LogPair) -> None:
    made = files(pair.mount, 40)
    (pair.mount / "linked").write_text("two names")
    pair.fail_back()
    pair.part()
    (pair.mount / "d1").rename(pair.mount / "moved")
    (pair.mount / "d1").mkdir()
    (pair.mount / "d1" / "new").write_text("in the new one")
    made[2].unlink()
    made[3].unlink()
    made[3].mkdir()
    made[4].rename(made[5])
    os.link(pair.mount / "linked", made[6].parent / "other name")
    os.truncate(made[7], 10)
    os.truncate(made[7], 5000)
    os.symlink("nowhere", pair.mount / "symlink")
    os.mkfifo(pair.mount / "fifo")
    os.chmod(made[8], 0o600)
    os.setxattr(made[9], "user.color", b"blue")
    saved = made[9].with_name("saved.new")
    saved.write_bytes(os.urandom(3000))
    saved.rename(made[9])
    pair.fail_back()
    assert pair.differences() == []


@pytest.mark.parametrize("crash", [False, True])
def test_one_of_several_names_that_moved_finds_the_others(pair: LogPair, crash: bool) -> None:
    """No event tells of the names that stay; they are looked for, and what the target has does not travel."""
    made = files(pair.mount, 40)
    large = made[5]
    large.write_bytes(os.urandom(4 << 20))
    for number, path in enumerate((large, made[6])):
        for name in ("a", "z"):
            os.link(path, path.parent / f"{name}{number}")
    os.mkfifo(pair.mount / "d1" / "pipe")
    os.link(pair.mount / "d1" / "pipe", pair.mount / "d9" / "pipe")
    pair.fail_back()
    pair.settled()
    pair.part()
    (large.parent / "z0").rename(pair.mount / "a moved")
    poke(large.parent / "a0", 200_000, b"changed")
    made[6].unlink()
    (pair.mount / "d1" / "pipe").rename(pair.mount / "d1" / "a pipe")
    os.chmod(pair.mount / "d9" / "pipe", 0o600)
    if crash:
        pair.kill_primary()
        pair.start()
    came = pair.fail_back()
    assert pair.differences() == []
    # After a crash nobody knows which of its names are new.
    assert crash or came["bytes_moved"] < 1 << 20


def test_a_file_whose_known_name_went_is_replicated_by_another(pair: LogPair) -> None:
    """The kernel goes on with a name that it asked for before the peer went; the new one must be told of it."""
    (pair.mount / "sub").mkdir()
    (pair.mount / "sub/first").write_text("file")
    os.link(pair.mount / "sub/first", pair.mount / "second")
    with (pair.mount / "second").open("r+") as file:
        pair.fail_back()
        pair.settled()
        pair.part()
        (pair.mount / "sub/first").unlink()
        (pair.mount / "sub").rmdir()
        pair.fail_back()
        os.chmod(pair.mount / "second", 0o640)
        file.write("FILE")
    pair.settle()
    assert (pair.copy / "second").read_text() == "FILE"
    assert pair.differences() == []


def test_names_outside_of_the_directory_are_not_found(pair: LogPair) -> None:
    """All of the file's names must be known, or what has them would be written; a comparison does without."""
    (pair.mount / "file").write_text("two names")
    pair.fail_back()
    pair.settled()
    os.link(pair.backing / "file", pair.pair.base / "outside")
    pair.part()
    (pair.mount / "file").rename(pair.mount / "moved")
    with pytest.raises(AssertionError, match="names that are not found"):
        pair.fail_back()


@pytest.mark.parametrize("crash", [False, True])
def test_a_name_that_became_one_of_another_file_with_several(pair: LogPair, crash: bool) -> None:
    """The target still has the old file there, whose other name nobody speaks of."""
    root = pair.mount
    (root / "a").write_bytes(b"a" * 9000)
    os.link(root / "a", root / "b")
    os.mkfifo(root / "pipe")
    for name in ("pipe 2", "pipe 3"):
        os.link(root / "pipe", root / name)
    pair.fail_back()
    pair.settled()
    pair.part()
    (root / "b").unlink()
    (root / "b").write_bytes(b"b" * 9000)
    os.link(root / "b", root / "b 2")
    (root / "pipe 2").unlink()
    os.mkfifo(root / "pipe 2", 0o640)
    (root / "pipe 3").unlink()
    os.mkfifo(root / "pipe 3", 0o640)
    os.link(root / "pipe 3", root / "pipe 4")
    if crash:
        pair.kill_primary()
        pair.start()
    pair.fail_back()
    assert (pair.copy / "a").read_bytes() == b"a" * 9000
    assert pair.differences() == []


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("much", [False, True])
def test_a_file_that_lost_the_name_it_was_written_by(pair: LogPair, crash: bool, much: bool) -> None:
    """The kernel need not know the name that it has left. `much`: the first round is beside applications."""
    path = pair.mount / "sub" / "file"
    path.parent.mkdir()
    path.write_bytes(os.urandom(3 << 20))
    os.link(path, pair.mount / "other name")
    pair.fail_back()
    pair.settled()
    pair.part()
    poke(path, 2 << 20, b"changed")
    path.unlink()
    if much:
        (pair.mount / "much").write_bytes(os.urandom(40 << 20))
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    if crash:
        pair.kill_primary()
        pair.start()
    pair.fail_back()
    assert pair.differences() == []


def test_names_that_a_file_lost_are_not_written_through(pair: LogPair) -> None:
    """Two names of one file at the target, two files at the primary."""
    (pair.mount / "a").write_bytes(b"a" * 9000)
    os.link(pair.mount / "a", pair.mount / "b")
    pair.fail_back()
    pair.part()
    (pair.mount / "b").unlink()
    (pair.mount / "b").write_bytes(b"b" * 9000)
    poke(pair.mount / "a", 0, b"A")
    pair.fail_back()
    assert pair.differences() == []


@pytest.mark.parametrize("seed", SEEDS)
def test_random_operations_while_alone(pair: LogPair, seed: int) -> None:
    prepare(pair.mount)
    act(pair.mount, seed, 600)
    pair.fail_back()
    for time_alone in range(3):
        pair.part()
        act(pair.mount, 100 * seed + time_alone, 400)
        pair.fail_back()
        act(pair.mount, 1000 * seed + time_alone, 100)
        pair.settle()
        assert pair.differences() == []


def test_a_path_of_the_targets_log_that_leads_through_a_symlink_now(pair: LogPair) -> None:
    (pair.mount / "sub").mkdir()
    (pair.mount / "sub/file").write_text("file")
    pair.fail_back()
    pair.part()
    (pair.mount / "sub").rename(pair.mount / "kept")
    (pair.mount / "sub").symlink_to("kept")
    fd = os.open(pair.copy / "sub", os.O_RDONLY)
    zone = place(handles.of(fd), b"file")
    os.close(fd)
    pair.fail_back(Cover({zone: Mark(zone, 0, hot=True)}))
    assert pair.differences() == []


def test_while_applications_write(pair: LogPair) -> None:
    made = files(pair.mount, 200)
    pair.fail_back()
    draw = random.Random(1)

    def work(_: Path) -> None:
        path = draw.choice(made)
        poke(path, draw.randrange(3000), os.urandom(200))
        other = path.with_name(f"new{draw.randrange(20)}")
        other.write_bytes(os.urandom(500))
        other.rename(path.with_name(f"saved{draw.randrange(20)}"))

    for _ in range(3):
        pair.part()
        with busy(pair.mount, work):
            time.sleep(0.3)
            pair.fail_back()
        pair.settle()
        assert pair.differences() == []


@pytest.mark.parametrize("number", range(KILLS))
def test_a_primary_that_is_killed_while_alone(pair: LogPair, number: int) -> None:
    """Kill -9 at any instant: what the journal holds covers every difference."""
    prepare(pair.mount)
    act(pair.mount, number, 300)
    pair.fail_back()
    pair.part()
    with busy(pair.mount, lambda root: act(root, random.randrange(1 << 30), 50)):
        time.sleep(random.Random(number).uniform(0.05, 0.6))
        pair.kill_primary()
    pair.start()
    act(pair.mount, 7, 50)
    pair.fail_back()
    assert pair.differences() == []


@pytest.mark.parametrize("number", range(KILLS))
def test_a_primary_that_is_killed_while_paired(pair: LogPair, number: int) -> None:
    """It comes back as the target, or goes on as the primary: its activity log covers what was on its way."""
    prepare(pair.mount)
    pair.fail_back()
    with busy(pair.mount, lambda root: act(root, random.randrange(1 << 30), 50)):
        time.sleep(random.Random(number).uniform(0.05, 0.6))
        pair.kill_primary()
    if number % 2:
        pair.pair.backing, pair.pair.copy = pair.copy, pair.backing
        pair.backing, pair.copy = pair.copy, pair.backing
        theirs = pair.log()
        journalfile.clear(pair.journal, MIRROR)
        pair.start()
        pair.fail_back(theirs)
    else:
        pair.start()
        pair.fail_back()
    assert pair.differences() == []


@pytest.mark.parametrize("who", ["primary", "target"])
def test_a_failback_that_is_cut_is_done_again(who: str) -> None:
    with LogPair(rate_bytes_s=20 << 20) as pair:
        made = files(pair.mount, 100, 400_000)
        pair.fail_back()
        pair.part()
        for path in made:
            path.write_bytes(os.urandom(400_000))
        pair.begin_fail_back()
        time.sleep(0.5)
        if who == "primary":
            pair.kill_primary()
            assert "connection of the failback broke" in pair.pair.secondary.wait_for("passed")["error"]
            pair.start()
        else:
            pair.pair.secondary.kill()
            assert pair.primary.wait_for("failback-failed")["lied"] is False
        assert pair.differences() != []
        pair.fail_back()
        assert pair.differences() == []


def _stop(pair: LogPair) -> None:
    """The target falls silent, and its connections stand: as a server that hangs, or a cable that was pulled."""
    pair.pair.secondary.process.send_signal(signal.SIGSTOP)


def test_a_silent_target_does_not_hold_changes_back() -> None:
    with LogPair(freeze_s=5) as pair:
        made = files(pair.mount, 20)
        pair.fail_back()
        pair.settled()
        pair.part()
        poke(made[3], 5, b"changed")
        pair.begin_fail_back(_stop)
        began = time.monotonic()
        ended = pair.primary.wait_for("failback-failed")
        made[4].write_text("written")
        assert time.monotonic() - began < DEADLINE_S / 2
        assert "timed out" in ended["text"]
        assert not ended["lied"]
        pair.pair.secondary.process.send_signal(signal.SIGCONT)
        pair.fail_back()
        assert pair.differences() == []


def test_a_failback_whose_peer_is_gone_can_be_ended() -> None:
    """In a round beside applications nobody waits for it but the next failback."""
    with LogPair() as pair:
        made = files(pair.mount, 100, 1_000_000)
        pair.fail_back()
        pair.settled()
        pair.part()
        for path in made:
            path.write_bytes(os.urandom(1_000_000))
        pair.begin_fail_back(_stop)
        time.sleep(0.5)
        pair.primary.do("end-failback")
        assert "connection of the failback broke" in pair.primary.wait_for("failback-failed", 20)["text"]
        pair.pair.secondary.process.send_signal(signal.SIGCONT)
        pair.fail_back()
        assert pair.differences() == []


def test_a_log_that_lies_is_found(pair: LogPair) -> None:
    """The negative control: with one of its marks gone the copies stay different, and the comparison sees it."""
    made = files(pair.mount, 20)
    pair.fail_back()
    pair.settled()
    pair.part()
    poke(made[3], 5, b"changed")
    pair.kill_primary()
    cover = pair.log()
    lost = [zone for zone in cover.marks if zone.kind in (Kind.ENTRIES, Kind.DATA)]
    assert lost
    for zone in lost:
        del cover.marks[zone]
    journalfile.clear(pair.journal, MIRROR, cover)
    pair.start()
    pair.fail_back()
    assert pair.differences() != []


def test_a_file_that_the_target_does_not_have_is_a_lie(pair: LogPair) -> None:
    made = files(pair.mount, 20)
    pair.fail_back()
    pair.settled()
    pair.part()
    poke(made[3], 5, b"changed")
    (pair.copy / made[3].relative_to(pair.mount)).unlink()
    with pytest.raises(AssertionError, match="the target does not have it"):
        pair.fail_back()


COVER: dict[str, Any] = {"paths": [], "folders": [], "files": []}
LIES: list[dict[str, Any]] = [
    {},
    COVER | {"paths": 7},
    COVER | {"paths": ["zz"]},
    COVER | {"folders": [b"d1/../../x".hex()]},
    COVER | {"paths": [b"d1/../d2".hex()]},
    COVER | {"files": [[b"d1/f1".hex(), [[0, 1 << 62]]]]},
    COVER | {"files": [[b"d1/f1".hex(), [[-1, 65536]]]]},
    COVER | {"files": [[b"../x".hex(), []]]},
    COVER | {"files": 5},
]


def test_a_target_that_lies_about_its_log_ends_the_failback(pair: LogPair) -> None:
    files(pair.mount, 20)
    for lie in LIES:
        ours, theirs = connected()
        stream, far_stream = connected()
        with ours, theirs, stream, far_stream:
            order = {"session": 1, "epoch": 1, "freeze_s": 60.0, "rate_bytes_s": 0}
            pair.primary.do("failback", ours.fileno(), stream.fileno(), **order)
            link = Link(theirs)
            link.send(Op.COVER, lie)
            link.flush()
            assert "means nothing" in pair.primary.wait_for("failback-failed")["text"], lie
            link.close()
    pair.fail_back()
    assert pair.differences() == []


def test_a_damaged_journal_says_everything(pair: LogPair) -> None:
    files(pair.mount, 20)
    pair.kill_primary()
    pair.journal.write_bytes(os.urandom(1 << 20))
    pair.start()
    assert pair.primary.do("log")["everything"]
    with pytest.raises(AssertionError, match="Everything is compared"):
        pair.fail_back()


def test_the_log_is_empty_once_both_disks_have_all(pair: LogPair) -> None:
    files(pair.mount, 20)
    pair.fail_back()
    pair.settled()
