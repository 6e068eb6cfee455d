# SPDX-License-Identifier: Apache-2.0
"""A mounted mirror answers as a bare directory does, operation by operation, and the copy ends up equal."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.mirror.operations import compare_with_bare, name_fd
from tests.mirror.pair import EngineError, Pair
from tests.mirror.trees import differences

pytestmark = pytest.mark.root

OPERATIONS = 1500


@pytest.fixture(name="pair")
def _pair() -> Iterator[Pair]:
    with Pair() as pair:
        pair.join()
        yield pair


@pytest.mark.parametrize("seed", range(int(os.environ.get("MIRROR_SEEDS", "6"))))
@pytest.mark.parametrize("ack", ["strict", "barrier"])
def test_random_operations_go_as_on_a_bare_directory(seed: int, ack: str) -> None:
    with Pair(ack=ack) as pair:
        pair.join()
        compare_with_bare(pair, seed, OPERATIONS)


def test_stores_through_a_shared_mapping_reach_the_copy(pair: Pair) -> None:
    path = pair.mount / "mapped"
    path.write_bytes(bytes(1 << 20))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as area:
        area[5000:5010] = b"0123456789"
        area.flush()
        area[900_000:900_003] = b"end"
    pair.settle()

    assert (pair.copy / "mapped").read_bytes()[5000:5010] == b"0123456789"
    subprocess.run(["sync", path], check=True)
    pair.settle()
    assert (pair.copy / "mapped").read_bytes()[900_000:900_003] == b"end"
    assert differences(pair.backing, pair.copy) == []


def test_o_direct_and_o_dsync_writes_reach_the_copy_before_they_return(pair: Pair) -> None:
    fd = os.open(pair.mount / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
    area = mmap.mmap(-1, 1 << 20)
    area.write(os.urandom(1 << 20))
    try:
        assert os.pwrite(fd, area, 4096) == 1 << 20
        assert (pair.copy / "direct").read_bytes()[4096:] == area[:]
    finally:
        os.close(fd)


def test_holes_are_found_and_stay_holes_at_the_copy(pair: Pair) -> None:
    with (pair.mount / "sparse").open("w+b", buffering=0) as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), b"x" * 4096, 32 << 20)
        os.fsync(file.fileno())
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 32 << 20
        assert os.lseek(file.fileno(), 32 << 20, os.SEEK_HOLE) == (32 << 20) + 4096
    pair.settle()

    assert (pair.copy / "sparse").stat().st_blocks * 512 < 1 << 20
    assert differences(pair.backing, pair.copy) == []


def test_a_strict_write_is_at_the_copy_when_it_returns(pair: Pair) -> None:
    with (pair.mount / "file").open("wb", buffering=0) as file:
        for number in range(50):
            file.write(b"%03d" % number)
            assert (pair.copy / "file").read_bytes()[-3:] == b"%03d" % number


def test_an_unlinked_open_file_lives_on_at_both_ends(pair: Pair) -> None:
    with (pair.mount / "gone").open("w+b", buffering=0) as file:
        file.write(b"one")
        (pair.mount / "gone").unlink()
        file.write(b"two")
        os.fchmod(file.fileno(), 0o640)
        assert os.pread(file.fileno(), 10, 0) == b"onetwo"
    pair.settle()

    assert differences(pair.backing, pair.copy) == []


def test_a_nameless_file_gets_its_name_and_contents_at_the_copy(pair: Pair) -> None:
    fd = os.open(pair.mount, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"contents")
    name_fd(fd, os.fsencode(pair.mount / "named"))
    os.close(fd)
    pair.settle()

    assert (pair.copy / "named").read_bytes() == b"contents"
    assert differences(pair.backing, pair.copy) == []


def test_many_threads_end_with_equal_trees(pair: Pair) -> None:
    def work(number: int) -> None:
        folder = pair.mount / f"t{number}"
        folder.mkdir()
        for step in range(60):
            path = folder / f"f{step % 7}"
            path.write_bytes(os.urandom(3000 * (step % 5 + 1)))
            os.rename(path, folder / f"r{step % 3}")
            with (pair.mount / "shared").open("ab") as shared:
                shared.write(b"%d" % number)
            os.truncate(pair.mount / "shared", 100 + step)
            if step % 9 == 0:
                os.rename(folder, pair.mount / f"moved{number}")
                os.rename(pair.mount / f"moved{number}", folder)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pair.settle()

    assert differences(pair.backing, pair.copy) == []


def test_what_is_excluded_stays_here() -> None:
    with Pair(excluded=["*.tmp", "cache/*", "logs/old"]) as pair:
        pair.join()
        for name in ("cache", "logs", "logs/old", "logs/new"):
            (pair.mount / name).mkdir()
        for name in ("a.tmp", "kept", "cache/x", "logs/old/y", "logs/new/z", "logs/new/b.tmp"):
            (pair.mount / name).write_text(name)
        with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
            os.rename(pair.mount / "a.tmp", pair.mount / "a")
        with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
            os.link(pair.mount / "kept", pair.mount / "kept.tmp")
        with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
            os.rename(pair.mount / "logs", pair.mount / "logs2")
        (pair.mount / "a.tmp").unlink()
        subprocess.run(["mv", pair.mount / "cache/x", pair.mount / "x"], check=True)
        pair.settle()

        there = sorted(str(path.relative_to(pair.copy)) for path in pair.copy.rglob("*"))
        assert there == ["cache", "kept", "logs", "logs/new", "logs/new/z", "x"]


def test_writing_as_somebody_else_clears_the_set_user_id_bits(pair: Pair) -> None:
    path = pair.mount / "program"
    path.write_bytes(b"x" * 10)
    path.chmod(0o6777)
    subprocess.run(
        ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "sh", "-c", f"echo y >>'{path}'"],
        check=True,
    )
    pair.settle()

    assert path.stat().st_mode & 0o7777 == 0o777
    assert differences(pair.backing, pair.copy) == []


def test_more_files_than_may_be_open_are_replicated() -> None:
    with Pair() as pair:
        with pytest.raises(EngineError):
            pair.secondary.do("stats")  # it is up, and has set its limits
        pid, limit = pair.secondary.process.pid, resource.RLIMIT_NOFILE
        resource.prlimit(pid, limit, (128, resource.prlimit(pid, limit)[1]))
        pair.join()
        for number in range(200):
            (pair.mount / str(number)).write_text(str(number))
        for number in range(0, 200, 7):
            (pair.mount / str(number)).write_text("again")
        pair.settle()
        assert differences(pair.backing, pair.copy) == []
