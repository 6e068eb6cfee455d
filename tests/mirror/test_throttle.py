# SPDX-License-Identifier: Apache-2.0
"""A resync beside an application that writes: with the throttle its writes are better off than without."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mirror.nodes import TwoNodes

pytestmark = [pytest.mark.root, pytest.mark.lab, pytest.mark.timeout(900)]

FOLDERS, FILES = 60, 100
"""Holes of 1 MiB each: they cost processor time to compare, and no disk."""
_TRIES = 3
MB = 1 << 20
CHANGED_MB = 512


def _onto_one_core(nodes: TwoNodes) -> None:
    """Both nodes share one core with the application, so that there is something to share on any machine."""
    pids = [pid for node in nodes.nodes for pid in node.pids()]
    for thread in [int(each.name) for pid in pids for each in Path(f"/proc/{pid}/task").iterdir()]:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, {0})
    os.sched_setaffinity(0, {0})


@pytest.fixture(name="every_core", autouse=True)
def _every_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def _writes_us(path: Path, seconds: float) -> float:
    """What a small write of an application takes on average, which pauses in between as a server does."""
    took: list[float] = []
    with path.open("wb", buffering=0) as file:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            os.pwrite(file.fileno(), b"row" * 100, len(took) % 1000 * 4096)
            took.append((time.perf_counter() - began) * 1e6)
            time.sleep(0.002)
    return statistics.mean(took)


def _fill(folder: Path) -> None:
    for number in range(FOLDERS):
        below = folder / f"d{number}"
        below.mkdir()
        for each in range(FILES):
            fd = os.open(below / f"f{each}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.truncate(fd, 1 << 20)
            os.utime(fd, ns=(0, 0))
            os.close(fd)


def _while_verifying(tag: str, slowdown: float) -> tuple[float, dict[str, object] | None]:
    """How many times as long a write takes while a verify goes on, and what the node shows of its pace."""
    with TwoNodes(tag, slowdown=slowdown) as nodes:
        one = nodes.one
        for node in nodes.nodes:
            _fill(node.data)
        one.ctl("promote", "--accept", "first")
        one.wait_in_sync(180)
        before = os.sched_getaffinity(0)
        _onto_one_core(nodes)
        alone_us = _writes_us(one.data / "busy", 2)
        one.api().order_mirror("verify", {})
        one.wait("verifying", lambda status: (status["resync"] or {}).get("bytes_read", 0) > 0)
        if slowdown:
            _writes_us(one.data / "busy", 3)  # the controller finds its rate
        beside_us = _writes_us(one.data / "busy", 1)
        os.sched_setaffinity(0, before)
        status = one.api().mirror().data  # at once: a moment without writes, and nothing is limited
        shown: dict[str, object] | None = status["pace"]
        return beside_us / alone_us, shown


def test_writes_beside_a_verify_are_better_off_with_the_throttle() -> None:
    for number in range(_TRIES):
        without, nothing = _while_verifying(f"tho{number}", 0)
        throttled, pace = _while_verifying(f"tht{number}", 1.5)
        assert nothing is None
        assert pace is not None
        assert pace["rate_bytes_s"], f"it was never limited: {pace}"
        if throttled < without * 0.7:
            return
    pytest.fail(f"a write beside a verify took {throttled:.1f} times as long with, {without:.1f} without the throttle")


def _while_failing_back(tag: str, slowdown: float) -> tuple[float, list[dict[str, object]]]:
    """What a write takes in microseconds during a failback from the log, and the paces that were shown."""
    with TwoNodes(tag, slowdown=slowdown) as nodes:
        one, two = nodes.nodes
        _overwrite(one.data / "large")
        one.ctl("promote", "--accept", "first")
        one.wait_in_sync(180)
        two.kill()
        one.wait("alone", lambda status: not status["peer"]["connected"])
        _overwrite(one.data / "large")
        two.start()
        _onto_one_core(nodes)
        took: list[float] = []
        paces: list[dict[str, object]] = []
        end = time.monotonic() + 120
        while not (status := one.api().mirror().data)["in_sync"]:
            assert time.monotonic() < end
            took.append(_writes_us(one.data / "busy", 0.2))
            paces += [status["pace"]] if status["pace"] else []
        assert status["last_resync"]["plan"] == "log"
        return statistics.mean(took), paces


def _overwrite(path: Path) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        for _ in range(CHANGED_MB):
            file.write(os.urandom(MB))


def test_writes_beside_a_failback_from_the_log_are_better_off_with_the_throttle() -> None:
    for number in range(_TRIES):
        without_us, nothing = _while_failing_back(f"tfo{number}", 0)
        throttled_us, paces = _while_failing_back(f"tft{number}", 1.5)
        assert nothing == []
        assert any(pace["rate_bytes_s"] for pace in paces), f"it was never limited: {paces}"
        if throttled_us < without_us * 0.7:
            return
    pytest.fail(f"a write beside a failback took {throttled_us:.0f} us with, {without_us:.0f} without the throttle")
