# SPDX-License-Identifier: Apache-2.0
"""The filter against its oracle, frame by frame: verdict, reason, rule, group, bucket, and every byte that leaves.

`python -m tests.native.campaign --packets 10000000` is the long form. Same seed, same frames, on any machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.native.build import Kind, build
from tests.native.judge import Judge
from tests.native.oracle import FRESH, HELD, OWN, SEND_ON, Arrival, Oracle, Told
from tests.native.packets import Generator
from tests.native.worlds import NODES, WORLDS

BATCH = 2500
STATES = (0, OWN, OWN | FRESH, HELD)
DIRECTED_STATES = (SEND_ON, OWN, OWN | FRESH | SEND_ON, HELD | SEND_ON)
TAKERS = (0, 1, 1, 2, 2, 3, 3, 4, 255)
"""Who may take a bucket: ourselves, three nodes, one whose address is not known, nobody."""
SHOWN = 5
"""Differences that are shown in full."""


@dataclass(slots=True)
class Tally:
    """What a campaign found."""

    packets: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    buckets: set[tuple[int, int]] = field(default_factory=set)
    """(group, bucket) that were asked."""
    differences: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take another tally in."""
        self.packets += other.packets
        self.reasons += other.reasons
        self.buckets |= other.buckets
        self.differences += other.differences
        self.examples = (self.examples + other.examples)[:SHOWN]

    def differ(self, batch: int, arrival: Arrival, expected: Told, told: Told) -> None:
        """Note a difference."""
        kind = f"expected {expected.reason} rule {expected.rule}, told {told.reason} rule {told.rule}"
        if self.differences[kind] == 0 and len(self.examples) < SHOWN:
            self.examples.append(f"batch {batch}: {arrival}\n  expected {expected}\n  told     {told}")
        self.differences[kind] += 1


def run_batch(program: Path, seed: int, batch: int) -> Tally:
    """One batch: a farm, planes, a lease, `BATCH` frames."""
    rng = random.Random(f"{seed}/{batch}")
    world = WORLDS[batch % len(WORLDS)]
    oracle, generator, tally = Oracle(world), Generator(world, f"{seed}/{batch}/frames"), Tally()
    possible = DIRECTED_STATES if world.directed else STATES
    oracle.planes = [bytes(rng.choices(possible, k=4096)) for _ in range(16)]
    oracle.routes = [(bytes(rng.choices(TAKERS, k=4096)), bytes(rng.choices(TAKERS, k=4096))) for _ in range(16)]
    oracle.open = batch % 30 != 7 and batch % 10 != 9
    arrivals = [generator.arrival() for _ in range(BATCH)]
    with Judge(program) as judge:
        judge.configure(world.table)
        for group, states in enumerate(oracle.planes):
            judge.planes(group, states)
        judge.macs(NODES)
        for group, (owners, following) in enumerate(oracle.routes):
            judge.routes(group, owners, following)
        judge.lease(oracle.open)
        answers = judge.judge(arrivals)
    for arrival, told in zip(arrivals, answers, strict=True):
        expected = oracle.judge(arrival)
        tally.reasons[expected.reason or "not-vip"] += 1
        tally.buckets.add((expected.group, expected.bucket))
        if expected != told:
            tally.differ(batch, arrival, expected, told)
    tally.packets = len(arrivals)
    return tally


def campaign(program: Path, packets: int, *, seed: int = 1, processes: int = 1, chatty: bool = False) -> Tally:
    """At least so many frames."""
    total, batches, began = Tally(), -(-packets // BATCH), time.monotonic()
    with multiprocessing.Pool(processes) as pool:
        for done, tally in enumerate(pool.imap_unordered(partial(run_batch, program, seed), range(batches)), 1):
            total.add(tally)
            if chatty and done % max(1, batches // 20) == 0:
                rate = total.packets / (time.monotonic() - began)
                print(f"{total.packets:>11,} packets, {rate:,.0f} a second, {total.differences.total()} differences")
    return total


def report(tally: Tally) -> str:
    """The tally as text."""
    lines = [f"{tally.packets:,} packets compared, {len(tally.buckets):,} buckets asked"]
    lines += [f"  {count:>10,}  {reason}" for reason, count in tally.reasons.most_common()]
    lines += [f"differences: {tally.differences.total():,}"]
    lines += [f"  {count:>10,}  {kind}" for kind, count in tally.differences.most_common(20)]
    return "\n".join([*lines, *tally.examples])


def main() -> int:
    """Run a campaign; 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kind", type=Kind, default=Kind.JUDGE, choices=[Kind.JUDGE, Kind.JUDGE_MEMORY])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "judge"  # a copy: others may build while this runs
        shutil.copy(build(chosen.kind), program)
        tally = campaign(program, chosen.packets, seed=chosen.seed, processes=chosen.processes, chatty=True)
    print(report(tally))
    return bool(tally.differences)


if __name__ == "__main__":
    sys.exit(main())
