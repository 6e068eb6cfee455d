# SPDX-License-Identifier: Apache-2.0
"""The trace on real nodes: what one client's packets met on two nodes at once, and what the kernel did about them."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from farmd.lab import netns
from farmd.lab.farm import Farm
from farmd.lab.plan import PORT_BY_ADDRESS, VIP, VIRTUAL_MAC
from tests.lab.conftest import MakeFarm
from tests.lab.traffic import curl

pytestmark = [pytest.mark.root, pytest.mark.lab]

CLIENT = "10.77.0.201"
SECONDS = 10
"""Long enough for everything that a test does; each ends its traces itself."""


@dataclass
class Trace:
    """A running `farmctl trace --json`; `events` are complete once it has ended."""

    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)

    def take(self, last: str = "") -> list[dict[str, Any]]:
        """Read up to the first event of type `last`, or to the end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["type"] == last:
                break
        return self.events

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


@contextmanager
def traces(farm: Farm, *nodes: str, options: tuple[str, ...] = ()) -> Iterator[list[Trace]]:
    """Traces that have begun; at the end of the block they have run their time and every event is read."""
    started = []
    for node in nodes:
        config = farm.lab.plan.home(farm.lab.plan.host(node)) / "farm.toml"
        argv = [sys.executable, "-m", "farmd.cli", "trace", "--json", "--config", str(config), "--for", str(SECONDS)]
        command = farm.lab.command(node, [*argv, *(option.format(node=node) for option in options)])
        started.append(Trace(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)))
    try:
        for trace in started:
            assert trace.take("start"), trace.process.stderr and trace.process.stderr.read()
        yield started
        for trace in started:
            trace.take()
            assert trace.process.wait(30) == 0
    finally:
        for trace in started:
            trace.process.kill()
            trace.process.communicate()


def owner_of(farm: Farm) -> str:
    owner = farm.lab.api("node1").explain(CLIENT, None, str(VIP), PORT_BY_ADDRESS, "tcp").data["owner"]
    assert owner is not None
    return owner


def test_the_same_client_is_accepted_on_one_node_and_dropped_on_another(calm_farm: Farm, tmp_path: Path) -> None:
    owner = owner_of(calm_farm)
    other = "node2" if owner == "node1" else "node1"
    options = ("--pcap", f"{tmp_path}/{{node}}.pcap", "--client", f"{CLIENT}/32")
    with traces(calm_farm, owner, other, options=options) as (here, there):
        assert curl(calm_farm, "client1", f"http://{VIP}/")[1] == owner
        curl(calm_farm, "client2", f"http://{VIP}/")

    assert {event["client"] for event in here.of("verdict") + there.of("verdict")} == {CLIENT}
    syns = [[event for event in trace.of("verdict") if event["flags"] == "SYN"] for trace in (here, there)]
    assert [len(found) for found in syns] == [1, 1]
    (accepted,), (dropped,) = syns
    assert (accepted["verdict"], accepted["reason"]) == ("pass", "accept-own")
    assert (dropped["verdict"], dropped["reason"]) == ("drop", "drop-not-owner")
    for event in (accepted, dropped):
        assert (event["vip"], event["vport"], event["protocol"], event["rule"]) == (str(VIP), 80, "tcp", "web4-80")
        assert (event["owner"], event["group"]) == (owner, "default")
    assert accepted["port"] == dropped["port"]
    assert accepted["bucket"] == dropped["bucket"]
    for node, trace in ((owner, here), (other, there)):
        heads = [packet for packet in rdpcap(f"{tmp_path}/{node}.pcap") if packet.haslayer(TCP)]
        assert len(heads) == len([event for event in trace.of("verdict") if event["protocol"] == "tcp"])
        assert {(packet[IP].src, packet[IP].dst) for packet in heads} == {(CLIENT, str(VIP))}


def test_samples_agree_with_the_filters_own_counters(calm_farm: Farm) -> None:
    with traces(calm_farm, "node1", options=("--vip", str(VIP), "--rate", "10000")) as (trace,):
        for _ in range(3):
            curl(calm_farm, "client1", f"http://{VIP}/")
            curl(calm_farm, "client2", f"http://{VIP}:81/")
            calm_farm.lab.exec("client1", ["ping", "-c1", "-W1", str(VIP)])

    (summary,) = trace.of("summary")
    assert summary["suppressed"] == {"frames": 0, "kernel_events": 0, "over_rate": 0}
    sampled: dict[tuple[str | None, str], int] = {}
    for event in trace.of("verdict"):
        sampled[event["rule"], event["reason"]] = sampled.get((event["rule"], event["reason"]), 0) + 1
    assert sampled == {(each["rule"], each["reason"]): each["packets"] for each in summary["counted"]}
    assert sum(sampled.values()) > 20


