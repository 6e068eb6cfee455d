# SPDX-License-Identifier: Apache-2.0
"""What the filter costs: nanoseconds a packet above a program that only drops, by BPF_PROG_TEST_RUN.

    sudo .venv/bin/python -m bench.filter [--rounds 60] [--repeat 20000]

Every path is run `repeat` times in a row, in rounds that go through all paths in turn, so that a slow moment of the
machine hits them all alike. A path's figure is the median, over all pairs, of its CPU time less that of the bare
program right before. The packet and the tables are hot in the cache, and the driver's own cost is not in it.
"Quiet" is the difference of the tenth percentiles: what is left when neighbours on the host disturb least. The bench
takes SCHED_FIFO for itself, so that other processes of this machine do not push it from its CPU in mid-run.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path as FilePath

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from bench.realtime import take_cpu
from bench.report import percentile, publish, table
from farmd.dataplane.kernel import Link, Program, load
from farmd.model.rules import Address, Affinity, Protocol, Rule
from tests.packet.rig import CLIENT4, CLIENT6, CLIENT_MAC, KEY, NODE4, NODE6, RULES, VIP4, VIP6, VIRTUAL_MAC, Rig
from tests.unit import farms

BARE = """
__attribute__((section("xdp.frags"), used)) int bare(void *ctx) { return 1; } // XDP_DROP
char licence[] __attribute__((section("license"), used)) = "GPL";
"""
GOALS = {"reject": 20.0, "accept": 25.0, "reject, 1000 rules": 45.0, "accept, 1000 rules": 45.0}
"""Nanoseconds above the bare program that a path may cost, by the beginning of its name."""


_PAIRS = 5
BENCH_RULES = (
    *RULES,
    Rule(7, "range4", farms.VIP4, Protocol.TCP, 8000, Affinity.CLIENT_NETWORK, 0, 8079),
    Rule(8, "range6", farms.VIP6, Protocol.TCP, 8000, Affinity.CLIENT_NETWORK, 0, 8079),
    Rule(9, "ids", farms.VIP4, Protocol.UDP, 5353, Affinity.PACKET_ID, 0),
)


@dataclass(frozen=True, slots=True)
class Path:
    """A frame, the state of all buckets, and what must come of it."""

    name: str
    frame: bytes
    state: str
    reason: str | None


def tcp(version: int, *, vip: str = "", port: int = 80, flags: str = "S", cport: int = 41000) -> bytes:
    """A segment to a VIP, or to the address `vip`."""
    ip = IP(src=CLIENT4, dst=vip or VIP4) if version == 4 else IPv6(src=CLIENT6, dst=vip or VIP6)
    return bytes(Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC) / ip / TCP(sport=cport, dport=port, flags=flags))


def udp(port: int) -> bytes:
    """A datagram to the IPv4 VIP."""
    ip = IP(src=CLIENT4, dst=VIP4, id=4711)
    return bytes(Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC) / ip / UDP(sport=41000, dport=port) / Raw(bytes(24)))


def common_paths(suffix: str = "", *, port: int = 80) -> list[Path]:
    """The paths that nearly all packets take, IPv4 and IPv6."""
    found = []
    for version, node in ((4, NODE4), (6, NODE6)):
        found += [
            Path(f"not for a VIP, v{version}{suffix}", tcp(version, vip=node, port=port), "own", None),
            Path(f"reject, v{version}{suffix}", tcp(version, port=port), "none", "drop-not-owner"),
            Path(f"accept, v{version}{suffix}", tcp(version, port=port), "own", "accept-own"),
        ]
    return found


def further_paths(cport: int) -> list[Path]:
    """Paths that fewer packets take. `cport`: the client's port of a connection that exists."""
    arp = bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src=CLIENT_MAC) / ARP(psrc=CLIENT4, pdst=VIP4, hwsrc=CLIENT_MAC))
    return [
        Path("accept, client-ip-port, v4", tcp(4, port=8080), "own", "accept-own"),
        Path("accept, client-ip-port, v6", tcp(6, port=8080), "own", "accept-own"),
        Path("accept, client-network, v4", tcp(4, port=8042), "own", "accept-own"),
        Path("accept, client-network, v6", tcp(6, port=8042), "own", "accept-own"),
        Path("accept, packet-id, v4", udp(5353), "own", "accept-own"),
        Path("drop without rule, v4", tcp(4, port=9), "own", "drop-no-rule"),
        Path("fresh, new connection, v4", tcp(4), "own+fresh", "accept-fresh-new"),
        Path("fresh, no socket, v4", tcp(4, flags="A"), "own+fresh", "drop-fresh-unknown"),
        Path("held, no socket, v4", tcp(4, flags="A"), "held", "drop-held-unknown"),
        Path("held, socket, v4", tcp(4, flags="A", cport=cport), "held", "accept-held-socket"),
        Path("ARP of another node", arp, "none", "arp-not-owner"),
    ]


def many_rules(*, ranges: bool = False) -> tuple[tuple[Address, ...], tuple[Rule, ...]]:
    """1000 rules on 250 VIPs, those that the frames are for among them; `ranges`: each of 37 ports."""
    vips = [ip_address(VIP4), ip_address(VIP6)]
    vips += [ip_address(f"10.77.1.{number}") for number in range(124)]
    vips += [ip_address(f"fd77::1:{number:x}") for number in range(124)]
    rules = [
        Rule(0, "", vip, Protocol.TCP, port, Affinity.CLIENT_IP, 0, port + 36 if ranges else None)
        for port in (80, 443, 8443, 9000)
        for vip in vips
    ]
    return tuple(vips), tuple(replace(rule, index=index, name=f"r{index}") for index, rule in enumerate(rules, 1))


