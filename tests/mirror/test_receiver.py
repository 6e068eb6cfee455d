# SPDX-License-Identifier: Apache-2.0
"""A lying primary gets nothing but errors out of the receiver, under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["receiver.c", "apply.c", "fids.c", "turns.c", "inode.c", "wire.c", "transport.c", "tls.c", "records.c"]

pytestmark = pytest.mark.root


def compile_with_receiver(target: Path, program: str, *extra: str) -> Path:
    """Build a program with the receiver and sanitizers."""
    sources = [str(ROOT / "cext/mirror" / name) for name in SOURCES]
    command = ["clang", "-std=gnu11", "-O1", "-g", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-sign-compare", f"-I{ROOT / 'cext/mirror'}", str(ROOT / "tests/mirror" / program), *sources]
    subprocess.run([*command, *extra, "-pthread", "-lssl", "-lcrypto", "-lxxhash", "-o", str(target)], check=True)
    return target


def test_hostile_streams_are_refused_and_reach_nothing_outside(tmp_path: Path) -> None:
    program = compile_with_receiver(tmp_path / "hostile", "hostile.c", "-fsanitize=address,undefined")
    inside = tmp_path / "inside"
    inside.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    before = {path.name for path in tmp_path.iterdir()}

    done = subprocess.run([program, inside], capture_output=True, text=True, check=False, timeout=120)

    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert victim.read_text() == "untouched"
    assert oct(victim.stat().st_mode) == "0o100644"
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (inside / "good").read_text() == "good"


def test_a_short_fuzz_finds_nothing(tmp_path: Path) -> None:
    program = compile_with_receiver(tmp_path / "fuzz", "hostile.c", "-DFUZZ", "-fsanitize=fuzzer,address,undefined")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for seed in range(8):
        (corpus / str(seed)).write_bytes(bytes(range(1, 250)) * 2 + os.urandom(64))
    runs = os.environ.get("MIRROR_FUZZ_RUNS", "1500")

    done = subprocess.run(
        [program, f"-runs={runs}", "-max_len=2048", "-rss_limit_mb=4096", corpus],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_its_threads_take_turns(tmp_path: Path, sanitizers: str) -> None:
    """A disk that hangs does not stop the stream; each fsync is answered once, after it is done."""
    program = compile_with_receiver(tmp_path / "turns", "turns.c", f"-fsanitize={sanitizers}")
    inside = tmp_path / "inside"
    inside.mkdir()

    done = subprocess.run([program, inside], capture_output=True, text=True, check=False, timeout=120)

    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