def test_bounds_hold_and_say_so(calm_farm: Farm) -> None:
    with traces(calm_farm, "node1", options=("--rate", "10", "--verdict", "drop")) as (trace,):
        for _ in range(12):
            curl(calm_farm, "client1", f"http://{VIP}:99/", "-m", "0.05")
            curl(calm_farm, "client2", f"http://{VIP}:81/")

    (summary,) = trace.of("summary")
    assert {event["verdict"] for event in trace.of("verdict")} == {"drop"}
    assert sum(summary["suppressed"].values()) > 0
    by_second: dict[str, int] = {}
    for event in trace.of("verdict"):
        by_second[event["at"][:19]] = by_second.get(event["at"][:19], 0) + 1
    assert max(by_second.values()) <= 20, "ten in any second of the teller's clock"


def test_a_limit_ends_it(calm_farm: Farm) -> None:
    began = time.monotonic()
    with traces(calm_farm, "node1", options=("--limit", "3")) as (trace,):
        curl(calm_farm, "client1", f"http://{VIP}/")
        curl(calm_farm, "client2", f"http://{VIP}/")
        trace.take("summary")

    assert len(trace.of("verdict")) + len(trace.of("stack-drop")) == 3
    assert time.monotonic() - began < SECONDS + 20


def connected(farm: Farm) -> socket.socket:
    """A connection from client1 to the VIP that does not end by itself."""

    def connect() -> socket.socket:
        return socket.create_connection((str(VIP), PORT_BY_ADDRESS), timeout=5)

    return netns.in_namespace(farm.lab.plan.host("client1").namespace, connect)


def send_frame(farm: Farm, frame: bytes) -> None:
    link = farm.lab.plan.host("client1").links[0]

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
            wire.bind((link.device, 0))
            wire.send(frame)

    netns.in_namespace(farm.lab.plan.host("client1").namespace, send)


def test_resets_retransmits_and_drops_in_the_kernel(make_farm: MakeFarm) -> None:
    farm = make_farm(nodes=3, clients=1)
    owner = owner_of(farm)
    mac = farm.lab.plan.host("client1").links[0].mac_text
    stray = (
        Ether(src=mac, dst=VIRTUAL_MAC.hex(":")) / IP(src=CLIENT, dst=str(VIP)) / TCP(sport=777, dport=80, flags="A")
    )
    with traces(farm, owner) as (trace,):
        send_frame(farm, bytes(stray))
        with connected(farm) as first:
            port = first.getsockname()[1]
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with connected(farm) as second:
            retried = second.getsockname()[1]
            farm.lab.cut(owner, "client1")
            second.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(2)
            farm.lab.heal()
            assert second.recv(100).startswith(b"HTTP/1.1 200")

    def ports(kind: str) -> set[int]:
        assert {(event["client"], event["vip"], event["vport"]) for event in trace.of(kind)} == {(CLIENT, str(VIP), 80)}
        assert {event["owner"] for event in trace.of(kind)} == {owner}
        return {event["port"] for event in trace.of(kind)}

    assert ports("reset-sent") == {777}, "nobody knew that connection"
    assert port in ports("reset-received")
    assert retried in ports("retransmit")
    stack_drops = [event["detail"] for event in trace.of("stack-drop") if event["port"] == 777]
    assert len(stack_drops) == 1, "the kernel gave the segment a reason; which one depends on its version"


def test_another_namespaces_packets_are_not_shown(calm_farm: Farm) -> None:
    """Tracepoints are the whole machine's; the other nodes and the switch see the same packets."""
    with traces(calm_farm, "node1", options=("--client", CLIENT)) as (trace,):
        curl(calm_farm, "client1", f"http://{VIP}/")

    syns = [event for event in trace.of("verdict") if event["flags"] == "SYN"]
    assert len(syns) == 1


def in_native_mode(farm: Farm, node: str) -> None:
    config = farm.lab.plan.home(farm.lab.plan.host(node)) / "farm.toml"
    auto = 'attach_mode = "auto"'
    assert auto in config.read_text()
    config.write_text(config.read_text().replace(auto, 'attach_mode = "native"', 1))
    farm.lab.stop(node)
    stopped = partial(netns.processes, farm.lab.plan.host(node).namespace)
    farm.wait("the daemon has ended", lambda: netns.Part.DAEMON not in {process.part for process in stopped()})
    farm.lab.start(node)
    farm.wait(f"{node} is native", lambda: farm.status(node)["filter"][0]["mode"] == "native")


