# SPDX-License-Identifier: Apache-2.0
"""A quick pass believes a record only where that cannot hide a change."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farmd.mirror.checksum import Options, Outcome, Pass
from tests.checksum.rig import disk, run
from tests.checksum.trees import differences

pytestmark = pytest.mark.root

FILES = 50
SIZE = 10_000


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two directories on an ext4 of their own, in sync and recorded; what is older than the clock's grain is known."""
    with disk(tmp_path, 256) as mount:
        source, target = mount / "source", mount / "target"
        source.mkdir()
        target.mkdir()
        for number in range(FILES):
            (source / f"f{number}").write_bytes(os.urandom(SIZE))
        time.sleep(0.1)
        run(source, target, record=mount / "record")
        yield source, target


def quick(pair: tuple[Path, Path], *, trust_restart: bool = False) -> Outcome:
    source, target = pair
    return run(
        source, target, Options(target, passes=Pass.QUICK, trust_restart=trust_restart), source.parent / "record"
    )


def test_what_is_known_is_not_read(pair: tuple[Path, Path]) -> None:
    outcome = quick(pair)
    assert (outcome.progress.bytes_hashed, outcome.progress.files_seen) == (0, FILES)


def test_one_changed_file_alone_is_read(pair: tuple[Path, Path]) -> None:
    (pair[0] / "f3").write_bytes(os.urandom(SIZE))
    outcome = quick(pair)
    assert outcome.progress.files_differing == 1
    assert outcome.progress.bytes_hashed <= 3 * SIZE
    assert differences(*pair) == []


@pytest.mark.parametrize("end", [0, 1])
def test_a_change_with_the_old_size_and_time_is_seen(pair: tuple[Path, Path], end: int) -> None:
    for number in range(20):
        path = pair[end] / f"f{number}"
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        path.write_bytes(os.urandom(SIZE))
        os.utime(path, ns=times)
    quick(pair)
    assert differences(*pair) == []


def test_changes_right_after_a_sync_are_seen_twenty_times_of_twenty(pair: tuple[Path, Path]) -> None:
    source, target = pair
    for _ in range(20):
        (source / "f1").write_bytes(os.urandom(SIZE))
        quick(pair)
        assert (target / "f1").read_bytes() == (source / "f1").read_bytes()


def test_stores_through_a_mapping_are_seen(pair: tuple[Path, Path]) -> None:
    """The page is dirty and mapped when the pass begins; the store after the pass must still move ctime."""
    source, target = pair
    with (source / "f2").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for value in range(5):
            memory[5] = value
            quick(pair)
            memory[6] = value + 100
            quick(pair)
            assert (target / "f2").read_bytes() == memory[:]


def test_an_attribute_that_changed_is_seen(pair: tuple[Path, Path]) -> None:
    os.setxattr(pair[0] / "f4", b"user.k", b"v")
    quick(pair)
    assert os.getxattr(pair[1] / "f4", b"user.k") == b"v"


def test_records_that_are_not_of_one_run_are_not_believed(pair: tuple[Path, Path]) -> None:
    record = pair[0].parent / "record.source"
    kept = record.read_bytes()
    (pair[0] / "f5").write_bytes(os.urandom(SIZE))
    quick(pair)
    record.write_bytes(kept)
    assert quick(pair).progress.bytes_hashed >= FILES * SIZE


def test_after_a_new_mount_nothing_is_believed_unless_the_caller_knows(pair: tuple[Path, Path]) -> None:
    mount = pair[0].parent
    subprocess.run(["umount", str(mount)], check=True)
    subprocess.run(["mount", "-o", "loop", str(mount.parent / "image"), str(mount)], check=True)
    assert quick(pair, trust_restart=True).progress.bytes_hashed == 0
    subprocess.run(["umount", str(mount)], check=True)
    subprocess.run(["mount", "-o", "loop", str(mount.parent / "image"), str(mount)], check=True)
    assert quick(pair).progress.bytes_hashed >= FILES * SIZE


def test_a_torn_or_foreign_record_is_no_record(pair: tuple[Path, Path]) -> None:
    record = pair[0].parent / "record.target"
    for damaged in (record.read_bytes()[:-7], b"nonsense" * 100, b""):
        record.write_bytes(damaged)
        assert quick(pair).complete
        assert differences(*pair) == []


def test_tmpfs_is_never_believed(tmp_path: Path) -> None:
    """Its mapped stores move no time."""
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
    try:
        source, target = tmp_path / "source", tmp_path / "target"
        source.mkdir()
        target.mkdir()
        (source / "f").write_bytes(os.urandom(SIZE))
        time.sleep(0.1)
        for _ in range(2):
            outcome = run(source, target, Options(target, passes=Pass.QUICK), tmp_path / "record")
            assert outcome.progress.recorded == 0
        assert outcome.progress.bytes_hashed == SIZE
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
