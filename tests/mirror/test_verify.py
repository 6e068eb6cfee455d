# SPDX-License-Identifier: Apache-2.0
"""Verify and repair when things go wrong: killed in the middle, and with each of their safeguards taken away.

A mutant is a few lines of Python that run in every process of both nodes before farmd's own; what its safeguard is for
must then be seen to happen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from farmd.model.errors import FarmError
from tests.mirror.nodes import Failed, MirrorNode, TwoNodes, mutated
from tests.mirror.test_resync import _load
from tests.mirror.trees import differences

pytestmark = [pytest.mark.root, pytest.mark.lab]

MB = 1 << 20
BLOCK = 65_536
FILES, FILE_BYTES = 60, 2 * MB
PATIENT = 60.0
"""freeze_s: a repair is not to be cut short by a busy machine."""


def begin(nodes: TwoNodes) -> None:
    nodes.one.ctl("promote", "--accept", "first")
    nodes.one.wait_in_sync()
    nodes.two.wait_in_sync()


def until(what: str, is_so: Callable[[], bool], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.002)


# ---- killed in the middle ----


def names(folder: Path) -> list[Path]:
    return [folder / f"file{number:02}" for number in range(FILES)]


def rot(nodes: TwoNodes) -> tuple[list[bytes], list[bytes]]:
    """Every other block of the secondary's files; what is right, and what is there now."""
    for path in names(nodes.two.data):
        with path.open("r+b") as file:
            for block in range(0, FILE_BYTES // BLOCK, 2):
                file.seek(block * BLOCK + 7)
                file.write(b"rotten")
    return [path.read_bytes() for path in names(nodes.one.data)], [path.read_bytes() for path in names(nodes.two.data)]


def mended(folder: Path) -> int:
    """How many files are right at their beginning."""
    count = 0
    for path in names(folder):
        with path.open("rb") as file:
            count += file.read(13)[7:] != b"rotten"
    return count


def never_worse(folder: Path, right: list[bytes], before: list[bytes]) -> None:
    """Each block is as it was, or as it should be."""
    for path, good, bad in zip(names(folder), right, before, strict=True):
        now = path.read_bytes()
        assert len(now) == FILE_BYTES
        for at in range(0, FILE_BYTES, BLOCK):
            block = now[at : at + BLOCK]
            assert block in (good[at : at + BLOCK], bad[at : at + BLOCK]), f"{path} at {at}"


def order_repair(node: MirrorNode) -> threading.Thread:
    """It goes on in a thread; whether it ends well is not its matter."""

    def run() -> None:
        with contextlib.suppress(Failed, FarmError, OSError):
            node.ctl("verify", "--repair")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def victims(nodes: TwoNodes, who: str) -> list[int]:
    one, two = nodes.nodes
    main, *children = (one if "primary" in who else two).pids()
    if who == "the primary's data path":
        return [int(one.status()["engine_pid"])]
    if who == "the secondary's confined process":
        return [pid for pid in children if "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()]
    return [main, *children] if who.endswith("node") else [main]


def kill_in_a_repair(nodes: TwoNodes, who: str) -> None:
    """The copies differ, a repair has begun to mend, and its victims die at once."""
    one, two = nodes.nodes
    right, before = rot(nodes)
    dying = victims(nodes, who)
    assert dying
    repair = order_repair(one)
    until("the repair has begun", lambda: mended(two.data) > 0)
    for pid in dying:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    repair.join()
    until("they are gone", lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in dying))
    never_worse(two.data, right, before)


def recover(nodes: TwoNodes, who: str) -> None:
    """What an operator does then."""
    one, two = nodes.nodes
    if who.startswith("the primary"):
        if "data path" not in who:
            one.ctl("start")
        until("it may be promoted", lambda: promoted(one))
    elif "confined" not in who:
        two.ctl("start")
    one.wait_in_sync()


def promoted(node: MirrorNode) -> bool:
    try:
        node.ctl("promote")
    except Failed as error:
        if error.code not in (7, 8):
            raise
        return False
    return True


WHO = ["the primary node", "the primary's process", "the primary's data path"]
WHO += ["the secondary node", "the secondary's process", "the secondary's confined process"]


@pytest.mark.parametrize("who", WHO)
def test_killed_in_the_middle_of_a_repair_it_is_never_worse_and_ends_equal(who: str) -> None:
    with TwoNodes("vkr", freeze_s=PATIENT) as nodes:
        for path in names(nodes.one.data):
            path.write_bytes(os.urandom(FILE_BYTES))
        begin(nodes)
        for _ in range(2):
            kill_in_a_repair(nodes, who)
            recover(nodes, who)
            assert nodes.one.ctl("verify")["equal"]
        assert differences(nodes.one.data, nodes.two.data) == []


def test_the_secondary_of_a_repair_that_was_killed_may_lead() -> None:
    """The primary dies in the middle: the other's copy is as good as it was, and leads; then both are equal."""
    with TwoNodes("vks", freeze_s=PATIENT) as nodes:
        one, two = nodes.nodes
        for path in names(one.data):
            path.write_bytes(os.urandom(FILE_BYTES))
        begin(nodes)
        kill_in_a_repair(nodes, "the primary node")
        two.wait("alone", lambda status: not status["peer"]["connected"])
        two.ctl("promote")
        one.ctl("start")
        two.wait_in_sync()
        assert two.ctl("verify")["equal"]
        assert differences(one.data, two.data) == []


# ---- safeguards taken away ----


ONE_LOOK = """
from farmd.mirror.checksum import Mode
from farmd.mirrord.resync import Resync
async def verify(self, tree, epoch, *, repair):
    return await self.compare(Mode.VERIFY)
Resync.verify = verify
"""
NOT_HELD_BACK = """
from farmd.mirrord.serving import Serving
async def freeze(self):
    pass
Serving.freeze = Serving.thaw = freeze
"""
NOT_SETTLED = """
from farmd.mirrord.serving import Serving
async def settle(self):
    pass
Serving.settle = settle
"""


def false_alarm(nodes: TwoNodes, tries: int = 40, *, may_time_out: bool = False) -> bool:
    """Whether verify calls different what is only being written."""
    with _load(nodes.one.data):
        for _ in range(tries):
            try:
                nodes.one.ctl("verify")
            except Failed as error:
                if error.code == 3:
                    return True
                if error.code != 7 or not may_time_out:
                    raise
    return False


@pytest.mark.parametrize("lines", [ONE_LOOK, NOT_HELD_BACK], ids=["one look", "not held back"])
def test_without_a_second_look_with_changes_held_back_what_is_written_is_called_different(
    tmp_path: Path, lines: str
) -> None:
    with mutated(tmp_path, lines), TwoNodes("vml") as nodes:
        begin(nodes)
        # While changes are not held back, all may not settle in time: that is no alarm yet.
        assert false_alarm(nodes, may_time_out=lines == NOT_HELD_BACK)


@pytest.mark.parametrize("is_mutant", [True, False])
def test_without_settling_what_is_on_its_way_is_called_different(tmp_path: Path, is_mutant: bool) -> None:
    """Where writes return before the peer has them, that is. With the safeguard there is no alarm."""
    with mutated(tmp_path, NOT_SETTLED if is_mutant else ""), TwoNodes("vms", "--ack", "async") as nodes:
        begin(nodes)
        assert false_alarm(nodes, tries=60 if is_mutant else 4) == is_mutant


BELIEVES_TIMES = """
from farmd.mirror.checksum import Pass
from farmd.mirrord import bulk, resync
class Quick:
    QUICK = CONTENTS = Pass.QUICK
resync.Pass = Quick
def with_record(root, record=None, **more):
    return options(root, record=keep, **more)
before = bulk.BulkPass.__init__
def init(self, root, record, mode, passes, *more):
    global keep
    keep = record
    before(self, root, record, mode, passes, *more)
keep, options = None, bulk.Options
bulk.Options, bulk.BulkPass.__init__ = with_record, init
"""


def rot_below(nodes: TwoNodes, path: Path, right: bytes, wrong: bytes) -> None:
    """A disk that rots: the bytes change below the file system, which knows nothing of it."""
    disk = nodes.base / "disk2"
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    at = disk.read_bytes().find(right)
    assert at > 0, "the file's bytes are not on its disk"
    with disk.open("r+b") as file:
        file.seek(at)
        file.write(wrong)
        file.flush()
        os.fsync(file.fileno())
    Path("/proc/sys/vm/drop_caches").write_text("1")
    assert path.read_bytes().startswith(wrong)


@pytest.mark.parametrize("is_mutant", [True, False])
def test_a_verify_that_believes_what_the_kernel_vouches_for_overlooks_a_rotten_disk(
    tmp_path: Path, is_mutant: bool
) -> None:
    lines = BELIEVES_TIMES if is_mutant else ""
    with mutated(tmp_path, lines), TwoNodes("vmb", disks={2: "128M"}) as nodes:
        one, two = nodes.nodes
        right = os.urandom(4096)
        (one.data / "file").write_bytes(right + os.urandom(2 * MB))
        begin(nodes)
        one.ctl("resync", "--no-wait")
        one.wait("compared", lambda status: bool(status["in_sync"] and status["last_resync"]))
        rot_below(nodes, two.data / "file", right, b"rotten")
        if is_mutant:
            assert one.ctl("verify")["equal"], "the mutant found it"
            return
        assert [each["path"] for each in one.ctl("verify", code=3)["findings"]] == ["file"]
        one.ctl("verify", "--repair")
        assert (two.data / "file").read_bytes() == (one.data / "file").read_bytes()


NO_NEW_STREAM = """
from farmd.mirrord.resync import Resync
before = Resync._stream
async def stream(self, tree, epoch, *, anew=False):
    if not anew:
        await before(self, tree, epoch)
Resync._stream = stream
"""


@pytest.mark.parametrize("is_mutant", [True, False])
def test_without_a_new_stream_a_repaired_file_gets_no_more_writes(tmp_path: Path, is_mutant: bool) -> None:
    """The old one writes to the inode that the repair replaced."""
    with mutated(tmp_path, NO_NEW_STREAM if is_mutant else ""), TwoNodes("vmn") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        with (one.data / "file").open("wb", buffering=0) as file:
            file.write(b"before")
            (two.data / "file").rename(two.home / "kept")
            (two.data / "file").mkdir()
            one.ctl("verify", "--repair")
            assert (two.data / "file").read_bytes() == b"before"
            file.write(b" after")
        if is_mutant:
            lost = "lost" in str(one.status()["events"])
            assert lost or (two.data / "file").read_bytes() == b"before", "the old stream reached the new inode"
        else:
            assert (two.data / "file").read_bytes() == b"before after"
            assert one.ctl("verify")["equal"]


NO_RESYNC_BEHIND = """
from farmd.mirrord.resync import Resync
Resync.mending = property(lambda self: False, lambda self, value: None)
from farmd.mirrord.logbook import Logbook
Logbook.begin_mending = lambda self: None
"""
NOTHING_NOTED = """
from farmd.mirrord.logbook import Logbook
Logbook.begin_mending = lambda self: None
"""


@pytest.mark.parametrize(
    ("lines", "who"),
    [(NO_RESYNC_BEHIND, "the secondary's confined process"), (NOTHING_NOTED, "the primary node")],
    ids=["no resync is ordered", "nothing is noted on disk"],
)
def test_without_a_resync_behind_a_repair_that_was_cut_the_copies_stay_different(
    tmp_path: Path, lines: str, who: str
) -> None:
    with mutated(tmp_path, lines), TwoNodes("vmc", freeze_s=PATIENT) as nodes:
        for path in names(nodes.one.data):
            path.write_bytes(os.urandom(FILE_BYTES))
        begin(nodes)
        for _ in range(5):
            kill_in_a_repair(nodes, who)
            recover(nodes, who)
            if differences(nodes.one.data, nodes.two.data, times=False):
                return
        raise AssertionError("no repair was cut in its middle")
