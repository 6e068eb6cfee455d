# SPDX-License-Identifier: Apache-2.0
"""The lease ends by itself, early perhaps, late never. No test here asserts how early: the machine may be busy."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from farmd.dataplane.planes import KernelPlanes
from farmd.model.errors import KernelError
from tests.packet.rig import Rig
from tests.packet.test_decision import packet

pytestmark = pytest.mark.root

FRAME = packet("syn", 4)
GIVE_UP_S = 20


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize("length_ms", [60, 61, 65, 99, 150, 300, 301, 303, 500])
def test_it_ends_by_itself_and_never_late(rig: Rig, length_ms: int) -> None:
    deadline = boot_ns() + length_ms * 1_000_000
    rig.control.renew(deadline)
    give_up = time.monotonic() + GIVE_UP_S
    accepted_after = None
    while True:
        asked = boot_ns()
        told = rig.run(rig.filter.probe, FRAME)
        if told.verdict == "drop":
            break
        if asked >= deadline:
            accepted_after = asked - deadline
            break
        assert time.monotonic() < give_up
    assert accepted_after is None
    assert told.reason == "drop-lease-over"
    assert rig.control.lease_left_ns() <= 0


def test_what_is_left_is_never_more_than_was_given(rig: Rig) -> None:
    for length_ms in range(1, 400, 7):
        deadline = boot_ns() + length_ms * 1_000_000
        rig.control.renew(deadline)
        asked = boot_ns()
        assert rig.control.lease_left_ns() <= max(0, deadline - asked) + _tick_ns()


def _tick_ns() -> int:
    return round(time.clock_getres(6) * 1e9)


def test_a_long_lease_is_given_nearly_whole(rig: Rig) -> None:
    """A margin of seven ticks is no more than 70 ms on any kernel; the rest of the second is the machine's."""
    rig.control.renew(boot_ns() + 60_000_000_000)
    assert rig.control.lease_left_ns() > 58_900_000_000


@pytest.mark.parametrize("deadline", [0, 1])
def test_zero_and_the_past_close_at_once(rig: Rig, deadline: int) -> None:
    rig.control.renew(deadline)
    assert rig.judge(FRAME).reason == "drop-lease-over"
    assert rig.control.lease_left_ns() <= 0


def test_a_lease_shorter_than_its_error_is_none(rig: Rig) -> None:
    rig.control.renew(boot_ns() + _tick_ns())
    assert rig.judge(FRAME).reason == "drop-lease-over"


def test_a_shorter_lease_replaces_a_longer_one(rig: Rig) -> None:
    rig.hold_lease(3600)
    rig.hold_lease(1)
    assert 0 < rig.control.lease_left_ns() < 1_000_000_000


def test_it_can_be_renewed_after_it_ended(rig: Rig) -> None:
    rig.control.renew(0)
    rig.hold_lease()
    assert rig.judge(FRAME).reason == "accept-own"


def test_without_a_filter_there_is_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="no filter is pinned here"):
        KernelPlanes.open(tmp_path)
