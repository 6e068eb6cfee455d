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


def compile_hostile(target: Path, *extra: str) -> Path:
    """Build `hostile.c` with the receiver and the sanitizers."""
    sources = [str(ROOT / "cext/mirror" / name) for name in SOURCES]
    command = ["clang", "-std=gnu11", "-O1", "-g", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-sign-compare", f"-I{ROOT / 'cext/mirror'}", str(ROOT / "tests/mirror/hostile.c"), *sources]
    subprocess.run([*command, *extra, "-pthread", "-lssl", "-lcrypto", "-lxxhash", "-o", str(target)], check=True)
    return target


def test_hostile_streams_are_refused_and_reach_nothing_outside(tmp_path: Path) -> None:
    program = compile_hostile(tmp_path / "hostile", "-fsanitize=address,undefined")
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
    program = compile_hostile(tmp_path / "fuzz", "-DFUZZ", "-fsanitize=fuzzer,address,undefined")
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