class Bench:
    """Runs paths against the bare program and keeps every difference."""

    def __init__(self, rig: Rig, bare: Program, repeat: int) -> None:
        self._rig = rig
        self._bare = bare
        self._repeat = repeat
        self.bare_ns: list[float] = []
        self.cost_ns: dict[str, list[float]] = {}
        self.whole_ns: dict[str, list[tuple[float, float]]] = {}

    def round(self, paths: list[Path]) -> None:
        """Run each path once, between two runs of the bare program."""
        for path in paths:
            self._rig.state(path.state)
            told = self._rig.run(self._rig.filter.probe, path.frame)
            if told.reason != path.reason:
                raise SystemExit(f"{path.name}: expected {path.reason}, not {told.reason}")
            for _ in range(_PAIRS):
                bare = self._rig.run(self._time, self._bare, path.frame)
                cost = self._rig.run(self._time, self._rig.attached, path.frame) - bare
                self.bare_ns.append(bare)
                self.whole_ns.setdefault(path.name, []).append((bare, bare + cost))
                self.cost_ns.setdefault(path.name, []).append(cost)

    def quiet(self, name: str) -> float:
        """A path's cost when the machine was least disturbed: the tenth percentiles' difference."""
        bare, whole = zip(*self.whole_ns[name], strict=True)
        return percentile(whole, 10) - percentile(bare, 10)

    def _time(self, program: Program, frame: bytes) -> float:
        """Nanoseconds of one run, in CPU time: what other processes take of the machine does not count."""
        started = time.thread_time_ns()
        program.run_xdp(frame, self._rig.facts.ifindex, self._repeat)
        return (time.thread_time_ns() - started) / self._repeat


@contextmanager
def connected(rig: Rig) -> Iterator[int]:
    """A connection to the VIP on the node itself; the client's port."""
    for address in (VIP4, CLIENT4):
        rig.node.ip(f"addr replace {address}/32 dev lo")
    with ExitStack() as stack:
        listening = stack.enter_context(rig.run(socket.socket))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((VIP4, 80))
        listening.listen()
        client = stack.enter_context(rig.run(socket.socket))
        client.bind((CLIENT4, 0))
        client.connect((VIP4, 80))
        stack.enter_context(listening.accept()[0])
        yield client.getsockname()[1]


@contextmanager
def bare_program(rig: Rig) -> Iterator[Program]:
    """The program that everything is measured against.

    Attached as well, to a cable of its own: the kernel calls attached programs by a shorter way, and makes that way
    anew for every run of one that is not.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, binary = FilePath(folder) / "bare.c", FilePath(folder) / "bare.o"
        source.write_text(BARE)
        subprocess.run(["clang", "-O2", "-g", "-target", "bpf", "-c", source, "-o", binary], check=True)
        loaded = load(binary, {}, ("bare",))
    rig.node.ip("link add idle0 type veth peer name idle1")
    facts = rig.interface_facts("idle0")
    with rig.run(Link.create, loaded.programs["bare"], facts.ifindex, 0):
        yield loaded.programs["bare"]
    loaded.close()


def measure(rounds: int, repeat: int) -> Bench:
    """Run everything."""
    with Rig("bench") as rig, bare_program(rig) as bare:
        bench = Bench(rig, bare, repeat)
        with connected(rig) as cport:
            small, few = common_paths(), further_paths(cport)
            large = common_paths(", 1000 rules"), common_paths(", 1000 rules with ranges", port=99)
            tables = many_rules(), many_rules(ranges=True)
            for number in range(rounds):
                rig.run(rig.filter.configure, replace(rig.config, rules=BENCH_RULES), KEY, [rig.facts])
                bench.round(small + few)
                for paths, (vips, rules) in zip(large, tables, strict=True):
                    rig.run(rig.filter.configure, replace(rig.config, vips=vips, rules=rules), KEY, [rig.facts])
                    bench.round(paths)
                print(f"round {number + 1} of {rounds}", file=sys.stderr)
        return bench


def goal_of(name: str) -> float | None:
    """The goal for a path, if it has one."""
    head, *rest = name.split(", ")
    if rest and rest[0] not in ("v4", "v6"):
        return None
    return GOALS.get(f"{head}, 1000 rules" if "1000 rules" in name else head)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description="What the filter costs above a program that only drops.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=20_000)
    arguments = parser.parse_args()
    scheduling = take_cpu()
    bench = measure(arguments.rounds, arguments.repeat)
    rows, figures = [], {}
    for name, costs in bench.cost_ns.items():
        goal = goal_of(name)
        median, quiet = statistics.median(costs), bench.quiet(name)
        reached = "" if goal is None else "yes" if median <= goal else "NO"
        rows.append((name, f"{median:.1f}", f"{quiet:.1f}", goal if goal is not None else "", reached))
        figures[name] = {"median_ns": round(median, 1), "quiet_ns": round(quiet, 1), "goal_ns": goal}
    bare = statistics.median(bench.bare_ns)
    print(table(("path", "median ns", "quiet ns", "goal", "reached"), rows))
    print(f"above a bare XDP_DROP program, which takes {bare:.1f} ns a run here (median of {len(bench.bare_ns)})")
    data = {"bare_drop_ns": round(bare, 1), "rounds": arguments.rounds, "repeat": arguments.repeat}
    path = publish("filter", data | {"pairs": len(bench.bare_ns), "scheduling": scheduling, "paths": figures})
    print(f"written: {path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
