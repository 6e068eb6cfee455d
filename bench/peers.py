# SPDX-License-Identifier: Apache-2.0
"""What a packet costs a node from the cable to the verdict, beside what else Linux has for the same job.

    sudo .venv/bin/python -m bench.peers [--rounds 40] [--frames 50000]

Five nodes stand at once, each on a cable of its own: one that drops everything in XDP, one that decides nothing, and a
farm's first of three nodes by farmd, by nftables' `jhash` at the ingress hook, and by the iptables `cluster` match with
connection tracking. Live frames from 65,536 random clients go to one after another in rounds, all on one CPU, so sender
and receiver take turns and the time of a frame is that of both. Clients are chosen for each node: only those that it
has to refuse, or only its own. What it costs to refuse is taken above the node that drops in XDP, and what it costs to
let through above the node that decides nothing, each time over the run right before.

After every run the node's INPUT hook must have seen all packets of its own clients, and none of the others.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bench import deciders
from bench.deciders import MAC, NODES, VIP, Decider, passed
from bench.live import CLIENTS, Sender, packed
from bench.realtime import stay_on_one_cpu, take_cpu
from bench.report import percentile, publish, table
from farmd.lab.netns import require_tools
from tests.unit.namespaces import Namespace

AIMS = {"nftables jhash": 8.0, "iptables cluster": 15.0}
"""How many times what farmd takes to refuse a packet the others shall take at least."""
_PAUSE_S = 0.005
"""Between runs: the kernel takes the CPU from a real-time process that never rests."""
_FIRST, _LAST = int(IPv4Address("11.0.0.0")), int(IPv4Address("126.255.255.255"))


@dataclass(frozen=True, slots=True)
class Load:
    """Frames of one kind, for the clients that a node owns or for those that it does not."""

    name: str
    flags: str
    own: bool

    @property
    def frame(self) -> bytes:
        """A frame of the least size; the sender fills the client in."""
        ip = IP(src="0.0.0.0", dst=str(VIP)) / TCP(sport=41000, dport=80, seq=1, ack=1, flags=self.flags)
        return bytes(Ether(src="02:00:00:00:02:01", dst=MAC) / ip).ljust(60, b"\0")


LOADS = (
    Load("refuse, connection of another node", "A", own=False),
    Load("refuse, new client", "S", own=False),
    Load("let through, new client", "S", own=True),
)


@dataclass(slots=True)
class Series:
    """What runs gave, in nanoseconds a packet."""

    whole: list[int] = field(default_factory=list)
    base: list[int] = field(default_factory=list)

    def add(self, base: int, whole: int) -> None:
        """One run, and the run of the base right before it."""
        self.base.append(base)
        self.whole.append(whole)

    @property
    def cost(self) -> float:
        """Median of what a packet took more than with the base."""
        return statistics.median(whole - base for whole, base in zip(self.whole, self.base, strict=True))

    @property
    def quiet(self) -> float:
        """The same when neighbours on the host disturbed least: the tenth percentiles' difference."""
        return percentile(self.whole, 10) - percentile(self.base, 10)


Results = dict[str, dict[str, Series]]
"""By load, then by node."""


def choose(owns: Callable[[IPv4Address], bool], *, own: bool, seed: int = 1) -> bytes:
    """CLIENTS random clients that a node owns, or that it does not own."""
    draw = random.Random(seed)
    found: list[int] = []
    while len(found) < CLIENTS:
        client = draw.randint(_FIRST, _LAST)
        if owns(IPv4Address(client)) is own:
            found.append(client)
    return packed(found)


class Bench:
    """The nodes, and one sender for all."""

    def __init__(self, stack: ExitStack) -> None:
        self._sender = stack.enter_context(Sender())
        self._hub = stack.enter_context(Namespace())
        self.bare_drop = stack.enter_context(deciders.bare_drop(self._sender, self._hub))
        self.bare_stack = stack.enter_context(deciders.bare_stack(self._hub))
        make = (deciders.farmd, deciders.nftables, deciders.cluster_match)
        self.nodes = [stack.enter_context(one(self._hub)) for one in make]
        self._clients = {
            (node.name, own): choose(node.owns, own=own)
            for node in self.nodes
            if node.owns is not None
            for own in (True, False)
        }

    def round(self, frames: int, results: Results) -> None:
        """Every load to every node once, each after a run to the base."""
        for load in LOADS:
            base = self.bare_stack if load.own else self.bare_drop
            for node in self.nodes:
                clients = self._clients[node.name, load.own]
                before = self.send(base, load, clients, frames)
                took = self.send(node, load, clients, frames)
                results.setdefault(load.name, {}).setdefault(node.name, Series()).add(before, took)

    def send(self, node: Decider, load: Load, clients: bytes, frames: int) -> int:
        """One run; nanoseconds a packet. SystemExit if the node did not decide as it must."""
        time.sleep(_PAUSE_S)
        took = self._hub.run(self._sender.send, node.ifindex, load.frame, clients, frames)
        wanted, saw = frames if load.own else 0, passed(node)
        if saw != wanted:
            raise SystemExit(f"{node.name}, {load.name}: {saw} of {frames} packets went up, not {wanted}")
        return took


def measure(rounds: int, frames: int) -> Results:
    """Run everything."""
    results: Results = {}
    with ExitStack() as stack:
        bench = Bench(stack)
        for number in range(rounds):
            bench.round(frames, results)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return results


def times_farmd(series: dict[str, Series], name: str) -> float:
    """How many times farmd's cost a node's cost is."""
    return series[name].cost / series["farmd"].cost


def main() -> int:
    """Measure, print a table, write the JSON; 1 if an aim was missed."""
    parser = argparse.ArgumentParser(description="What a packet costs a node, beside nftables and the cluster match.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--frames", type=int, default=50_000)
    arguments = parser.parse_args()
    require_tools({"iptables-legacy": "iptables", "ethtool": "ethtool"})
    scheduling, cpu = take_cpu(), stay_on_one_cpu()
    results = measure(arguments.rounds, arguments.frames)
    rows, missed = [], False
    figures: dict[str, dict[str, dict[str, float | None]]] = {}
    for load, series in results.items():
        refused = not next(one for one in LOADS if one.name == load).own
        for name, one in series.items():
            ratio, aim = times_farmd(series, name), AIMS.get(name) if refused else None
            missed |= aim is not None and ratio < aim
            reached = "" if aim is None else f"at least {aim:.0f}: {'yes' if ratio >= aim else 'NO'}"
            whole = statistics.median(one.whole)
            rows.append((load, name, f"{whole:.0f}", f"{one.cost:.1f}", f"{one.quiet:.1f}", f"{ratio:.1f}", reached))
            figures.setdefault(load, {})[name] = {
                "whole_ns": round(whole, 1),
                "base_ns": round(statistics.median(one.base), 1),
                "cost_ns": round(one.cost, 1),
                "quiet_ns": round(one.quiet, 1),
                "times_farmd": round(ratio, 2),
                "aim": aim,
            }
    print(table(("packets", "node", "whole ns", "cost ns", "quiet ns", "times farmd", "aim"), rows))
    print("cost: above dropping everything in XDP (refuse), above deciding nothing (let through); sender not in it")
    facts = {"rounds": arguments.rounds, "frames": arguments.frames, "clients": CLIENTS, "nodes": NODES}
    path = publish("peers", facts | {"scheduling": scheduling, "cpu": cpu, "packets": figures})
    print(f"written: {path.relative_to(path.parents[2])}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
