# SPDX-License-Identifier: Apache-2.0
"""Whatever happens in the middle: it is said, the next run mends it, and nothing outside is touched."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from farmd.mirror.checksum import Mode, Options, Run
from farmd.model.errors import FarmError, PeerError
from tests.checksum.rig import LONG, disk, proxied, run, run_over
from tests.checksum.trees import Maker, differences

pytestmark = pytest.mark.root


def command(source: Path, target: Path, *words: str) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "farmd.mirror.checksum", "sync", str(source), str(target), *words]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize("seed", range(6 if LONG else 1))
def test_kill_nine_in_the_middle_and_resume(pair: tuple[Path, Path], seed: int) -> None:
    source, target = pair
    record = str(source.parent / "record")
    Maker(seed).grow(source, 80)
    for number in range(30 if LONG else 10):
        (source / f"big{number}").write_bytes(os.urandom(2_000_000))
    chance = random.Random(seed)
    time.sleep(0.1)
    for _ in range(4 if LONG else 2):
        with command(source, target, "--record", record, "--resume", "--rate", "40000000") as process:
            time.sleep(0.15 + chance.random())
            process.kill()
    with command(source, target, "--record", record, "--resume") as process:
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, b"")
    assert differences(source, target) == []


def test_what_an_interrupted_run_verified_is_not_read_again(tmp_path: Path) -> None:
    with disk(tmp_path, 256) as mount:
        source, target, record = mount / "source", mount / "target", mount / "record"
        for number in range(40):
            (source / f"d{number}").mkdir(parents=True)
            (source / f"d{number}" / "f").write_bytes(os.urandom(500_000))
        target.mkdir()
        time.sleep(0.1)
        stopped = Run(Options(target, record.with_name("record.target"), rate_bytes_s=20_000_000))
        giving = Run(Options(source, record.with_name("record.source"), rate_bytes_s=20_000_000))
        ours, theirs = socket.socketpair()

        def give() -> None:
            with pytest.raises(FarmError):
                giving.source(theirs.fileno(), theirs.fileno())

        thread = threading.Thread(target=give)
        watcher = threading.Thread(target=stop_when_dirs_are_done, args=(stopped, 15))
        thread.start()
        watcher.start()
        with ours, theirs:
            with pytest.raises(FarmError, match="stopped by the caller"):
                stopped.target(ours.fileno(), ours.fileno())
            watcher.join()
            thread.join()
        stopped.close()
        giving.close()

        outcome = run(source, target, Options(target, resume=True), record)

        assert outcome.progress.bytes_differing <= 26 * 500_000
        assert outcome.progress.bytes_hashed <= 26 * 500_000
        assert differences(source, target) == []


def stop_when_dirs_are_done(one: Run, count: int) -> None:
    while one.progress().dirs_done < count:
        time.sleep(0.01)
    one.stop()


def test_a_change_between_two_attempts_is_not_taken_for_verified(tmp_path: Path) -> None:
    """The first attempt verified the old contents, the second ended before it came there."""
    with disk(tmp_path, 128) as mount:
        source, target, record = mount / "source", mount / "target", mount / "record"
        source.mkdir()
        target.mkdir()
        (source / "f").write_bytes(os.urandom(3_000_000))
        time.sleep(0.1)
        run(source, target, Options(target), record)
        for end in ("source", "target"):
            (mount / f"record.{end}").rename(mount / f"record.{end}.partial")
        info = (source / "f").stat()
        (source / "f").write_bytes(os.urandom(3_000_000))
        os.utime(source / "f", ns=(0, info.st_mtime_ns))
        time.sleep(0.1)

        def cut(offset: int, data: bytes) -> bytes:
            return data if offset < 300 else bytes(len(data))  # the folders' digests pass, the list does not

        with proxied(cut) as (ours, theirs), pytest.raises(FarmError):
            run_over(source, target, Options(target, resume=True), record, ours, theirs)

        run(source, target, Options(target, resume=True), record)
        assert differences(source, target) == []


@pytest.mark.parametrize("offset", [0, 3, 20, 100, 250, 700, 5_000, 100_000])
def test_a_flipped_bit_ends_the_run_and_writes_nothing_wrong(pair: tuple[Path, Path], offset: int) -> None:
    source, target = pair
    data = os.urandom(400_000)
    (source / "f").write_bytes(data)

    def flip(start: int, passing: bytes) -> bytes:
        spoiled = bytearray(passing)
        if start <= offset < start + len(passing):
            spoiled[offset - start] ^= 4
        return bytes(spoiled)

    options = Options(target, timeout_s=3)
    with proxied(flip) as (ours, theirs), pytest.raises(PeerError):
        run_over(source, target, options, None, ours, theirs)
    run(source, target)
    assert (target / "f").read_bytes() == data


def test_a_silent_peer_ends_the_run_in_time(pair: tuple[Path, Path]) -> None:
    ours, theirs = socket.socketpair()
    one = Run(Options(pair[1], timeout_s=1))
    with ours, theirs, pytest.raises(PeerError, match="silent"):
        one.target(ours.fileno(), ours.fileno())
    one.close()


def test_a_peer_that_goes_away_is_named(pair: tuple[Path, Path]) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    one = Run(Options(pair[1]))
    with ours, pytest.raises(PeerError):
        one.target(ours.fileno(), ours.fileno())
    one.close()


def test_a_full_disk_is_said_and_mended(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(40_000_000))
    with disk(tmp_path, 32) as mount:
        with pytest.raises(FarmError, match="No space left on device") as failure:
            run(source, mount)
        assert "writing big" in failure.value.cause
        assert "Free space" in failure.value.next_step
        os.truncate(source / "big", 5_000_000)
        run(source, mount)
        assert differences(source, mount) == []


def test_a_file_that_never_rests_is_named(pair: tuple[Path, Path]) -> None:
    source, target = pair
    (source / "still").write_text("still")
    (source / "busy").write_bytes(bytes(30_000_000))
    over = threading.Event()

    def scribble() -> None:
        with (source / "busy").open("r+b") as file:
            while not over.is_set():
                file.seek(random.randrange(30_000_000))
                file.write(os.urandom(100))
                file.flush()

    writer = threading.Thread(target=scribble)
    writer.start()
    try:
        outcome = run(source, target)
    finally:
        over.set()
        writer.join()
    assert (outcome.complete, outcome.equal) == (False, False)
    assert ("CHANGING", b"busy") in {(one.kind.name, one.path) for one in outcome.findings}
    assert (target / "still").read_text() == "still"
    assert run(source, target).equal
    assert differences(source, target) == []


def test_names_that_come_and_go_never_break_a_run(pair: tuple[Path, Path]) -> None:
    source, target = pair
    Maker(5).grow(source, 60)
    over = threading.Event()

    def churn() -> None:
        maker = Maker(6)
        while not over.is_set():
            maker.change(source, 1)

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        for _ in range(5):
            run(source, target)
    finally:
        over.set()
        writer.join()
    assert run(source, target).equal
    assert differences(source, target) == []


def test_symlinks_put_in_the_way_lead_nowhere(pair: tuple[Path, Path]) -> None:
    """Somebody swaps directories of the target for symbolic links to the outside, again and again."""
    source, target = pair
    outside = target.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    for number in range(10):
        (source / f"d{number}").mkdir()
        for name in ("precious", "other"):
            (source / f"d{number}" / name).write_bytes(os.urandom(50_000))
    over = threading.Event()

    def swap() -> None:
        chance = random.Random(1)
        while not over.is_set():
            path, aside = target / f"d{chance.randrange(10)}", target.parent / "aside"
            try:
                path.rename(aside)
                path.symlink_to(outside)
                time.sleep(0.001)
                path.unlink()
                aside.rename(path)
            except OSError:
                subprocess.run(["rm", "-rf", str(aside)], check=True)

    attacker = threading.Thread(target=swap)
    attacker.start()
    try:
        for _ in range(25):
            try:
                run(source, target)
            except FarmError:
                continue  # giving up is allowed, leaving the directory is not
    finally:
        over.set()
        attacker.join()
    assert sorted(os.listdir(outside)) == ["precious"]
    assert (outside / "precious").read_text() == "precious"
    run(source, target)
    assert differences(source, target) == []


def test_a_mount_below_the_source_is_named_and_not_entered(pair: tuple[Path, Path]) -> None:
    source, target = pair
    (source / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(source / "mnt")], check=True)
    try:
        (source / "mnt" / "inner").write_text("inner")
        outcome = run(source, target)
    finally:
        subprocess.run(["umount", "-l", str(source / "mnt")], check=True)
    assert [(one.kind.name, one.path) for one in outcome.findings if one.kind.name == "UNREADABLE"] == [
        ("UNREADABLE", b"mnt")
    ]
    assert not outcome.complete
    assert not (target / "mnt").exists()


def test_a_rate_is_kept(pair: tuple[Path, Path]) -> None:
    source, target = pair
    (source / "f").write_bytes(os.urandom(6_000_000))
    since = time.monotonic()
    run(source, target, Options(target, mode=Mode.SYNC, rate_bytes_s=4_000_000))
    assert time.monotonic() - since > 0.8  # 6 MB less what may burst, at 4 MB/s


@pytest.mark.parametrize("size", [500_000, 6_000_000])
def test_a_limit_of_reading_is_kept_on_each_side(pair: tuple[Path, Path], size: int) -> None:
    """Small files, which their directory speaks for, and a large one, block by block; only one side is limited."""
    source, target = pair
    for folder in pair:
        for number in range(6_000_000 // size):
            (folder / f"f{number}").write_bytes(bytes(65536) + b"x" * (size - 65536))
    for limited in (source, target):
        ours, theirs = socket.socketpair()
        giving, taking = Run(Options(source, mode=Mode.VERIFY)), Run(Options(target, mode=Mode.VERIFY))
        (giving if limited == source else taking).limit(0, 4_000_000)
        since = time.monotonic()
        thread = threading.Thread(target=giving.source, args=(theirs.fileno(), theirs.fileno()))
        with ours, theirs:
            thread.start()
            taking.target(ours.fileno(), ours.fileno())
            thread.join()
        taking.close()
        giving.close()
        assert time.monotonic() - since > 0.8, "6 MB less what may burst, at 4 MB/s"
