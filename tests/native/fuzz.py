# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the filter with libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer, and prints what was covered.

`python -m tests.native.fuzz --seconds 600` is the long form. The corpus grows in `.build/native/corpus`; an input that
breaks a rule is kept there beside it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.native.build import FOLDER, Kind, build, run, write_seeds

LONGEST_INPUT = 4096
_STATISTIC = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)
_EDGES = re.compile(r" cov: (\d+) ft: (\d+) corp: (\d+)")


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """How a run went. `broken` is libFuzzer's last output if an input broke a rule, else empty."""

    executions: int
    edges: int
    features: int
    inputs: int
    broken: str


def fuzz(seconds: int, *, corpus: Path = FOLDER / "corpus") -> Fuzzed:
    """Run the fuzzer from the seeds and what is in `corpus`."""
    program, seeds = build(Kind.FUZZ), FOLDER / "seeds"
    write_seeds(seeds)
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-print_final_stats=1", f"-max_len={LONGEST_INPUT}"]
    command = [str(program), *options, f"-artifact_prefix={corpus.parent}/", str(corpus), str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    edges = _EDGES.findall(done.stderr)
    reached, features, inputs = (int(number) for number in edges[-1]) if edges else (0, 0, 0)
    executions = dict(_STATISTIC.findall(done.stderr)).get("number_of_executed_units", "0")
    return Fuzzed(int(executions), reached, features, inputs, done.stderr[-6000:] if done.returncode else "")


def coverage(corpus: Path = FOLDER / "corpus") -> str:
    """The lines and branches of the filter that the corpus reaches, as llvm-cov shows them."""
    program, raw, profile = build(Kind.COVERAGE), FOLDER / "coverage.raw", FOLDER / "coverage.profile"
    folders = [str(corpus), str(FOLDER / "seeds")]
    run([str(program), "-runs=0", *folders], os.environ | {"LLVM_PROFILE_FILE": str(raw)})
    run(["llvm-profdata", "merge", "-sparse", str(raw), "-o", str(profile)])
    sources = sorted(str(path) for path in (FOLDER / "ebpf").glob("*.[ch]"))
    shown = ["-show-branch-summary", "-show-region-summary=false", f"-instr-profile={profile}"]
    return run(["llvm-cov", "report", *shown, str(program), *sources])


def lines_covered(table: str) -> float:
    """The percentage of lines in the last row of `coverage`."""
    total = next(line for line in table.splitlines() if line.startswith("TOTAL"))
    return float(re.findall(r"([\d.]+)%", total)[1])


def main() -> int:
    """Fuzz; 1 if an input broke a rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    chosen = parser.parse_args()
    fuzzed = fuzz(chosen.seconds)
    print(coverage())
    print(
        f"{fuzzed.executions:,} inputs run in {chosen.seconds} s; {fuzzed.inputs:,} kept, which reach {fuzzed.edges:,} "
        f"edges and {fuzzed.features:,} features"
    )
    print(fuzzed.broken or "no input broke a rule")
    return bool(fuzzed.broken)


if __name__ == "__main__":
    sys.exit(main())
