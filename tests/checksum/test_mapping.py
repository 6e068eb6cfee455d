# SPDX-License-Identifier: Apache-2.0
"""Large files are hashed where they lie in the page cache. What is cut short meanwhile must not end the process."""

from __future__ import annotations

import os
import platform
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checksum.build import build
from tests.checksum.rig import run
from tests.checksum.trees import differences

pytestmark = pytest.mark.root

SIZE = 2 << 20
PAGES = SIZE // 4096
KERNEL = tuple(int(number) for number in platform.release().split("-")[0].split(".")[:2])
MAPS = KERNEL >= (6, 5)
"""Older kernels do not tell what is in the page cache: there, all is read."""


@pytest.fixture
def cut(tmp_path: Path) -> Callable[[str], tuple[int, str]]:
    """Runs one case of `cut.c`; how it ended and what it said."""

    def ended(case: str) -> tuple[int, str]:
        file = tmp_path / "file"
        file.write_bytes(b"\1" * SIZE)
        words = [str(build("cut")), case, str(file)]
        quiet = os.environ | {"ASAN_OPTIONS": "handle_sigbus=0"}  # the case is about handlers: no other one
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=quiet)
        return done.returncode, done.stdout.strip() + done.stderr.strip()

    return ended


def test_a_file_that_is_cut_short_is_lost_and_others_stay(cut: Callable[[str], tuple[int, str]]) -> None:
    # The page that is left was seen before the first fault.
    assert cut("lost") == (0, f"{PAGES} 1 {PAGES // 2 + 1} 0" if MAPS else "read")


def test_there_is_an_end_of_mappings(cut: Callable[[str], tuple[int, str]]) -> None:
    assert cut("many") == (0, "128" if MAPS else "0")


@pytest.mark.parametrize("case", ["foreign", "sent"])
def test_what_is_not_ours_ends_the_process_as_ever(cut: Callable[[str], tuple[int, str]], case: str) -> None:
    assert cut(case) == (-signal.SIGBUS, "")


def test_a_handler_that_was_there_before_gets_what_is_its_own(cut: Callable[[str], tuple[int, str]]) -> None:
    assert cut("chained") == (0, "theirs")


def test_what_is_in_the_page_cache_is_mapped(cut: Callable[[str], tuple[int, str]]) -> None:
    assert cut("plain") == (0, "mapped" if MAPS else "read")


@pytest.mark.parametrize("case", ["unguarded", "taken-away", "blocked", "short"])
def test_without_a_guard_or_a_gain_it_is_read(cut: Callable[[str], tuple[int, str]], case: str) -> None:
    assert cut(case) == (0, "read")


@pytest.mark.parametrize("mode", ["sync", "verify"])
def test_both_ends_survive_files_that_are_cut_and_grow(pair: tuple[Path, Path], mode: str) -> None:
    source, target = pair
    size, tail, data = 64 << 20, 8 << 20, random.randbytes(64 << 20)
    for root in pair:
        (root / "file").write_bytes(data)
    over = threading.Event()

    def cut_and_grow() -> None:
        # Both sides: a comparison looks at a standby whose files the stream cuts as well.
        files = [os.open(root / "file", os.O_RDWR) for root in pair]
        while not over.is_set():
            for file in files:
                left = size - random.randrange(tail)
                os.ftruncate(file, left)
                os.pwrite(file, data[left:], left)
        for file in files:
            os.close(file)

    cutter = threading.Thread(target=cut_and_grow)
    cutter.start()
    try:
        for _ in range(4):
            words = [sys.executable, "-m", "farmd.mirror.checksum", mode, str(source), str(target)]
            done = subprocess.run(words, capture_output=True, text=True, timeout=120)
            assert (done.returncode in (0, 1), done.stderr) == (True, "")
    finally:
        over.set()
        cutter.join()
    assert run(source, target).equal
    assert differences(source, target) == []
