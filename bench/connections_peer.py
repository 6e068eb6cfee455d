# SPDX-License-Identifier: Apache-2.0
"""How many of 10,000 established connections planned changes reset: farmd, and the iptables `cluster` match.

    sudo .venv/bin/python -m bench.connections_peer [--connections 1700]

Six changes of a farm of three, each under as many new connections from 24 client addresses, which ask once a second; in
labs of the same hosts, switch and web servers. The cluster match gets its new `total_nodes` and `node_mask` as
administrators give them: a drained node's slot goes to a neighbour, leave and join change the number of slots, weights
1 : 2 : 2 are five slots. It runs by three recipes, see bench/clusterlab.py.

`reset` are connections that ended; `silent` are requests without an answer for a second, as when no node feels
responsible. Connections of a node that leaves end with it and are not counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bench.clusterlab import RECIPES, ClusterLab, Recipe
from bench.connections import NODES, Change, changes, watch
from bench.report import publish, table
from farmd.lab import netns
from farmd.lab.connections import Connections
from farmd.lab.farm import Farm
from farmd.lab.lab import Lab
from farmd.lab.plan import LabPlan

_PERIOD_S = 1.0
_WATCH_S = 3.0
_OPEN_S = 60.0
Costs = dict[str, dict[str, Any]]
"""By change, what `bench.connections.watch` says."""


def cluster_changes(lab: ClusterLab, recipe: Recipe) -> dict[str, Change]:
    """The changes of `bench.connections.changes`, as an administrator of cluster-match nodes makes them."""
    one, two, three = NODES

    def to(total: int, slots: Mapping[str, tuple[int, ...]]) -> Callable[[], None]:
        return lambda: lab.share(recipe, total, slots)

    def leave() -> None:
        lab.share(recipe, 2, {one: (1,), two: (2,)})
        lab.stop_service(three)

    def join() -> None:
        lab.start(three)
        lab.share(recipe, 3, equal)

    equal = {one: (1,), two: (2,), three: (3,)}
    return {
        "drain": Change(to(3, {one: (1, 2), three: (3,)})),
        "rejoin": Change(to(3, equal)),
        "re-weight 100 to 50": Change(to(5, {one: (1,), two: (2, 3), three: (4, 5)})),
        "re-weight 50 to 100": Change(to(3, equal)),
        "leave": Change(leave, leaver=three),
        "join": Change(join),
    }


def by_farmd(connections: int) -> Costs:
    """What the changes cost with farmd."""
    lab = Lab(LabPlan(f"p{os.getpid() % 10**6}"))
    try:
        lab.up()
        farm = Farm(lab)
        farm.wait_serving(NODES, seconds=60)
        return campaign(lab.plan, connections, changes(farm), "farmd")
    finally:
        lab.down()


def by_match(connections: int, recipe: Recipe) -> Costs:
    """What the changes cost with the cluster match."""
    lab = ClusterLab(LabPlan(f"p{os.getpid() % 10**6}"))
    try:
        lab.up()
        lab.prepare(recipe)
        return campaign(lab.plan, connections, cluster_changes(lab, recipe), recipe.name)
    finally:
        lab.down()


def campaign(plan: LabPlan, connections: int, planned: dict[str, Change], who: str) -> Costs:
    """Every change once, each under new connections."""
    costs: Costs = {}
    for name, change in planned.items():
        opened = Connections(plan, connections, period_s=_PERIOD_S)
        try:
            opened.open(seconds=_OPEN_S)
            costs[name] = watch(opened, change, _WATCH_S)
        finally:
            opened.close()
        print(f"{who}, {name}: {costs[name]}", file=sys.stderr)
    return costs


def per_10_000(costs: Costs, what: str, connections: int) -> float:
    """A count over all changes, for 10,000 connections."""
    total: int = sum(cost[what] for cost in costs.values())
    return total * 10_000 / (connections * len(costs))


def main() -> int:
    """Run the bench; 0 if farmd reset nothing."""
    parser = argparse.ArgumentParser(description="Connections reset by planned changes: farmd and the cluster match")
    parser.add_argument("--connections", type=int, default=1700, help="under each of the six changes")
    arguments = parser.parse_args()
    many = arguments.connections
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(8192, 2 * many), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    netns.require_tools({"iptables-legacy-restore": "iptables"})
    runs: dict[str, Callable[[], Costs]] = {"farmd": lambda: by_farmd(many)}
    runs |= {recipe.name: lambda recipe=recipe: by_match(many, recipe) for recipe in RECIPES}  # type: ignore[misc]
    results = {name: run() for name, run in runs.items()}
    rows = [
        (who, change, many, cost["lost"], cost["stalls"], cost["astray"])
        for who, costs in results.items()
        for change, cost in costs.items()
    ]
    print(table(("who", "change", "connections", "reset", "silent", "astray"), rows))
    rates = {
        who: {"reset": round(per_10_000(costs, "lost", many), 1), "silent": round(per_10_000(costs, "stalls", many), 1)}
        for who, costs in results.items()
    }
    print(
        table(("of 10,000", "reset", "silent"), [(who, rate["reset"], rate["silent"]) for who, rate in rates.items()])
    )
    path = publish("connections_peer", {"connections": many, "per_10_000": rates, "runs": results})
    print(f"written: {path.relative_to(path.parents[2])}")
    return 1 if rates["farmd"]["reset"] or any(cost["astray"] for cost in results["farmd"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
