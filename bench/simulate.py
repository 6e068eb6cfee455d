# SPDX-License-Identifier: Apache-2.0
"""The simulator's long form: fault storms by the thousand, mutants, takeover times; a table and a JSON file.

    python -m bench.simulate --seeds 20000 --jobs 2 --mutants

Every seed is a farm of its own (2 to 7 nodes, with or without a witness, both timings) that forms, suffers and must
heal. One seed in sixteen runs over the real wire. A safety figure means nothing without the availability beside it, nor
without mutants that are caught: both are printed. The exit code is 0 only if nothing was violated, all farms healed and
every mutant was caught.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.hunting import Catch, all_caught, catches, first_catch, hunt_all, short
from bench.report import RESULTS, publish, spread, table
from farmd.model.config import Timing
from tests.sim.mutants import Mutant, mutated
from tests.sim.storm import Outcome, ride
from tests.sim.takeover import Loss, takeover_ns
from tests.sim.world import SIM_FAST, SIM_TIMING

HOUR_NS = 3_600_000_000_000
MS_NS = 1_000_000
TIMINGS: dict[str, Timing] = {"100/500": SIM_TIMING, "50/300": SIM_FAST}
_COLLECT_EVERY = 50


def _quiet_worker() -> None:
    gc.disable()


def _ride(seed: int) -> Outcome:
    if seed % _COLLECT_EVERY == 0:
        gc.collect()
    return ride(seed)


def _rides(first: int, count: int, jobs: int) -> Iterator[Outcome]:
    seeds = range(first, first + count)
    with multiprocessing.get_context("spawn").Pool(jobs, _quiet_worker) as pool:
        yield from pool.imap_unordered(_ride, seeds, chunksize=10)


def storms(first: int, count: int, jobs: int) -> dict[str, object]:
    """Ride `count` seeds and sum them up."""
    outcomes: list[Outcome] = []
    began = time.monotonic()
    for outcome in _rides(first, count, jobs):
        outcomes.append(outcome)
        if outcome.violation or outcome.stuck:
            print(f"seed {outcome.seed}: {outcome.violation or outcome.stuck}", file=sys.stderr, flush=True)
        if len(outcomes) % 1000 == 0:
            print(f"{len(outcomes)} of {count} seeds, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    healed = sorted(outcome.healed_ns / MS_NS for outcome in outcomes if not outcome.stuck)
    return {
        "first_seed": first,
        "seeds": len(outcomes),
        "seeds_over_the_real_wire": sum(outcome.farm.wire for outcome in outcomes),
        "simulated_hours": round(sum(outcome.simulated_ns for outcome in outcomes) / HOUR_NS, 2),
        "violations": sorted(outcome.seed for outcome in outcomes if outcome.violation),
        "not_healed": sorted(outcome.seed for outcome in outcomes if outcome.stuck),
        "availability_calm": round(statistics.fmean(outcome.calm for outcome in outcomes), 5),
        "availability_storm": round(statistics.fmean(outcome.storm for outcome in outcomes), 4),
        "healed_ms_p50": round(statistics.median(healed)),
        "healed_ms_max": round(healed[-1]),
        "views_per_seed": round(statistics.fmean(outcome.views for outcome in outcomes), 1),
        "wall_seconds": round(time.monotonic() - began),
    }


def takeovers(runs: int) -> dict[str, dict[str, float]]:
    """How long buckets stay dark when a node is lost, by timing and kind of loss, over `runs` seeds each."""
    figures: dict[str, dict[str, float]] = {}
    for label, timing in TIMINGS.items():
        for loss in Loss:
            times = [
                takeover_ns(seed, timing, loss, nodes := 3 + 2 * (seed % 2), seed // 2 % nodes) / MS_NS
                for seed in range(runs)
            ]
            figures[f"{label} {loss}"] = {"runs": runs, **spread(times)}
    return figures


def caught(seed: int, mutant: Mutant | None) -> str | None:
    """How `seed` exposes `mutant`, if it does. The one that hurts availability only shows when a node goes deaf."""
    if mutant is Mutant.NO_TWO_WAY:
        try:
            takeover_ns(seed, SIM_TIMING, Loss.DEAF, 3, seed % 3)
        except AssertionError as problem:
            return str(problem)
        return None
    return ride(seed).violation


def hunt(name: str, limit: int) -> Catch:
    """The first seed below `limit` that exposes a mutant."""
    mutant = Mutant[name]
    gc.disable()

    def caught_tidily(seed: int) -> str | None:
        if seed % _COLLECT_EVERY == 0:
            gc.collect()
        return caught(seed, mutant)

    with mutated(mutant):
        return first_catch(name, limit, caught_tidily)


def show(results: dict[str, Any]) -> None:
    """The tables for people."""
    if "storms" in results:
        print(table(("storms", ""), [(name, short(value)) for name, value in results["storms"].items()]), end="\n\n")
    if "takeover" in results:
        rows = [(name, *row.values()) for name, row in results["takeover"].items()]
        print(table(("takeover, ms", "runs", "min", "p50", "p99", "max"), rows), end="\n\n")
    if "mutants" in results:
        print(catches(results["mutants"]))


def passed(results: dict[str, Any]) -> bool:
    """Nothing violated, everything healed, every mutant caught."""
    storm = results.get("storms", {})
    caught_all = all_caught(results.get("mutants", {}))
    return not storm.get("violations") and not storm.get("not_healed") and caught_all


def main() -> int:
    """Run what was asked for; parts that were not asked for keep their figures in the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20_000, help="fault storms to ride (0: none)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--takeovers", type=int, default=200, help="runs for each kind of loss (0: none)")
    parser.add_argument("--mutants", action="store_true", help="hunt every mutant")
    parser.add_argument("--limit", type=int, default=5_000, help="seeds to hunt a mutant with")
    options = parser.parse_args()
    known = RESULTS / "simulate.json"
    results: dict[str, Any] = json.loads(known.read_text()) if known.exists() else {}
    if options.takeovers:
        results["takeover"] = takeovers(options.takeovers)
    if options.seeds:
        results["storms"] = storms(options.first, options.seeds, options.jobs)
    if options.mutants:
        results["mutants"] = hunt_all(Mutant, hunt, options.limit, options.jobs)
    path = publish("simulate", {name: results[name] for name in ("storms", "takeover", "mutants") if name in results})
    show(results)
    print(f"\nwritten to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0 if passed(results) else 1


if __name__ == "__main__":
    sys.exit(main())
