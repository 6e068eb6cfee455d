# SPDX-License-Identifier: Apache-2.0
"""Comparing and resync without a log: verify and repair under load, a cut resync, a seeded copy, limits, estimates."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mirror.nodes import TwoNodes, begin
from tests.mirror.trees import differences

pytestmark = [pytest.mark.root, pytest.mark.lab]

MB = 1 << 20


@contextmanager
def _load(folder: Path) -> Iterator[list[int]]:
    """A program that writes as long as the block lasts: blocks of one file, files made, renamed and deleted."""
    stop, done = threading.Event(), list[int]()
    chance = random.Random(1)
    (folder / "busy").write_bytes(bytes(4 * MB))

    def write() -> None:
        with (folder / "busy").open("r+b", buffering=0) as file:
            while not stop.is_set():
                number = len(done)
                os.pwrite(file.fileno(), chance.randbytes(8192), chance.randrange(500) * 8192)
                path = folder / f"row-{number % 100}"
                path.write_bytes(chance.randbytes(500))
                if number % 3 == 0:
                    path.rename(folder / f"moved-{number % 40}")
                if number % 7 == 0:
                    (folder / f"moved-{chance.randrange(40)}").unlink(missing_ok=True)
                done.append(number)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def test_verify_under_load_names_what_differs_and_nothing_else_and_repair_mends_it() -> None:
    with TwoNodes("mrv") as nodes:
        one, two = nodes.nodes
        for number in range(20):
            (one.data / f"quiet{number}").write_bytes(os.urandom(300_000))
        (one.data / "folder").mkdir()
        for name in ("a", "b"):
            (one.data / "folder" / name).write_text(name)
        (one.data / "first").write_text("two names")
        os.link(one.data / "first", one.data / "second")
        begin(nodes)
        with _load(one.data) as done:
            for _ in range(3):
                assert one.ctl("verify")["findings"] == [], "what was being written was called different"

            with (two.data / "quiet3").open("r+b") as file:  # behind the receiver's back: a disk that rots
                file.seek(70_000)
                file.write(b"rotten")
            (two.data / "quiet4").chmod(0o600)
            shutil.rmtree(two.data / "folder")
            (two.data / "quiet5").unlink()
            (two.data / "quiet5").mkdir()
            (two.data / "extra").write_text("foreign")
            (two.data / "second").unlink()
            (two.data / "second").write_text("two names")
            wrong = {"quiet3", "quiet4", "quiet5", "folder", "folder/a", "folder/b", "extra", "first", "second"}

            found = one.ctl("verify", code=3)["findings"]
            assert {each["path"] for each in found} - {""} == wrong
            assert (two.data / "quiet3").read_bytes() != (one.data / "quiet3").read_bytes(), "verify changed something"

            mended = one.ctl("verify", "--repair")
            made_equal = {each["path"] for each in mended["findings"]}
            assert wrong - made_equal in ({"first"}, {"second"}), "one of two names is enough to join them"
            assert one.ctl("verify")["equal"]
            goal = len(done) + 20
            one.wait("writing on", lambda _: len(done) > goal)
        assert one.ctl("verify")["equal"]
        assert one.status()["in_sync"]
        assert two.status()["in_sync"]
        assert differences(one.data, two.data) == []
        (one.data / "quiet5").write_text("the stream reaches what was made anew")
        assert (two.data / "quiet5").read_text() == "the stream reaches what was made anew"


def test_verify_is_the_primarys_in_sync() -> None:
    with TwoNodes("mrp") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        assert "primary" in two.refused("verify")
        two.kill()
        one.wait("alone", lambda status: not status["peer"]["connected"])
        one.ctl("verify", code=1)


def test_a_resync_that_was_cut_goes_on_where_it_was() -> None:
    """The receiving node dies in the middle of a first sync that is slow enough to be seen."""
    with TwoNodes("mrc") as nodes:
        one, two = nodes.nodes
        whole = 0
        for number in range(60):
            folder = one.data / f"d{number}"
            folder.mkdir()
            (folder / "file").write_bytes(os.urandom(MB))
            whole += MB
        one.ctl("resync", "--limit", "15")
        one.ctl("promote", "--accept", "first")

        def third_sent(status: dict[str, object]) -> bool:
            work = status["resync"]
            return isinstance(work, dict) and work.get("bytes_sent", 0) > whole // 3

        status = one.wait("sending", third_sent)
        assert status["resync"]["phase"] == "contents"
        assert 0 < status["resync"]["share"] < 1
        assert status["resync"]["eta_s"] > 0
        two.kill()
        one.ctl("resync", "--limit", "0")
        two.ctl("start")
        moved = one.wait_in_sync()["last_resync"]["bytes_moved"]
        assert 0 < moved < whole * 4 // 5, f"{moved} of {whole} bytes travelled after the cut"
        assert one.ctl("verify")["equal"]
        assert differences(one.data, two.data) == []


def test_a_first_sync_from_a_restored_backup_moves_only_what_differs() -> None:
    with TwoNodes("mrs") as nodes:
        one, two = nodes.nodes
        for number in range(30):
            (one.data / f"f{number}").write_bytes(os.urandom(MB))
        two.ctl("stop")
        shutil.copytree(one.data, two.data, dirs_exist_ok=True)  # contents and times, as a backup restores them
        with (one.data / "f7").open("r+b") as file:
            file.seek(100_000)
            file.write(b"written since the backup")
        (one.data / "f8").unlink()
        (one.data / "new").write_bytes(os.urandom(200_000))
        two.ctl("start")
        begin(nodes)
        moved = one.status()["last_resync"]["bytes_moved"]
        assert moved <= 65536 + 200_000 + 65536, f"{moved} bytes travelled"
        assert differences(one.data, two.data) == []


def test_diff_says_how_much_and_how_long_and_a_limit_counts() -> None:
    with TwoNodes("mrd") as nodes:
        one, two = nodes.nodes
        (one.data / "file").write_bytes(os.urandom(20 * MB))
        begin(nodes)
        with (two.data / "file").open("r+b") as file:
            file.write(os.urandom(10 * MB))
        found = one.ctl("diff")
        assert found["counters"]["bytes_differing"] == 10 * MB
        one.ctl("resync", "--limit", "1")
        limited = one.ctl("diff")
        assert limited["estimate_s"] > 10 * MB / 1e6 - 1
        assert limited["estimate_s"] > found["estimate_s"]
        began = time.monotonic()
        one.ctl("verify", "--repair")
        assert time.monotonic() - began < 60
        assert one.ctl("verify")["equal"]
