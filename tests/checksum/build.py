# SPDX-License-Identifier: Apache-2.0
"""Compiles the engine with sanitizers. `python -m tests.checksum.build 60` fuzzes for a minute."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FOLDER = ROOT / ".build" / "checksum"
ENGINE = ROOT / "cext" / "checksum"


@cache
def build(name: str, sanitizers: str = "address,undefined") -> Path:
    """`driver`, `hostile` or `fuzz`. Raises CalledProcessError with the compiler's words."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    program = FOLDER / f"{name}-{sanitizers.replace(',', '-')}"
    command = ["clang", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", f"-I{ENGINE}", str(HERE / f"{name}.c")]
    command += [*map(str, sorted(ENGINE.glob("*.c"))), "-lxxhash", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


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
