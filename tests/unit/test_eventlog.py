# SPDX-License-Identifier: Apache-2.0
"""The event log: ids, the ring, rotation, long poll, and what a crash leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from farmd.daemon.eventlog import EventLog
from farmd.model.errors import KernelError


def test_ids_start_at_one_and_go_on_after_a_restart(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert log.last_id == 0
    assert [log.append("a", "first")["id"], log.append("a", "second")["id"]] == [1, 2]
    log.close()

    again = EventLog(tmp_path)

    assert [event["text"] for event in again.since(0, 10)] == ["first", "second"]
    assert again.append("a", "third")["id"] == 3


def test_an_event_carries_its_time_in_utc_and_its_data(tmp_path: Path) -> None:
    log = EventLog(tmp_path, now=lambda: datetime(2026, 8, 1, 12, 0, 0, 5000, tzinfo=UTC))

    event = log.append("view.started", "view 12 started", {"epoch": 12})

    assert event == {
        "id": 1,
        "at": "2026-08-01T12:00:00.005Z",
        "type": "view.started",
        "text": "view 12 started",
        "data": {"epoch": 12},
    }
    assert json.loads((tmp_path / "events.jsonl").read_text()) == event


def test_since_gives_the_oldest_first_and_no_more_than_asked(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for number in range(1, 8):
        log.append("n", str(number))

    assert [event["id"] for event in log.since(2, 3)] == [3, 4, 5]
    assert log.since(7, 10) == []


def test_a_negative_after_counts_back_from_the_newest(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert log.since(-2, 10) == []
    for number in range(1, 8):
        log.append("n", str(number))

    assert [event["id"] for event in log.since(-2, 10)] == [6, 7]
    assert len(log.since(-100, 10)) == 7


def test_a_reader_of_a_log_that_is_gone_gets_everything(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append("n", "one")

    assert [event["id"] for event in log.since(500, 10)] == [1]


def test_the_ring_and_the_files_are_bounded(tmp_path: Path) -> None:
    log = EventLog(tmp_path, keep=10)
    for number in range(1, 36):
        log.append("n", str(number))

    assert [event["id"] for event in log.since(0, 100)] == list(range(26, 36))
    lines = sum(len(path.read_text().splitlines()) for path in tmp_path.iterdir())
    assert 10 <= lines <= 20
    log.close()

    again = EventLog(tmp_path, keep=10)
    assert [event["id"] for event in again.since(0, 100)] == list(range(26, 36))
    assert again.append("n", "next")["id"] == 36


def test_a_torn_last_line_is_dropped_and_the_next_event_is_readable(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append("n", "whole")
    log.append("n", "torn")
    log.close()
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-9])

    log = EventLog(tmp_path)
    assert [event["text"] for event in log.since(0, 10)] == ["whole"]
    log.append("n", "after")
    log.close()

    assert [event["text"] for event in EventLog(tmp_path).since(0, 10)] == ["whole", "after"]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\0" * 512 + b"\n",
        b"[]\n",
        b"{}\n",
        b'{"id":"9","at":"","type":"","text":"","data":{}}\n',
        b"\xff\xfe\n",
        b"[" * 99999,
    ],
    ids=["zeros", "list", "empty", "text-id", "not-utf8", "deep"],
)
def test_rubbish_in_the_file_is_passed_over(tmp_path: Path, rubbish: bytes) -> None:
    log = EventLog(tmp_path)
    log.append("n", "one")
    log.close()
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(rubbish)

    log = EventLog(tmp_path)
    log.append("n", "two")
    log.close()

    assert [(event["id"], event["text"]) for event in EventLog(tmp_path).since(0, 10)] == [(1, "one"), (2, "two")]


def test_a_full_disk_keeps_events_in_memory(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    os.close(log._file)
    log._file = os.open("/dev/full", os.O_WRONLY)

    log.append("n", "kept")

    assert log.lost
    assert [event["text"] for event in log.since(0, 10)] == ["kept"]
    log.close()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(KernelError, match="state_dir"):
        EventLog(tmp_path / "file" / "state")


def test_wait_returns_at_once_when_there_is_something(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append("n", "one")

    assert len(asyncio.run(log.wait(0, 10, 30.0))) == 1


def test_wait_wakes_on_append_on_close_and_on_its_time(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, int, int]:
        log = EventLog(tmp_path)
        poll = asyncio.create_task(log.wait(0, 10, 30.0))
        await asyncio.sleep(0)
        log.append("n", "one")
        woken = len(await poll)
        timed_out = len(await log.wait(1, 10, 0.01))
        poll = asyncio.create_task(log.wait(1, 10, 30.0))
        await asyncio.sleep(0)
        log.close()
        return woken, timed_out, len(await poll)

    started = time.monotonic()

    assert asyncio.run(scenario()) == (1, 0, 0)
    assert time.monotonic() - started < 10


_APPENDER = """
import sys
from pathlib import Path
from farmd.daemon.eventlog import EventLog
log = EventLog(Path(sys.argv[1]), keep=50)
while True:
    event = log.append("n", "x" * 300)
    print(event["id"], flush=True)
"""


def test_kill_9_while_appending_loses_nothing_that_was_seen(tmp_path: Path) -> None:
    seen = 0
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", _APPENDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for _ in range(120):
                seen = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            seen = max([seen, *(int(line) for line in child.stdout if line.endswith("\n"))])

        log = EventLog(tmp_path, keep=50)
        ids = [event["id"] for event in log.since(0, 1000)]
        log.close()

        assert ids == list(range(ids[0], ids[0] + 50))
        assert seen <= ids[-1] <= seen + 1
