# SPDX-License-Identifier: Apache-2.0
"""The peer goes away, or the engine does: nobody hangs for ever, nothing is acknowledged that must not be."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mirror.certificates import make_certificates
from tests.mirror.pair import EngineProcess, Pair
from tests.mirror.trees import differences

pytestmark = pytest.mark.root


@pytest.fixture(name="pair")
def _pair() -> Iterator[Pair]:
    with Pair() as pair:
        pair.join()
        yield pair


class Writer(threading.Thread):
    """One write, whose end can be waited for."""

    def __init__(self, path: Path, data: bytes = b"written") -> None:
        super().__init__(daemon=True)
        self._path, self._data = path, data
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            self._path.write_bytes(self._data)
        except OSError as error:
            self.error = error


def test_a_lost_peer_holds_writers_until_the_decision_to_go_alone(pair: Pair) -> None:
    (pair.mount / "before").write_text("x")
    pair.secondary.kill()
    assert pair.primary.wait_for("lost")["text"]
    writer = Writer(pair.mount / "after")
    writer.start()
    writer.join(0.5)
    assert writer.is_alive(), "acknowledged a change that only this node has, without a decision"
    assert (pair.mount / "before").read_text() == "x"

    pair.primary.do("go-alone")
    writer.join(30)
    assert not writer.is_alive()
    assert writer.error is None
    assert (pair.mount / "after").read_bytes() == b"written"


def test_what_only_this_node_has_is_reported_by_handle(pair: Pair) -> None:
    (pair.mount / "file").write_bytes(bytes(1 << 20))
    pair.settle()
    pair.secondary.kill()
    pair.primary.wait_for("lost")
    pair.primary.events.clear()
    pair.primary.do("go-alone")
    with (pair.mount / "file").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x", 200_000)
        os.pwrite(file.fileno(), b"x", 200_001)
    (pair.mount / "new").touch()

    data = pair.primary.wait_for("data")
    assert (data["offset"], data["length"]) == (3 * 65536, 65536)
    assert data["handle"].split(":")[1]
    assert pair.primary.wait_for("names")["handle"]
    assert [event for event in pair.primary.events if event["event"] == "data"] == []


def test_without_a_decision_changes_fail_in_time() -> None:
    with Pair(decide_ms=300) as pair:
        pair.join()
        pair.secondary.kill()
        writer = Writer(pair.mount / "file")
        writer.start()
        pair.primary.wait_for("refused")
        writer.join(30)

        assert writer.error is not None
        with pytest.raises(OSError, match="Input/output error"):
            (pair.mount / "other").write_text("x")
        assert os.listdir(pair.mount) is not None


def test_a_peer_that_stalls_is_lost_after_its_time() -> None:
    with Pair(peer_ms=500) as pair:
        pair.join()
        os.kill(pair.secondary.process.pid, 19)
        try:
            writer = Writer(pair.mount / "file")
            writer.start()
            assert "in time" in pair.primary.wait_for("lost")["text"]
        finally:
            os.kill(pair.secondary.process.pid, 18)
        pair.primary.do("go-alone")
        writer.join(30)
        assert writer.error is None


@contextmanager
def little_room(pair: Pair) -> Iterator[None]:
    """The copy is on a disk of 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", pair.copy], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", pair.copy], check=True)


def test_a_peer_whose_disk_is_full_is_lost_with_the_reason() -> None:
    with Pair() as pair, little_room(pair):
        pair.join()
        writer = Writer(pair.mount / "big", bytes(4 << 20))
        writer.start()
        assert "No space left" in pair.primary.wait_for("lost")["text"]
        pair.primary.do("go-alone")
        writer.join(30)
        assert writer.error is None
        pair.secondary.close()


