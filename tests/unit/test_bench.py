# SPDX-License-Identifier: Apache-2.0
"""What is pure in the benches: hashes of the peers, sums, rules and the picture."""

from __future__ import annotations

import json
import re
import socket
from ipaddress import IPv4Address
from xml.etree import ElementTree

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bench import picture
from bench.clusterlab import RECIPES, rules
from bench.jhash import jhash, node_of
from bench.live import CLIENTS, SOURCE, fixed_sums, packed
from bench.peers import LOADS, Series
from bench.report import RESULTS

_SVG = "{http://www.w3.org/2000/svg}"


def test_clients_of_the_peers_fall_evenly_on_nodes() -> None:
    counts = [0, 0, 0]
    for number in range(30_000):
        counts[node_of(IPv4Address(0x0B000000 + number).packed, 0xDEADBEEF, 3)] += 1

    assert max(counts) - min(counts) < 600


def test_the_peers_hash_takes_an_ipv4_address() -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        jhash(bytes(16), 0)


def test_the_sender_in_the_kernel_has_room_for_all_clients() -> None:
    found = re.search(r"#define CLIENTS (\d+)", SOURCE.read_text())

    assert found is not None
    assert int(found[1]) == CLIENTS


@pytest.mark.parametrize("client", ["0.0.0.1", "11.2.3.4", "126.255.255.255", "255.255.255.255"])
def test_checksums_are_the_fixed_sums_and_the_client(client: str) -> None:
    template = LOADS[0].frame
    whole = bytes(Ether() / IP(src=client, dst="10.77.0.100") / TCP(sport=41000, dport=80, seq=1, ack=1, flags="A"))
    words = int.from_bytes(IPv4Address(client).packed[:2], "little") + int.from_bytes(
        IPv4Address(client).packed[2:], "little"
    )

    sums = [_checksum(fixed + words) for fixed in fixed_sums(template)]

    assert sums == [int.from_bytes(whole[24:26], "little"), int.from_bytes(whole[50:52], "little")]


def _checksum(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_clients_are_packed_as_in_packets() -> None:
    assert packed([int(IPv4Address("1.2.3.4")), 5]) == socket.inet_aton("1.2.3.4") + socket.inet_aton("0.0.0.5")


def test_a_cost_is_taken_over_the_run_right_before() -> None:
    series = Series()
    for base, whole in ((100, 130), (500, 531), (90, 122)):  # a slow moment hits both
        series.add(base, whole)

    assert series.cost == 31


def test_a_node_without_slots_has_no_match() -> None:
    manual, keeping = RECIPES[1], RECIPES[2]

    assert "--cluster-total-nodes 5 --cluster-local-nodemask 0x6 " in rules(manual, 5, (2, 3))
    assert "cluster" not in rules(manual, 3, ())
    assert rules(manual, 3, ()).splitlines()[-2].endswith("-j DROP")
    assert "ESTABLISHED" in rules(keeping, 3, ())


def test_bars_are_as_long_as_costs() -> None:
    tree = ElementTree.fromstring(picture.draw(_result(farmd=25.0, peer=500.0)))
    widths = [float(bar.get("width", "")) for bar in tree.iter(f"{_SVG}rect")]

    assert widths == [picture.PAPER / 20, picture.PAPER]


def test_names_in_the_picture_are_text() -> None:
    tree = ElementTree.fromstring(picture.draw(_result(farmd=1.0, peer=2.0, name="a < b & c")))

    assert "a < b & c" in [text.text for text in tree.iter(f"{_SVG}text")]


def test_the_picture_shows_the_figures_of_now() -> None:
    drawn = (RESULTS / "peers.svg").read_text()

    assert drawn == picture.draw(json.loads((RESULTS / "peers.json").read_text())), "run `python -m bench.picture`"


def _result(farmd: float, peer: float, name: str = "peer") -> dict[str, object]:
    nodes = {
        "farmd": {"cost_ns": farmd, "times_farmd": 1.0},
        name: {"cost_ns": peer, "times_farmd": peer / farmd},
    }
    return {"host": {"cpu": "a CPU", "kernel": "6.1"}, "command": "python", "packets": {"refuse": nodes}}