def test_drops_show_in_native_mode(make_farm: MakeFarm, tmp_path: Path) -> None:
    """Each with its reason and its frame; and the trace tells why veth must not be native."""
    farm = make_farm(nodes=3, clients=1)
    owner = owner_of(farm)
    other = "node2" if owner == "node1" else "node1"
    known = f"ip neigh replace {VIP} lladdr {VIRTUAL_MAC.hex(':')} dev eth0 nud permanent"
    assert farm.lab.exec("client1", known.split()).returncode == 0, "answers from XDP need more of a veth"
    in_native_mode(farm, owner)
    in_native_mode(farm, other)
    with traces(farm, owner, other, options=("--pcap", f"{tmp_path}/{{node}}.pcap")) as (here, there):
        code, _ = curl(farm, "client1", f"http://{VIP}/", "-m", "2")
        assert code != 0, "frames to the virtual MAC are lost before the stack"

    assert [trace.events[0]["interfaces"][0]["mode"] for trace in (here, there)] == ["native", "native"]
    assert {(event["flags"], event["reason"]) for event in here.of("verdict") if event["vport"] == 80} == {
        ("SYN", "accept-own")
    }
    assert {event["detail"] for event in here.of("stack-drop")} == {"otherhost"}
    assert {(event["flags"], event["verdict"], event["reason"]) for event in there.of("verdict") if event["vport"]} == {
        ("SYN", "drop", "drop-not-owner")
    }
    dropped = [event for event in there.of("verdict") if event["vport"]]
    assert {(event["rule"], event["owner"]) for event in dropped} == {("web4-80", owner)}
    assert len({event["bucket"] for event in dropped}) == 1
    (summary,) = there.of("summary")
    counted = {(each["rule"], each["reason"]): each["packets"] for each in summary["counted"]}
    assert counted["web4-80", "drop-not-owner"] == len(dropped)
    heads = [packet for packet in rdpcap(f"{tmp_path}/{other}.pcap") if packet.haslayer(TCP)]
    assert [packet[TCP].flags for packet in heads] == ["S"] * len(dropped)


def test_a_trace_follows_a_filter_that_is_replaced(calm_farm: Farm) -> None:
    with traces(calm_farm, "node1") as (trace,):
        curl(calm_farm, "client1", f"http://{VIP}/")
        calm_farm.lab.api("node1").reload()
        time.sleep(2)  # the new filter is in place within half a second, and the trace looks twice a second
        calm_farm.wait("node1 serves", lambda: calm_farm.serves("node1"))
        curl(calm_farm, "client2", f"http://{VIP}/")

    clients = {event["client"] for event in trace.of("verdict") if event["flags"] == "SYN"}
    assert len(clients) == 2


def test_without_bcc_the_command_says_what_to_install(calm_farm: Farm, tmp_path: Path) -> None:
    """The tracer with a place for bcc where there is none, as on a server without the package."""
    home = calm_farm.lab.plan.home(calm_farm.lab.plan.host("node1"))
    code = (
        "import sys, pathlib\n"
        "from farmd.trace import loader, __main__\n"
        f"loader.load_bcc.__defaults__ = ((pathlib.Path({str(tmp_path)!r}),),)\n"
        "sys.path = [place for place in sys.path if 'dist-packages' not in place]\n"
        f"sys.exit(__main__.main(['--config', {str(home / 'farm.toml')!r}]))"
    )
    done = calm_farm.lab.exec("node1", [sys.executable, "-c", code])

    assert done.returncode == 1
    error = json.loads(done.stdout.splitlines()[-1])
    assert error["type"] == "error"
    assert "apt-get install python3-bpfcc" in error["next_step"]


def test_without_a_filter_it_says_to_start_farmd(tmp_path: Path, calm_farm: Farm) -> None:
    home = calm_farm.lab.plan.home(calm_farm.lab.plan.host("node1"))
    text = (home / "farm.toml").read_text().replace('/node1"', '/absent"', 3)
    (tmp_path / "farm.toml").write_text(text)
    argv = [sys.executable, "-m", "farmd.cli", "trace", "--config", str(tmp_path / "farm.toml")]
    done = calm_farm.lab.exec("node1", argv)

    assert done.returncode == 1
    assert "no filter is pinned here. Start farmd first" in done.stderr