@pytest.mark.parametrize("tls", [False, True])
def test_the_reason_is_heard_by_a_primary_that_sends_on(tmp_path: Path, tls: bool) -> None:
    """Its next bytes find the connection closed before it has read why."""
    of = make_certificates(tmp_path / "farm", "one", "two")
    keys = (of["one"] | {"peer_name": "two"}, of["two"] | {"peer_name": "one"})
    for _ in range(6):
        with Pair(ack="async", lag_bytes=1 << 30) as pair, little_room(pair):
            pair.join(keys if tls else None)
            writers = [Writer(pair.mount / str(number), bytes(8 << 20)) for number in range(8)]
            for writer in writers:
                writer.start()
            assert "No space left" in pair.primary.wait_for("lost")["text"]
            pair.primary.do("go-alone")
            for writer in writers:
                writer.join(30)
            pair.secondary.close()


def test_a_killed_primary_leaves_no_hung_mount_and_the_copy_has_every_acknowledged_write(pair: Pair) -> None:
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        number = 0
        while not stop.is_set():
            try:
                (pair.mount / f"f{number}").write_bytes(b"%d" % number)
            except OSError:
                return
            written.append(number)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    while len(written) < 50:
        time.sleep(0.005)
    pair.primary.kill()
    thread.join(30)
    stop.set()
    assert not thread.is_alive(), "a write hangs in a mount whose engine is dead"
    assert pair.secondary.wait_for("ended")["code"] in {0, 74, 104}

    missing = [n for n in written if (pair.copy / f"f{n}").read_bytes() != b"%d" % n]
    assert missing == []
    subprocess.run(["umount", "-l", pair.mount], check=True, timeout=30)
    again = EngineProcess()
    try:
        again.do("mount", settings={"backing": str(pair.backing), "mount_point": str(pair.mount)})
        assert (pair.mount / "f0").read_bytes() == b"0"
    finally:
        again.close()


def test_replication_goes_on_after_a_new_session(pair: Pair) -> None:
    for folder in ("a", "a/b"):
        (pair.mount / folder).mkdir()
    opened = (pair.mount / "a/b/open").open("wb", buffering=0)
    opened.write(b"one")
    pair.settle()
    pair.primary.do("detach")
    pair.secondary.wait_for("ended")
    pair.join()
    opened.write(b"two")
    os.rename(pair.mount / "a/b", pair.mount / "c")
    (pair.mount / "c/open2").write_text("x")
    opened.write(b"three")
    opened.close()
    pair.settle()

    assert (pair.copy / "c/open").read_bytes() == b"onetwothree"
    assert differences(pair.backing, pair.copy) == []


def test_a_checkpoint_tells_which_events_are_durable_at_both_ends(pair: Pair) -> None:
    (pair.mount / "file").write_text("x")
    pair.primary.do("checkpoint")
    done = pair.primary.wait_for("checkpoint")
    covered = [event["number"] for event in pair.primary.events if event["event"] in {"data", "names"}]
    assert covered
    assert max(covered) <= done["offset"]

    pair.primary.events.clear()
    (pair.mount / "file").write_text("y")
    assert pair.primary.wait_for("data")["number"] > done["offset"]


def test_a_change_waits_until_its_event_is_confirmed() -> None:
    with Pair(confirm=True) as pair:
        pair.join()
        writer = Writer(pair.mount / "file")
        writer.start()
        first = pair.primary.wait_for("names")
        writer.join(0.3)
        assert writer.is_alive()
        assert os.listdir(pair.backing) == [], "changed the disk before the log knew"
        pair.primary.do("confirm", number=first["number"])
        writer.join(30)
        assert not writer.is_alive()


def test_the_mount_may_be_the_directory_itself() -> None:
    with Pair() as pair:
        pair.primary.do("unmount")
        (pair.backing / "old").write_text("here before")
        settings = {"backing": str(pair.backing), "mount_point": str(pair.backing)}
        pair.primary.do("mount", settings=settings)
        assert (pair.backing / "old").read_text() == "here before"
        (pair.backing / "new").write_text("x")
        pair.primary.do("unmount")
        assert (pair.backing / "new").read_text() == "x"
