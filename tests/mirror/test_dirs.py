# SPDX-License-Identifier: Apache-2.0
"""Several directories in one mirror: two of them, on two file systems, through a whole life with real nodes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from farmd.mirror.spread import is_ours
from tests.mirror.nodes import DEADLINE_S, Failed, MirrorNode, TwoNodes, begin, equal, mutated
from tests.mirror.operations import Actor, Planner, name_fd, prepare
from tests.mirror.trees import differences

pytestmark = [pytest.mark.root, pytest.mark.lab]

MB = 1 << 20
OPERATIONS = int(os.environ.get("FARMD_MIRROR_OPERATIONS", "1500"))


def _fail_over(nodes: TwoNodes) -> None:
    nodes.one.kill()
    nodes.two.wait("alone", lambda status: not status["peer"]["connected"])
    nodes.two.ctl("promote")


def _mounted(node: MirrorNode) -> list[bool]:
    return [is_ours(path) for path in node.directories]


@pytest.mark.parametrize("second", ["tmpfs", "ext4"])
def test_a_whole_life(second: str) -> None:
    with TwoNodes("mdl", second=second) as nodes:
        one, two = nodes.nodes
        (one.data / "before").write_bytes(os.urandom(8 * MB))
        (one.wal / "before").write_bytes(os.urandom(8 * MB))
        (two.wal / "foreign").write_text("was here before the mirror")
        begin(nodes)
        assert not (two.wal / "foreign").exists()
        assert [each["path"] for each in one.status()["directories"]] == [str(one.data), str(one.wal)]
        for folder, there in zip(one.directories, two.directories, strict=True):
            (folder / "sub").mkdir()
            (folder / "sub/file").write_text("live")
            os.link(folder / "sub/file", folder / "second-name")
            assert (there / "second-name").read_text() == "live"
        equal(nodes)

        _fail_over(nodes)
        for folder in two.directories:
            with (folder / "before").open("r+b") as file:
                file.seek(3 * MB)
                file.write(b"changed alone")
            (folder / "second-name").unlink()
            (folder / "made").mkdir()
            (folder / "made/alone").write_text("alone")
        two.wait("sure of what it lacks", lambda status: not status["dirty"]["more"])  # what it received is synced
        one.ctl("start")
        last = two.wait_in_sync()["last_resync"]
        assert last["plan"] == "log"
        assert 0 < last["bytes_moved"] < MB
        equal(nodes)

        two.ctl("swap")
        one.wait("primary in sync", lambda status: status["role"] == "primary" and status["in_sync"])
        (one.wal / "after").write_text("the swap")
        assert (two.wal / "after").read_text() == "the swap"
        equal(nodes)
        for node in (one, two):
            node.ctl("stop")
            assert _mounted(node) == [False, False]
        assert differences(one.wal, two.wal) == []


def test_the_directories_are_two_file_systems_to_programs() -> None:
    with TwoNodes("mdf", second="ext4", disks={1: "64M", 2: "64M"}) as nodes:
        one, two = nodes.nodes
        begin(nodes)
        (one.data / "file").write_bytes(os.urandom(MB))
        for call in (os.rename, os.link):
            with pytest.raises(OSError, match="Invalid cross-device link") as caught:
                call(one.data / "file", one.wal / "file")
            assert caught.value.errno == errno.EXDEV
        shutil.move(one.data / "file", one.wal / "file")  # copies
        assert (two.wal / "file").read_bytes() == (one.wal / "file").read_bytes()
        assert os.statvfs(one.wal).f_blocks != os.statvfs(one.data).f_blocks
        for folder in one.directories:  # by number of part and of inode no two files are the same
            for number in range(50):
                (folder / str(number)).touch()
            fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
            os.write(fd, b"unnamed")
            name_fd(fd, os.fsencode(folder / "named"))
            os.close(fd)
        seen = [(each.stat().st_dev, each.stat().st_ino) for folder in one.directories for each in folder.iterdir()]
        assert len(seen) == len(set(seen))
        listed = {entry.inode() for folder in one.directories for entry in os.scandir(folder)}
        assert listed == {inode for _, inode in seen}
        equal(nodes)


def test_what_differs_is_told_by_its_whole_path_and_repaired() -> None:
    with TwoNodes("mdv", second="ext4") as nodes:
        one, two = nodes.nodes
        for folder in one.directories:
            (folder / "same").write_text("same")
        begin(nodes)
        (two.wal / "same").write_text("sane")
        found = one.ctl("verify", code=3)["findings"]
        assert found == [{"kind": "data", "path": str(one.wal / "same")}] or found[0]["path"] == str(one.wal / "same")
        assert one.ctl("diff")["differences"] == 1
        one.ctl("verify", "--repair")
        assert (two.wal / "same").read_text() == "same"
        (one.wal / "same").write_text("written through the new stream")
        (one.data / "same").write_text("and here")
        equal(nodes)


def test_exclusions_count_in_their_directory() -> None:
    patterns = ("--exclude", "*.tmp", "--exclude", "wal:/cache", "--exclude", "data:*.log")
    with TwoNodes("mde", *patterns, second="ext4") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        names = ("x.tmp", "x.log", "cache", "sub/y.tmp", "sub/y.log", "sub/cache")
        for folder in one.directories:
            (folder / "sub").mkdir()
            for name in names:
                (folder / name).write_text(name)
        assert {str(path.relative_to(two.data)) for path in two.data.rglob("*")} == {"sub", "cache", "sub/cache"}
        expected = {"sub", "x.log", "sub/y.log", "sub/cache"}
        assert {str(path.relative_to(two.wal)) for path in two.wal.rglob("*")} == expected
        assert one.ctl("verify")["equal"]
        with pytest.raises(OSError, match="cross-device"):
            (one.wal / "x.log").rename(one.wal / "z.tmp")

        _fail_over(nodes)
        (two.wal / "alone.log").write_text("alone")
        (two.wal / "own.tmp").write_text("of node 2")
        one.ctl("start")
        two.wait_in_sync()
        assert two.ctl("verify")["equal"]
        assert (one.wal / "alone.log").exists()
        assert not (one.wal / "own.tmp").exists()
        assert (one.wal / "cache").exists()


# ---- all directories, or none ----


def test_a_promotion_that_cannot_mount_all_directories_mounts_none() -> None:
    with TwoNodes("mdp", second="tmpfs") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        away = one.wal.with_name("away")
        two.wait_in_sync()
        one.ctl("demote")
        one.wal.rename(away)
        said = str(one.ctl("promote", code=1)["stderr"])
        assert str(one.wal) in said
        assert _mounted(one)[0] is False
        away.rename(one.wal)
        one.wait("not primary", lambda status: status["role"] != "primary")
        one.ctl("promote")
        one.wait_in_sync()
        assert _mounted(one) == [True, True]
        (one.wal / "file").write_text("x")
        assert (two.wal / "file").read_text() == "x"


def test_a_directory_in_use_keeps_all_of_them() -> None:
    with TwoNodes("mdu", second="tmpfs") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        with (one.wal / "open").open("w") as file:
            assert str(one.wal) in one.refused("demote")
            assert _mounted(one) == [True, True]
            file.write("still replicated")
            file.flush()
            assert (two.wal / "open").read_text() == "still replicated"
        with (one.wal / "open").open("w") as file:
            order = threading.Thread(target=one.ctl, args=("demote", "--force"))
            order.start()
            _never_some_for_long(one, order)
            order.join()
            assert _mounted(one) == [False, False]
            with pytest.raises(OSError, match=r"connected|Input"):
                os.write(file.fileno(), b"into the void")


def _never_some_for_long(node: MirrorNode, order: threading.Thread) -> None:
    """While the order waits for a program, ten seconds, it must not take away those directories that nobody uses."""
    some = 0
    while order.is_alive():
        some = some + 1 if len(set(_mounted(node))) > 1 else 0
        assert some < 40, "two seconds with one directory mounted and another bare"
        time.sleep(0.05)


@pytest.mark.parametrize("who", ["mirrord", "data path", "both"])
def test_no_kill_leaves_some_directories_writable_and_others_not(who: str) -> None:
    with TwoNodes("mdk", second="ext4") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        pids = one.pids()
        engine = one.status()["engine_pid"]
        # Through descriptors: by path, a probe would land below a mount that goes this very moment.
        inside = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in one.directories]
        chosen = {"mirrord": pids[:1], "data path": [engine], "both": pids}[who]
        for pid in chosen:
            os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + DEADLINE_S
        while any(_writable(fd) for fd in inside):
            assert time.monotonic() < end
            time.sleep(0.02)
        for fd in inside:
            os.close(fd)
        if who == "both":  # nobody is left who could: dead mounts keep programs away
            assert _mounted(one) == [True, True]
        else:
            _wait_for(lambda: len(set(_mounted(one))) == 1)
        if who == "data path":
            one.wait("not primary", lambda status: status["role"] != "primary")
            _wait_for(lambda: _mounted(one) == [False, False])
        else:
            _wait_for(lambda: who == "both" or not one.pids() or len(one.pids()) == 0)
            one.ctl("start")
            assert _mounted(one) == [False, False]
        if two.status()["role"] != "primary":
            two.wait("not following a primary", lambda status: status["peer"]["primary"] is not True)
            one.ctl("promote")
        one.wait("primary", lambda status: status["role"] == "primary")
        assert _mounted(one) == [True, True]
        one.wait_in_sync()
        (one.wal / "again").write_text("x")
        assert (two.wal / "again").read_text() == "x"
        equal(nodes)


DIES_BETWEEN_TWO_MOUNTS = """
import os, signal
from farmd.mirror import spread
bind = spread._bind
def last(source, directory):
    bind(source, directory)
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
spread._bind = last
"""


def test_both_processes_die_between_two_mounts(tmp_path: Path) -> None:
    """The directory that was mounted is dead, so nobody writes into one of them; the next start puts it right."""
    with TwoNodes("mdm", second="ext4") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        one.ctl("demote")
        one.ctl("stop")
        with mutated(tmp_path, DIES_BETWEEN_TWO_MOUNTS):
            one.ctl("start")
            with pytest.raises(Failed):
                one.ctl("promote")
        _wait_for(lambda: not one.pids())
        assert _mounted(one) == [True, False]
        with pytest.raises(OSError, match="connected"):
            (one.data / "probe").touch()
        assert two.status()["role"] != "primary"

        one.ctl("start")
        assert _mounted(one) == [False, False]
        two.wait("not following a primary", lambda status: status["peer"]["primary"] is not True)
        one.ctl("promote")
        one.wait_in_sync()
        assert _mounted(one) == [True, True]
        (one.wal / "after").write_text("x")
        assert (two.wal / "after").read_text() == "x"
        equal(nodes)


def _writable(directory: int) -> bool:
    try:
        os.close(os.open("probe", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    except OSError:
        return False
    return True


def _wait_for(is_so: object) -> None:
    end = time.monotonic() + DEADLINE_S
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


# ---- random operations ----


def _act(planners: list[Planner], actors: list[Actor], count: int, bare: list[Actor] | None = None) -> None:
    for number in range(count):
        which = number % 2
        plan = planners[which].draw()
        did = actors[which].act(plan)
        if bare is not None:
            assert did == bare[which].act(plan), f"operation {number}: {plan}"


@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations_in_both_at_once(seed: int) -> None:
    with TwoNodes("mdr", second="ext4") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        bare_roots = [one.home / "bare", one.second / "bare"]
        for folder in (*one.directories, *bare_roots):
            folder.mkdir(exist_ok=True)
            prepare(folder)
        planners = [Planner(seed), Planner(seed + 100)]
        actors, bare = [Actor(path) for path in one.directories], [Actor(path) for path in bare_roots]
        try:
            _act(planners, actors, OPERATIONS, bare)
        finally:
            for actor in (*actors, *bare):
                actor.close()
        equal(nodes)

        _fail_over(nodes)
        actors = [Actor(path) for path in two.directories]
        try:
            _act(planners, actors, OPERATIONS)
        finally:
            for actor in actors:
                actor.close()
        one.ctl("start")
        two.wait_in_sync()
        equal(nodes)


# ---- what create and the nodes refuse ----


def test_nodes_whose_directories_have_other_names_do_not_replicate() -> None:
    with TwoNodes("mdn", second="tmpfs") as nodes:
        one, two = nodes.nodes
        (two.wal / "own").write_text("not to be lost")
        two.ctl("stop")
        file = two.state / "m/mirror.json"
        file.write_text(file.read_text().replace('"name": "wal"', '"name": "log"'))
        two.ctl("start")
        one.ctl("promote", "--accept", "first")
        status = one.wait("refused", lambda status: "not created alike" in status["trouble"])
        assert "['data', 'wal'] there" in status["trouble"]
        assert (two.wal / "own").exists()


def test_a_start_without_one_of_the_directories_is_refused() -> None:
    with TwoNodes("mdm", second="tmpfs") as nodes:
        one = nodes.one
        one.ctl("stop")
        one.wal.rmdir()
        assert f"{one.wal}: it cannot be opened" in str(one.ctl("start", code=1)["stderr"])
        assert _mounted(one) == [False, False]
        assert subprocess.run(["mountpoint", "-q", one.state / "m/mount"], check=False).returncode != 0
