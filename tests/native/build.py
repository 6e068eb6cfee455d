# SPDX-License-Identifier: Apache-2.0
"""Compiles the filter for this machine, with sanitizers, into `.build/native/`."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from tests.native import corpus, worlds

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FOLDER = ROOT / ".build" / "native"

WARNINGS = ("-Wall", "-Wextra", "-Werror")
UNDEFINED = "undefined,bounds"
"""UndefinedBehaviorSanitizer, but for alignment: BPF machines load from anywhere, and IP headers begin at byte 14."""

_MASK = re.compile(r'asm volatile\("%0 &= %1" : "\+r"\(([\w.>-]+)\) : "i"\((\w+)\)\);')
"""The one instruction that the filter writes in BPF's own assembly: a mask that the verifier wants to see."""
_OTHER_ASSEMBLY = re.compile(r'asm volatile\(\s*"[^"]')


class Kind(StrEnum):
    """Programs that can be built."""

    JUDGE = "judge"
    """Reads frames, writes verdicts; AddressSanitizer and UndefinedBehaviorSanitizer."""
    JUDGE_MEMORY = "judge-memory"
    """The same with MemorySanitizer: says when a decision depends on what was never written."""
    FUZZ = "fuzz"
    """libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer."""
    COVERAGE = "coverage"
    """The fuzz target again, to see which lines a corpus reaches."""


FLAGS: Mapping[Kind, tuple[str, ...]] = {
    Kind.JUDGE: (f"-fsanitize=address,{UNDEFINED}",),
    Kind.JUDGE_MEMORY: ("-fsanitize=memory", "-fsanitize-memory-track-origins"),
    Kind.FUZZ: (f"-fsanitize=fuzzer,address,{UNDEFINED}",),
    Kind.COVERAGE: ("-fsanitize=fuzzer", "-fprofile-instr-generate", "-fcoverage-mapping"),
}


class CannotBuildError(Exception):
    """A tool is missing, or the compiler refused; the text says which."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A filter with one mistake: `old` in a file of `ebpf/` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


@cache
def build(kind: Kind, mutant: Mutant | None = None) -> Path:
    """Compile one program, once in the life of this process; returns it. Raises CannotBuildError."""
    clang = shutil.which("clang")
    if clang is None:
        raise CannotBuildError("clang is missing: make setup")
    folder = FOLDER / "mutant" if mutant else FOLDER
    _copy_filter(folder / "ebpf", mutant)
    variants = folder / "variants.bin"
    variants.write_bytes(b"".join(world.table for world in worlds.WORLDS))
    main = HERE / ("driver.c" if kind.startswith("judge") else "fuzz.c")
    target = folder / kind
    command = [clang, "-O1", "-g", "-fno-omit-frame-pointer", *WARNINGS, *FLAGS[kind]]
    if "memory" not in kind:
        command += ["-fno-sanitize=alignment", "-fno-sanitize-recover=all"]
    command += [f"-I{HERE / 'shim'}", f"-I{folder / 'ebpf'}", f"-I{HERE}", f'-DVARIANTS_FILE="{variants}"']
    run([*command, str(HERE / "harness.c"), str(main), "-o", f"{target}.new"])
    return Path(f"{target}.new").replace(target)


def write_seeds(folder: Path) -> int:
    """A seed corpus from the packet tests; returns how many files there are."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = list(corpus.seeds())
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number:04}").write_bytes(seed)
    return len(seeds)


def run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """What a command prints. Raises CannotBuildError with its complaint."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise CannotBuildError(f"{Path(command[0]).name} failed:\n{done.stderr.strip()}")
    return done.stdout


def _copy_filter(folder: Path, mutant: Mutant | None) -> None:
    """The filter's sources with the masks in C; line for line, so that reports are about the real files too."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (ROOT / "ebpf").glob("*.[ch]"):
        text = source.read_text()
        if mutant and mutant.file == source.name:
            if text.count(mutant.old) != 1:
                raise CannotBuildError(
                    f"{source.name} does not have `{mutant.old}` once: mend the mutant {mutant.name}"
                )
            text = text.replace(mutant.old, mutant.new)
        text = _MASK.sub(r"\1 &= \2;", text)
        if _OTHER_ASSEMBLY.search(text):
            raise CannotBuildError(f"{source.name} has assembly that tests/native/build.py cannot put into C")
        (folder / source.name).write_text(text)
