# SPDX-License-Identifier: Apache-2.0
"""How fast a view reaches the kernel, and how even the shares and the spread of clients are.

    sudo .venv/bin/python -m bench.rewrite [--rounds 200] [--clients 100000]

Rewrite: a node of a farm of 8 with 16 groups, each with weights and an owner map of its own, takes over the share of a
node that died and gives it back. A node does it in the steps of rule 5 and 6 in farmd/membership/core.py: `release`
what the view that was decided does not give it, which begins with reading its shares out of the view, and once the view
has started `open` all that it gives. Both end in the mapped memory that the loaded filter reads; like the engine, they
write the groups that change: when a node died, there is nothing to release.

Imbalance: bucket counts against exact shares, over every number of nodes and random weights, after joins and leaves.
Spread: random clients of both families by the C hash of the filter, against the 8 nodes' buckets.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import Counter
from ipaddress import IPv4Address, IPv6Address

from bench.realtime import take_cpu
from bench.report import percentile, publish, table
from farmd.dataplane.hash import bucket_of
from farmd.dataplane.planes import KernelPlanes, plane_of
from farmd.model.buckets import BUCKETS, NO_OWNERS, assign
from farmd.model.nodes import MAX_NODES, BootId, NodeId
from farmd.model.planes import CLOSED, Planes, acquire, release
from farmd.model.rules import MAX_GROUPS, Affinity
from farmd.model.view import Ballot, View, successor, weights_table
from tests.packet.rig import KEY, Rig

NODES = tuple(NodeId(number) for number in range(8))
ME, DEAD = NODES[0], NODES[7]
EVENTS, STEPS = ("a node died", "it came back"), ("release", "open")
REWRITE_GOAL_US = 200.0
IMBALANCE_GOAL = 1.0
SPREAD_GOAL_PERCENT = 3.0


def first_view(draw: random.Random) -> View:
    """Eight nodes, every group with weights of its own."""
    weights = tuple(weights_table({node: draw.randint(50, 100) for node in NODES}) for _ in range(MAX_GROUPS))
    nothing = View(Ballot(0, ME, BootId(0)), frozenset(), frozenset(), weights, (NO_OWNERS,) * MAX_GROUPS)
    return successor(nothing, Ballot(1, ME, BootId(1)), frozenset(NODES))


class Node:
    """What the engine does with its planes when the view changes, to a real filter."""

    def __init__(self, control: KernelPlanes, view: View) -> None:
        self._control = control
        self.view = view
        self.planes: tuple[Planes, ...] = (CLOSED,) * MAX_GROUPS
        self.shares = view.shares(ME, plane_of)
        self.open()

    def release(self, view: View) -> None:
        """A view is decided: close what it does not give us."""
        self.view = view
        self.shares = view.shares(ME, plane_of)
        self._write(tuple(release(planes, share) for planes, share in zip(self.planes, self.shares, strict=True)))

    def open(self) -> None:
        """The view has started: open what it gives us, all of it contested."""
        self._write(
            tuple(acquire(planes, share, share) for planes, share in zip(self.planes, self.shares, strict=True))
        )

    def _write(self, planes: tuple[Planes, ...]) -> None:
        for group, wanted in enumerate(planes):
            if wanted != self.planes[group]:
                self._control.write(group, wanted)
        self.planes = planes

    def check(self) -> None:
        """SystemExit unless the filter has what the view gives us."""
        for group, share in enumerate(self.view.shares(ME)):
            if self._control.read(group).own != share:
                raise SystemExit(f"group {group}: the filter does not have our share")


def rewrites(rounds: int) -> dict[str, list[float]]:
    """Microseconds of each step, for a node that dies and one that comes back in turn."""
    taken: dict[str, list[float]] = {f"{event}: {step}": [] for event in EVENTS for step in STEPS}
    with Rig("rewrite") as rig:
        whole = first_view(random.Random(1))
        without = successor(whole, Ballot(2, ME, BootId(1)), frozenset(NODES) - {DEAD})
        node = Node(rig.control, whole)
        for number in range(2 * rounds):
            view = whole if number % 2 else without
            time.sleep(0.002)  # an engine sleeps before it works
            began = time.perf_counter_ns()
            node.release(view)
            released = time.perf_counter_ns()
            node.open()
            opened = time.perf_counter_ns()
            event = EVENTS[number % 2]
            taken[f"{event}: release"].append((released - began) / 1e3)
            taken[f"{event}: open"].append((opened - released) / 1e3)
            node.check()
    return taken


def imbalance(draw: random.Random) -> float:
    """The most that a node's count is from its exact share, in buckets, ever."""
    worst = 0.0
    for weighted in (False, True):
        owners = NO_OWNERS
        up = list(range(1, MAX_NODES + 1))
        for count in up + up[::-1] + draw.sample(up, 20):
            weights = {NodeId(node): draw.randint(1, 255) if weighted else 100 for node in range(count)}
            owners = assign(owners, weights)
            total = sum(weights.values())
            worst = max(worst, *(abs(owners.count(node) - BUCKETS * weights[node] / total) for node in weights))
    return worst


def clients_off(draw: random.Random, version: int, affinity: Affinity, clients: int) -> float:
    """By how many percent the farthest of 8 nodes is from an eighth of random clients."""
    owners = assign(NO_OWNERS, dict.fromkeys(NODES, 100))
    served: Counter[int] = Counter()
    for _ in range(clients):
        client = IPv4Address(draw.getrandbits(32)) if version == 4 else IPv6Address(draw.getrandbits(128))
        served[owners[bucket_of(KEY, affinity, client, draw.randint(1024, 65535))]] += 1
    fair = clients / len(NODES)
    return max(abs(served[node] - fair) / fair * 100 for node in NODES)


def main() -> int:
    """Measure, print a table, write the JSON; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description="How fast a view reaches the kernel, and how even it is.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=100_000)
    arguments = parser.parse_args()
    draw = random.Random(1)
    figures: dict[str, tuple[float, float | None]] = {}
    figures[f"imbalance, 1 to {MAX_NODES} nodes, buckets"] = (imbalance(draw), IMBALANCE_GOAL)
    for version in (4, 6):
        off = clients_off(draw, version, Affinity.CLIENT_IP, arguments.clients)
        figures[f"spread, {arguments.clients} IPv{version} clients, %"] = (off, SPREAD_GOAL_PERCENT)
    scheduling = take_cpu()
    taken = rewrites(arguments.rounds)
    for step, series in taken.items():
        figures[f"rewrite, {step}, {MAX_GROUPS} groups, us"] = (statistics.median(series), REWRITE_GOAL_US)
    rows = [(name, f"{value:.2f}", goal or "", reached(value, goal)) for name, (value, goal) in figures.items()]
    print(table(("what", "measured", "goal", "reached"), rows))
    spread = {
        step: {f"p{rank}": round(percentile(series, rank), 1) for rank in (10, 50, 99)}
        for step, series in taken.items()
    }
    print(f"rewrite in us, of {arguments.rounds} each: {spread}")
    named = {name: {"value": round(value, 3), "goal": goal} for name, (value, goal) in figures.items()}
    path = publish("rewrite", {"scheduling": scheduling, "figures": named, "rewrite_us": spread})
    print(f"written: {path.relative_to(path.parents[2])}")
    return 1 if "NO" in (row[-1] for row in rows) else 0


def reached(value: float, goal: float | None) -> str:
    """For the table."""
    return "" if goal is None else "yes" if value <= goal else "NO"


if __name__ == "__main__":
    sys.exit(main())
