# SPDX-License-Identifier: Apache-2.0
"""The disk with a volatile cache by itself: what it must keep, and what it must be able to lose."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.mirror.power import VolatileDisk
from tests.mirror.volatile import BLOCK, CACHE_BYTES, Cache

pytestmark = [pytest.mark.root, pytest.mark.lab]

SIZE = 16 * BLOCK


@pytest.fixture
def image(tmp_path: Path) -> int:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    return os.open(path, os.O_RDWR)


def block(byte: int) -> memoryview:
    return memoryview(bytes([byte]) * BLOCK)


def test_the_machine_reads_what_it_wrote_and_the_image_gets_it_with_a_flush(image: int) -> None:
    cache = Cache(image, random.Random(1), is_deaf=False)
    cache.write(2 * BLOCK, block(1))
    cache.write(2 * BLOCK, block(2))
    assert cache.read(BLOCK, 3 * BLOCK) == bytes(BLOCK) + bytes(block(2)) + bytes(BLOCK)
    assert cache.read(2 * BLOCK + 100, 50) == bytes([2]) * 50
    assert os.pread(image, SIZE, 0) == bytes(SIZE)
    cache.flush()
    assert os.pread(image, BLOCK, 2 * BLOCK) == block(2)


def test_what_is_lost_is_any_part_and_never_what_was_flushed(image: int) -> None:
    """Each unflushed block may be there or not, in each of its versions, or torn between sectors."""
    kinds = set()
    for seed in range(200):
        os.pwrite(image, bytes(SIZE), 0)
        cache = Cache(image, random.Random(seed), is_deaf=False)
        cache.write(0, block(9))
        cache.flush()
        for version in (1, 2):
            cache.write(BLOCK, block(version))
        cache.write(2 * BLOCK, block(3))
        cache.lose()
        assert os.pread(image, BLOCK, 0) == block(9)
        kinds.add(tuple(frozenset(os.pread(image, BLOCK, at * BLOCK)) for at in (1, 2)))
    whole = {frozenset([version]) for version in (0, 1, 2)}
    assert whole <= {first for first, _ in kinds}
    assert any(len(first) > 1 for first, _ in kinds), "none was torn"
    assert (frozenset([0]), frozenset([3])) in kinds, "the order was kept"


def test_a_full_cache_gives_away_its_oldest(image: int) -> None:
    cache = Cache(image, random.Random(1), is_deaf=False)
    cache.write(0, block(1))
    for _ in range(CACHE_BYTES // BLOCK):
        cache.write(BLOCK, block(2))
    assert os.pread(image, BLOCK, 0) == block(1)


def write_lines(path: Path, first: int, count: int) -> None:
    with path.open("a") as file:
        for number in range(first, first + count):
            file.write(f"{number}\n")
            file.flush()
            os.fsync(file.fileno())


@pytest.mark.parametrize("is_deaf", [False, True])
def test_a_file_system_on_it_keeps_what_was_synced_unless_flushes_are_ignored(tmp_path: Path, is_deaf: bool) -> None:
    disk = VolatileDisk(tmp_path / "disk", tmp_path / "point", "64M", is_deaf=is_deaf)
    disk.make()
    try:
        ledger, loose = disk.point / "ledger", disk.point / "loose"
        left = set()
        for turn in range(4):
            write_lines(ledger, 20 * turn + 1, 20)
            loose.write_text(f"{turn}")
            disk.lose()
            disk.mount()
            if is_deaf:
                assert not ledger.exists()
            else:
                assert ledger.read_text().split() == [str(number + 1) for number in range(20 * turn + 20)]
            left.add(loose.read_text() if loose.exists() else "")
        assert "3" not in left, "nothing of it was synced within a commit interval"
    finally:
        disk.unmount()
    subprocess.run(["e2fsck", "-fn", disk.image], check=True, capture_output=True)
