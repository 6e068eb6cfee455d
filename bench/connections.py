# SPDX-License-Identifier: Apache-2.0
"""How many established connections planned changes reset.

    python -m bench.connections [--connections 200] [--rounds 3] [--plain-swap | --kept]

Drain, rejoin and re-weight of a farm of three under long-lived connections that ask every 200 ms; once as farmd moves
buckets, once with `--plain-swap`: the bitmaps are simply replaced, as filters without `held` and `fresh` do it. Without
either option both run, and a farm of each kind stands beside the other in the table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.report import publish, table
from farmd.lab.connections import Connections
from farmd.lab.farm import Farm
from farmd.lab.lab import Lab
from farmd.lab.observer import Observer
from farmd.lab.plan import LabPlan
from farmd.model.buckets import BUCKETS

_WATCH_S = 2.0
"""Ten requests on each connection after the change."""
NODES = ("node1", "node2", "node3")


def main() -> int:
    """Run the bench; 0 if nothing was reset where nothing may be."""
    parser = argparse.ArgumentParser(description="Established connections reset by planned changes")
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plain-swap", action="store_true", help="only with planes that are simply replaced")
    only.add_argument("--kept", action="store_true", help="only as farmd does it")
    arguments = parser.parse_args()
    kinds = [False] * (not arguments.plain_swap) + [True] * (not arguments.kept)
    runs = {_kind(plain): campaign(arguments.connections, arguments.rounds, plain_swap=plain) for plain in kinds}
    headers = ("planes", "change", "connections", "lost (median)", "lost (worst)", "astray", "buckets moved")
    rows = [
        (kind, change, arguments.connections, *_figures(one))
        for kind, run in runs.items()
        for change, one in run.items()
    ]
    print(table(headers, rows))
    print(f"written to {publish('connections', {'connections': arguments.connections, 'runs': runs})}")
    kept = runs.get(_kind(False), {})
    return 1 if any(one["lost"] or one["astray"] for change in kept.values() for one in change) else 0


def campaign(connections: int, rounds: int, *, plain_swap: bool) -> dict[str, list[dict[str, Any]]]:
    """Every change `rounds` times; the losses of each."""
    lab = Lab(LabPlan(f"b{os.getpid() % 10**6}", plain_swap=plain_swap))
    results: dict[str, list[dict[str, Any]]] = {}
    try:
        lab.up()
        farm = Farm(lab)
        farm.wait_serving(NODES, seconds=60)
        with Observer(lab.plan) as observer:
            for _ in range(rounds):
                for change, (act, done) in _changes(farm).items():
                    # New connections for each change: those that a plain swap broke have moved to other nodes.
                    with Connections(lab.plan, connections) as opened:
                        results.setdefault(change, []).append(measure(farm, opened, act, done))
                    print(f"{_kind(plain_swap)}, {change}: {results[change][-1]}", file=sys.stderr)
            doubles = observer.observation().doubles
            if doubles:
                print(f"{doubles} SYNs were answered twice", file=sys.stderr)
    finally:
        lab.down()
    return results


def measure(farm: Farm, opened: Connections, act: Callable[[], object], done: Callable[[], bool]) -> dict[str, Any]:
    """Make one change under `opened` and say what it cost."""
    before, owners = opened.tally(), farm.buckets("node1")
    act()
    farm.wait("the change is made", done)
    time.sleep(_WATCH_S)
    tally, after = opened.tally().since(before), farm.buckets("node1")
    moved = sum(max(0, after[node] - owners[node]) for node in NODES)
    return {
        "lost": tally.lost,
        "resets": sum(tally.resets.values()),
        "astray": tally.strays,
        "stalls": tally.stalls,
        "requests": tally.requests,
        "buckets_moved": moved,
    }


def _changes(farm: Farm) -> dict[str, tuple[Callable[[], object], Callable[[], bool]]]:
    api = farm.lab.api("node1")

    def has(node: str, buckets: int) -> Callable[[], bool]:
        return lambda: abs(farm.buckets("node1")[node] - buckets) <= 1

    third, fifth = BUCKETS // 3, BUCKETS // 5
    return {
        "drain": (lambda: api.drain("node2"), has("node2", 0)),
        "rejoin": (lambda: api.ready("node2"), has("node2", third)),
        "re-weight 100 to 50": (lambda: api.set_weight("node1", 50), has("node1", fifth)),
        "re-weight 50 to 100": (lambda: api.set_weight("node1", 100), has("node1", third)),
    }


def _figures(results: list[dict[str, Any]]) -> tuple[float, int, int, int]:
    lost = [one["lost"] for one in results]
    astray = sum(one["astray"] for one in results)
    return statistics.median(lost), max(lost), astray, max(one["buckets_moved"] for one in results)


def _kind(plain_swap: bool) -> str:
    return "plain swap" if plain_swap else "held and fresh"


if __name__ == "__main__":
    sys.exit(main())
