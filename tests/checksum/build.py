# SPDX-License-Identifier: Apache-2.0
"""Compiles the engine with sanitizers. `python -m tests.checksum.build 60` fuzzes for a minute."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FOLDER = ROOT / ".build" / "checksum"
ENGINE = ROOT / "cext" / "checksum"


@cache
def build(name: str, sanitizers: str = "address,undefined") -> Path:
    """`driver`, `hostile` or `fuzz`. Raises CalledProcessError with the compiler's words."""
    program = FOLDER / f"{name}-{sanitizers.replace(',', '-')}"
    parts = [*engine(sanitizers), _compile(HERE / f"{name}.c", sanitizers)]
    subprocess.run([*_clang(sanitizers), *map(str, parts), "-lxxhash", "-o", str(program)], check=True)
    return program


@cache
def engine(sanitizers: str) -> list[Path]:
    """The engine's objects, made by all processors at once and shared by the programs."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: _compile(source, sanitizers), sorted(ENGINE.glob("*.c"))))


def _clang(sanitizers: str) -> list[str]:
    return ["clang", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]


def _compile(source: Path, sanitizers: str) -> Path:
    """Anew only if a source or header is younger."""
    target = FOLDER / sanitizers.replace(",", "-") / f"{source.stem}.o"
    target.parent.mkdir(parents=True, exist_ok=True)
    headers = [*ENGINE.glob("*.h"), *ENGINE.parent.glob("*.h"), source]
    if not target.exists() or target.stat().st_mtime < max(file.stat().st_mtime for file in headers):
        words = ["-c", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ENGINE}", str(source)]
        subprocess.run([*_clang(sanitizers), *words, "-o", str(target)], check=True)
    return target


def fuzz(seconds: int) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer from the corpus that it has gathered so far."""
    corpus = FOLDER / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    command = [str(build("fuzz", "fuzzer,address,undefined")), f"-max_total_time={seconds}", "-max_len=2048"]
    return subprocess.run([*command, f"-artifact_prefix={FOLDER}/", str(corpus)], capture_output=True, text=True)


if __name__ == "__main__":
    done = fuzz(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
    print(done.stderr[-2000:])
    sys.exit(done.returncode)
