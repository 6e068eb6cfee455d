# SPDX-License-Identifier: Apache-2.0
"""Counters made from events: each event once, whatever restarts, and never backwards."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farmd.daemon.eventlog import EventLog
from farmd.metrics.totals import BOUNDS_MS, FAILOVER, Durations, Memory, Totals
from farmd.model.answers import EventData


def event(number: int, kind: str = "member.failed", minute: int | None = None, **data: object) -> EventData:
    at = f"2026-08-01T12:{number if minute is None else minute:02}:00.000Z"
    return EventData(id=number, at=at, type=kind, text="", data=data)


def test_an_event_counts_once() -> None:
    events = [event(1), event(2, "member.joined"), event(3)]
    once = Totals().fold(events)
    assert once.counts == {"member.failed": 2, "member.joined": 1}
    assert once.fold(events) is once
    assert once.fold([]) is once
    assert once.fold([*events, event(4)]).counts["member.failed"] == 3


def test_a_log_that_begins_again_is_counted_from_its_beginning() -> None:
    before = Totals().fold([event(41, minute=1), event(42, minute=2)])
    again = before.fold([event(1, minute=3), event(2, minute=4)])
    assert again.counts["member.failed"] == 4
    assert again.last_id == 2


def test_a_log_that_lost_its_end_to_a_full_disk_is_not_counted_twice() -> None:
    before = Totals().fold([event(1), event(2), event(3)])
    assert before.fold([event(1), event(2)]) is before


@pytest.mark.parametrize(("milliseconds", "bucket"), [(0, 0), (1, 0), (1.001, 1), (10_000, 14), (10_001, 15)])
def test_a_duration_falls_into_the_first_bucket_that_holds_it(milliseconds: float, bucket: int) -> None:
    seen = Durations().observe(int(milliseconds * 1e6))
    assert seen.counts.index(1) == bucket
    assert len(seen.counts) == len(BOUNDS_MS) + 1


def test_only_phases_that_an_event_carries_are_observed() -> None:
    seen = Totals().fold(
        [event(1, FAILOVER, detect_ns=5_000_000, agree_ns="soon", program_ns=-1), event(2, detect_ns=7)]
    )
    assert seen.failovers["detect"].sum_ns == 5_000_000
    assert sum(seen.failovers["agree"].counts) == sum(seen.failovers["program"].counts) == 0


EVENTS = st.lists(
    st.tuples(st.sampled_from([FAILOVER, "view.started", "lease.lost"]), st.integers(0, 2 * 10**10)), max_size=30
)


@given(EVENTS, st.integers(0, 30))
def test_what_is_saved_is_what_is_read(drawn: list[tuple[str, int]], split: int) -> None:
    events = [event(n, kind, minute=n, detect_ns=took, agree_ns=took // 3) for n, (kind, took) in enumerate(drawn, 1)]
    with TemporaryDirectory() as folder:
        memory = Memory(Path(folder) / "metrics.json")
        memory.save(Totals().fold(events[:split]))
        assert memory.load().fold(events) == Totals().fold(events)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"version": 2}', '{"version": 1, "last_id": "x", "last_at": "", "counts": {}}']
)
def test_an_unreadable_file_is_no_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    assert Memory(tmp_path / "metrics.json").load() == Totals()


def test_other_buckets_than_ours_start_the_histogram_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    Memory(path).save(Totals().fold([event(1, FAILOVER, detect_ns=1)]))
    path.write_text(path.read_text().replace('"bounds_ms": [1,', '"bounds_ms": [3,'))
    found = Memory(path).load()
    assert found.counts == {FAILOVER: 1}
    assert found.failovers == Totals().failovers


def test_without_a_place_nothing_is_kept() -> None:
    Memory(None).save(Totals().fold([event(1)]))
    assert Memory(None).load() == Totals()


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    Memory(path).save(Totals().fold([event(1)]))
    (tmp_path / "metrics.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        Memory(path).save(Totals().fold([event(1), event(2)]))
    assert Memory(path).load().last_id == 1


def test_totals_go_on_where_the_log_has_forgotten(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "metrics.json")
    total = 0
    for _ in range(5):
        log = EventLog(tmp_path, keep=4)
        totals = memory.load()
        for _ in range(7):
            log.append("view.started", "")
            total += 1
            totals = totals.fold(log.since(totals.last_id, 1000))
        memory.save(totals)
        log.close()
    assert memory.load().counts == {"view.started": total}
