# SPDX-License-Identifier: Apache-2.0
"""How many established connections planned changes reset.

    python -m bench.connections [--connections 200] [--rounds 3] [--plain-swap | --kept]

Drain, rejoin, re-weight, leave and join of a farm of three under long-lived connections that ask every 200 ms; once as
farmd moves buckets, once with `--plain-swap`: the bitmaps are simply replaced, as filters without `held` and `fresh` do
it. Without either option both run, and a farm of each kind stands beside the other in the table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Change:
    """A planned change: `make` returns when it is made. `leaver`: the node that stops with it, if one does."""

    make: Callable[[], None]
    leaver: str = ""


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
                for name, change in changes(farm).items():
                    # New connections for each change: those that a plain swap broke have moved to other nodes.
                    with Connections(lab.plan, connections) as opened:
                        results.setdefault(name, []).append(measure(farm, opened, change))
                    print(f"{_kind(plain_swap)}, {name}: {results[name][-1]}", file=sys.stderr)
            doubles = observer.observation().doubles
            if doubles:
                print(f"{doubles} SYNs were answered twice", file=sys.stderr)
    finally:
        lab.down()
    return results


def measure(farm: Farm, opened: Connections, change: Change) -> dict[str, Any]:
    """Make one change under `opened` and say what it cost."""
    owners = farm.buckets("node1")
    cost = watch(opened, change, _WATCH_S)
    after = farm.buckets("node1")
    moved = sum(max(0, after.get(node, 0) - owners.get(node, 0)) for node in NODES)
    return cost | {"buckets_moved": moved}


def watch(opened: Connections, change: Change, seconds: float) -> dict[str, Any]:
    """Make one change under `opened`, go on for some seconds, and say what became of the connections.

    `lost` and `resets` leave out those of a node that left: it stops, and they end with it. `stalls` are requests that
    were not answered within a second.
    """
    before = opened.tally()
    change.make()
    time.sleep(seconds)
    tally = opened.tally().since(before)
    return {
        "lost": tally.lost_except(change.leaver),
        "resets": sum(count for node, count in tally.resets.items() if node != change.leaver),
        "of_the_leaver": tally.lost - tally.lost_except(change.leaver),
        "astray": tally.strays,
        "stalls": tally.stalls,
        "requests": tally.requests,
    }


def changes(farm: Farm) -> dict[str, Change]:
    """Every planned change of a farm of three, in an order that ends where it began."""
    api = farm.lab.api("node1")

    def until(node: str, buckets: int, act: Callable[[], object], leaver: str = "") -> Change:
        def make() -> None:
            act()
            farm.wait(f"{node} has {buckets} buckets", lambda: abs(farm.buckets("node1").get(node, 0) - buckets) <= 1)

        return Change(make, leaver)

    third, fifth = BUCKETS // 3, BUCKETS // 5
    return {
        "drain": until("node2", 0, lambda: api.drain("node2")),
        "rejoin": until("node2", third, lambda: api.ready("node2")),
        "re-weight 100 to 50": until("node1", fifth, lambda: api.set_weight("node1", 50)),
        "re-weight 50 to 100": until("node1", third, lambda: api.set_weight("node1", 100)),
        "leave": until("node3", 0, lambda: farm.lab.api("node3").leave(), leaver="node3"),
        "join": until("node3", third, lambda: farm.lab.start("node3")),
    }


def _figures(results: list[dict[str, Any]]) -> tuple[float, int, int, int]:
    lost = [one["lost"] for one in results]
    astray = sum(one["astray"] for one in results)
    return statistics.median(lost), max(lost), astray, max(one["buckets_moved"] for one in results)


def _kind(plain_swap: bool) -> str:
    return "plain swap" if plain_swap else "held and fresh"


if __name__ == "__main__":
    sys.exit(main())
