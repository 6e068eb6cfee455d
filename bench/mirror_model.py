# SPDX-License-Identifier: Apache-2.0
"""The mirror's model in its long form: random histories by the thousand, and every mutant; a table and a JSON file.

    python -m bench.mirror_model --seeds 40000 --jobs 2 --mutants

Every seed is a pair of real mirror nodes that forms, suffers three storms of crashes, power losses, cuts, false
suspicions and orders, and must serve in sync again after each. A safety figure means nothing without the availability
beside it, nor without mutants that are caught: both are printed. The exit code is 0 only if nothing was violated, every
pair recovered and every mutant was caught.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from bench.hunting import Catch, all_caught, catches, first_catch, hunt_all, short
from bench.report import RESULTS, publish, table
from tests.sim.mirror.mutants import Mutant, mutated
from tests.sim.mirror.storm import Outcome, ride

HOUR_NS = 3_600_000_000_000


def histories(first: int, count: int, jobs: int, *, aimed: bool = False) -> dict[str, object]:
    """Ride `count` seeds and sum them up; `aimed`: with faults that aim at one safeguard each."""
    outcomes: list[Outcome] = []
    totals: Counter[str] = Counter()
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for outcome in pool.imap_unordered(partial(ride, aimed=aimed), range(first, first + count), chunksize=20):
            outcomes.append(outcome)
            totals.update(outcome.counts)
            if outcome.violation or outcome.stuck:
                print(f"seed {outcome.seed}: {outcome.violation or outcome.stuck}", file=sys.stderr, flush=True)
            if len(outcomes) % 2000 == 0:
                print(f"{len(outcomes)} of {count}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return {
        "first_seed": first,
        "seeds": len(outcomes),
        "simulated_hours": round(sum(outcome.simulated_ns for outcome in outcomes) / HOUR_NS, 2),
        "violations": sorted(outcome.seed for outcome in outcomes if outcome.violation),
        "not_recovered": sorted(outcome.seed for outcome in outcomes if outcome.stuck),
        "served_in_storm": round(statistics.fmean(outcome.served for outcome in outcomes), 4),
        **dict(totals),
        "wall_seconds": round(time.monotonic() - began),
    }


def caught(seed: int, mutant: Mutant | None) -> str | None:
    """How `seed` exposes `mutant`, if it does; every other history is an aimed one."""
    outcome = ride(seed, aimed=seed % 2 == 1, stale_copies=mutant is Mutant.STALE_COPY)
    return outcome.violation or outcome.stuck


def hunt(name: str, limit: int) -> Catch:
    """The first seed below `limit` that exposes a mutant."""
    mutant = Mutant[name]
    with mutated(mutant):
        return first_catch(name, limit, partial(caught, mutant=mutant))


def show(results: dict[str, Any]) -> None:
    """The tables for people."""
    for part in ("histories", "aimed"):
        if part in results:
            rows = [(name, short(value)) for name, value in results[part].items()]
            print(table((part, ""), rows), end="\n\n")
    if "mutants" in results:
        print(catches(results["mutants"]))


def passed(results: dict[str, Any]) -> bool:
    """Nothing violated, every pair recovered, every mutant caught."""
    rides = [results.get(part, {}) for part in ("histories", "aimed")]
    caught_all = all_caught(results.get("mutants", {}))
    return caught_all and not any(ride.get("violations") or ride.get("not_recovered") for ride in rides)


def main() -> int:
    """Run what was asked for; parts that were not asked for keep their figures in the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40_000, help="histories to ride (0: none)")
    parser.add_argument("--aimed", type=int, default=2_000, help="histories with aimed faults (0: none)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--mutants", action="store_true", help="hunt every mutant")
    parser.add_argument("--limit", type=int, default=5_000, help="seeds to hunt a mutant with")
    options = parser.parse_args()
    known = RESULTS / "mirror_model.json"
    results: dict[str, Any] = json.loads(known.read_text()) if known.exists() else {}
    if options.seeds:
        results["histories"] = histories(options.first, options.seeds, options.jobs)
    if options.aimed:
        results["aimed"] = histories(options.first, options.aimed, options.jobs, aimed=True)
    if options.mutants:
        results["mutants"] = hunt_all(Mutant, hunt, options.limit, options.jobs)
    path = publish(
        "mirror_model", {name: results[name] for name in ("histories", "aimed", "mutants") if name in results}
    )
    show(results)
    print(f"\nwritten to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0 if passed(results) else 1


if __name__ == "__main__":
    sys.exit(main())
