# SPDX-License-Identifier: Apache-2.0
"""Hunting mutants: how many seeds it takes until a model exposes a safeguard that was removed."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from bench.report import table

Catch = tuple[str, int | None, str]
"""The mutant's name, the seed that exposed it if one did, and how."""


def first_catch(name: str, limit: int, caught: Callable[[int], str | None]) -> Catch:
    """The first seed below `limit` of which `caught` tells how it exposes the mutant `name`."""
    for seed in range(limit):
        how = caught(seed)
        if how:
            return name, seed, how
    return name, None, f"not caught in {limit} seeds"


def hunt_all(
    mutants: type[StrEnum], hunt: Callable[[str, int], Catch], limit: int, jobs: int
) -> dict[str, dict[str, object]]:
    """Every mutant with the number of seeds that it took to catch it; `hunt` runs in processes of its own."""
    found: dict[str, dict[str, object]] = {}
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        hunts = [pool.apply_async(hunt, (mutant.name, limit)) for mutant in mutants]
        for waiting in hunts:
            name, seed, how = waiting.get()
            found[str(mutants[name])] = {"seeds_to_catch": None if seed is None else seed + 1, "how": how}
            print(f"mutant {name}: {how} (seed {seed})", file=sys.stderr, flush=True)
    return found


def all_caught(found: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether no mutant got away."""
    return all(row["seeds_to_catch"] for row in found.values())


def catches(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table for people."""
    rows = [(name, row["seeds_to_catch"] or "never", row["how"]) for name, row in found.items()]
    return table(("mutant", "seeds to catch", "how"), rows)


def short(value: object) -> object:
    """A figure for a table: of a list of seeds, how many and which."""
    return f"{len(value)} {value or ''}".rstrip() if isinstance(value, list) else value
