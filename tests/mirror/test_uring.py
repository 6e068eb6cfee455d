# SPDX-License-Identifier: Apache-2.0
"""Requests over io_uring and over /dev/fuse: the same answers, and a thread that serves a CPU never waits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mirror.operations import compare_with_bare
from tests.mirror.pair import DEADLINE_S, Pair
from tests.mirror.trees import differences
from tests.mirror.uring import switched_on

pytestmark = pytest.mark.root


@pytest.fixture(name="is_on", autouse=True)
def _is_on() -> Iterator[bool]:
    with switched_on() as is_on:
        yield is_on


def uring_pair(**settings: Any) -> Pair:
    """Over io_uring, if the kernel has it; else /dev/fuse serves all."""
    return Pair(uring=True, **settings)


@pytest.mark.parametrize("uring", [True, False])
def test_random_operations_go_as_on_a_bare_directory(is_on: bool, uring: bool) -> None:
    with Pair(uring=uring) as pair:
        pair.join()
        compare_with_bare(pair, seed=77, count=1000)
        assert pair.primary.do("stats")["stats"]["uring"] == (is_on and uring)


def test_large_writes_and_reads_of_any_alignment() -> None:
    with uring_pair() as pair:
        pair.join()
        data = os.urandom(5_000_003)
        with (pair.mount / "large").open("w+b", buffering=0) as file:
            for offset, size in ((0, 1 << 20), (4095, 1 << 20), (999_999, 2_000_001), (3_000_000, 2_000_003)):
                assert os.pwrite(file.fileno(), data[offset : offset + size], offset) == size
            os.fsync(file.fileno())
        pair.settle()

        assert (pair.mount / "large").read_bytes() == data
        assert (pair.copy / "large").read_bytes() == data


def test_cold_files_are_read_whole() -> None:
    """Not in the page cache: the pool reads, and files shorter than what the kernel asks for end where they end."""
    with uring_pair() as pair:
        sizes = [0, 1, 4095, 4096, 4097, 131_071, 3_000_001]
        written = {size: os.urandom(size) for size in sizes}
        for size, data in written.items():
            (pair.backing / str(size)).write_bytes(data)
        os.sync()
        for size in sizes:
            with (pair.backing / str(size)).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        assert {size: (pair.mount / str(size)).read_bytes() for size in sizes} == written


def _stop(process: int) -> None:
    """Stop it, and wait until each of its threads stands still: the signal alone only begins that."""
    os.kill(process, signal.SIGSTOP)
    end = time.monotonic() + DEADLINE_S
    states = set[str]()
    while states != {"T"} and time.monotonic() < end:
        tasks = Path(f"/proc/{process}/task").iterdir()
        states = {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}
    assert states == {"T"}


def _write(path: Path) -> threading.Thread:
    thread = threading.Thread(target=path.write_bytes, args=(b"x",), daemon=True)
    thread.start()
    return thread


def test_reads_go_on_while_changes_are_held_back() -> None:
    with uring_pair() as pair:
        pair.join()
        for name in ("before", *"0123"):
            (pair.mount / name).write_bytes(b"here")
        pair.primary.do("freeze")
        writers = [_write(pair.mount / name) for name in "0123"]
        for _ in range(100):
            assert (pair.mount / "before").read_bytes() == b"here"
        assert all(writer.is_alive() for writer in writers)
        pair.primary.do("thaw")
        for writer in writers:
            writer.join(DEADLINE_S)
        pair.settle()

        assert not any(writer.is_alive() for writer in writers)
        assert differences(pair.backing, pair.copy) == []


def test_reads_go_on_while_a_change_waits_for_its_confirmation() -> None:
    with uring_pair(confirm=True) as pair:
        for name in ("before", "changed"):
            (pair.backing / name).write_bytes(b"here")
        writer = _write(pair.mount / "changed")
        event = pair.primary.wait_for("names")
        for _ in range(100):
            assert (pair.mount / "before").read_bytes() == b"here"
        assert writer.is_alive()
        pair.primary.do("confirm", number=event["number"])
        writer.join(DEADLINE_S)

        assert not writer.is_alive()
        assert (pair.backing / "changed").read_bytes() == b"x"


def test_more_waiting_operations_than_places_of_a_ring_are_all_answered() -> None:
    with uring_pair() as pair:
        pair.join()
        _stop(pair.secondary.process.pid)
        writers = [_write(pair.mount / f"new-{number}") for number in range(200)]
        time.sleep(0.2)
        os.kill(pair.secondary.process.pid, signal.SIGCONT)
        for writer in writers:
            writer.join(DEADLINE_S)
        pair.settle()

        assert not any(writer.is_alive() for writer in writers)
        assert differences(pair.backing, pair.copy) == []


def test_without_waiting_the_lag_is_shown_and_bounded() -> None:
    bound, size = 4 << 20, 1 << 20
    with uring_pair(ack="async", lag_bytes=bound, peer_ms=600_000) as pair:
        pair.join()
        with (pair.mount / "file").open("wb", buffering=0) as file:
            _stop(pair.secondary.process.pid)
            written: list[int] = []

            def write() -> None:
                for number in range(64):
                    os.pwrite(file.fileno(), bytes(size), number * size)
                    written.append(number)

            writer = threading.Thread(target=write, daemon=True)
            writer.start()
            end = time.monotonic() + DEADLINE_S
            while (lag := pair.primary.do("stats")["stats"])["waiting"] == 0 and time.monotonic() < end:
                time.sleep(0.01)
            before = len(written)
            time.sleep(0.2)
            assert (len(written), lag["waiting"]) == (before, 1), "goes on, however far the copy is behind"
            assert bound < lag["lag_bytes"] < bound + 2 * size
            assert pair.primary.do("stats")["stats"]["lag_us"] > 100_000
            os.kill(pair.secondary.process.pid, signal.SIGCONT)
            writer.join(DEADLINE_S)
            assert len(written) == 64
        pair.settle()

        after = pair.primary.do("stats")["stats"]
        assert (after["lag_bytes"], after["lag_us"]) == (0, 0)
        assert after["write_us"] > 0
        assert differences(pair.backing, pair.copy) == []


def test_a_killed_engine_fails_those_who_wait() -> None:
    with uring_pair() as pair:
        pair.join()
        _stop(pair.secondary.process.pid)
        errors: list[int | None] = []

        def write() -> None:
            try:
                (pair.mount / "new").write_bytes(b"x")
            except OSError as error:
                errors.append(error.errno)

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        time.sleep(0.2)
        pair.primary.kill()
        os.kill(pair.secondary.process.pid, signal.SIGCONT)
        writer.join(DEADLINE_S)

        assert not writer.is_alive()
        assert len(errors) == 1
