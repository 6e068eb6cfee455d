# SPDX-License-Identifier: Apache-2.0
"""The decision table: every kind of packet in every state of its bucket, IPv4 and IPv6, by both affinities."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.packet.rig import (
    CLIENT4,
    CLIENT6,
    CLIENT_MAC,
    KEY,
    NODE4,
    NODE6,
    VIP4,
    VIP6,
    VIRTUAL_MAC,
    Rig,
    bucket_bit,
    expect,
    with_mac,
)

pytestmark = pytest.mark.root

CPORT = 41000
TABLE = """
packet      own         own+fresh           held               none
syn         accept-own  accept-fresh-new    drop-held-new      drop-not-owner
syn+ecn     accept-own  accept-fresh-new    drop-held-new      drop-not-owner
syn+data    accept-own  accept-fresh-new    drop-held-new      drop-not-owner
ack         accept-own  drop-fresh-unknown  drop-held-unknown  drop-not-owner
data        accept-own  drop-fresh-unknown  drop-held-unknown  drop-not-owner
fin         accept-own  drop-fresh-unknown  drop-held-unknown  drop-not-owner
rst         accept-own  drop-fresh-unknown  drop-held-unknown  drop-not-owner
syn+ack     accept-own  drop-fresh-unknown  drop-held-unknown  drop-not-owner
syn+fin     accept-own  drop-fresh-unknown  drop-held-unknown  drop-not-owner
syn+rst     accept-own  drop-fresh-unknown  drop-held-unknown  drop-not-owner
null        accept-own  drop-fresh-unknown  drop-held-unknown  drop-not-owner
udp         accept-own  accept-fresh-new    drop-held-new      drop-not-owner
echo        accept-own  accept-fresh-new    drop-held-new      drop-not-owner
"""
"""No socket exists in these tests; with sockets: test_sockets.py."""
FLAGS = {
    "syn": "S",
    "syn+ecn": "SEC",
    "syn+data": "S",
    "ack": "A",
    "data": "PA",
    "fin": "FA",
    "rst": "R",
    "syn+ack": "SA",
    "syn+fin": "SF",
    "syn+rst": "SR",
    "null": 0,
}
RULE = {
    (80, 4): 1,
    (80, 6): 2,
    (8080, 4): 3,
    (8080, 6): 4,
    (53, 4): 5,
    (53, 6): 6,
    (0, 4): 0,
    (0, 6): 0,
}
"""Index of the rule by port (0: ICMP) and IP version."""


def rows() -> list[tuple[str, str, str]]:
    lines = [line.split() for line in TABLE.strip().splitlines()]
    return [
        (line[0], state, reason) for line in lines[1:] for state, reason in zip(lines[0][1:], line[1:], strict=True)
    ]


def to_vip(version: int, payload: Packet, detour: bool = False) -> Packet:
    """`detour`: with an option or an extension header, so that the filter's fast lane is closed to the packet."""
    ether = Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC)
    if version == 4:
        return ether / IP(src=CLIENT4, dst=VIP4, options=[IPOption_NOP()] * 4 if detour else []) / payload
    ip = IPv6(src=CLIENT6, dst=VIP6)
    return ether / (ip / IPv6ExtHdrDestOpt() if detour else ip) / payload


def packet(kind: str, version: int, port: int = 80, cport: int = CPORT, detour: bool = False) -> bytes:
    if kind == "udp":
        return bytes(to_vip(version, UDP(sport=cport, dport=53) / Raw(b"question"), detour))
    if kind == "echo":
        return bytes(to_vip(version, ICMP(id=7, seq=1) if version == 4 else ICMPv6EchoRequest(id=7, seq=1), detour))
    tcp = TCP(sport=cport, dport=port, flags=FLAGS[kind], seq=1000, ack=2000 if "ack" in kind else 0)
    return bytes(to_vip(version, tcp / Raw(b"hello") if "data" in kind else tcp, detour))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [80, 8080])
@pytest.mark.parametrize("detour", [False, True], ids=["fast lane", "detour"])
@pytest.mark.parametrize(("kind", "state", "reason"), rows())
def test_decision(rig: Rig, kind: str, state: str, reason: str, version: int, port: int, detour: bool) -> None:
    rig.state(state)
    frame = packet(kind, version, port, detour=detour)
    rule = RULE[{"udp": 53, "echo": 0}.get(kind, port), version]

    expect(rig.judge(frame), frame, reason, rule)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["syn", "ack", "udp", "echo"])
@pytest.mark.parametrize("detour", [False, True], ids=["fast lane", "detour"])
def test_nothing_for_a_vip_passes_when_the_lease_is_over(rig: Rig, kind: str, version: int, detour: bool) -> None:
    rig.control.renew(0)
    frame = packet(kind, version, detour=detour)

    expect(rig.judge(frame), frame, "drop-lease-over")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("detour", [False, True], ids=["fast lane", "detour"])
@pytest.mark.parametrize("port", [1, 79, 81, 443, 65535])
def test_without_a_rule(rig: Rig, port: int, version: int, detour: bool) -> None:
    frame = packet("syn", version, port, detour=detour)
    expect(rig.judge(frame), frame, "drop-no-rule")

    rig.run(rig.filter.configure, replace(rig.config, drop_without_rule=False), KEY, [rig.facts])
    expect(rig.judge(frame), frame, "accept-own")
    rig.state("own", groups=(1,))  # without a rule, group 0 decides
    expect(rig.judge(frame), frame, "drop-not-owner")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [2, 33, 47, 50, 132])
def test_other_protocols_have_no_rule(rig: Rig, protocol: int, version: int) -> None:
    ip = IP(src=CLIENT4, dst=VIP4, proto=protocol) if version == 4 else IPv6(src=CLIENT6, dst=VIP6, nh=protocol)
    frame = bytes(Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC) / ip / Raw(bytes(24)))

    expect(rig.judge(frame), frame, "drop-no-rule")


def test_rules_of_the_other_protocol_do_not_count(rig: Rig) -> None:
    frame = bytes(to_vip(4, UDP(sport=CPORT, dport=80)))

    expect(rig.judge(frame), frame, "drop-no-rule")


@pytest.mark.parametrize(
    ("kind", "port", "version", "group", "hashed_port"),
    [
        ("syn", 80, 4, 0, 0),
        ("syn", 80, 6, 0, 0),
        ("syn", 8080, 4, 1, CPORT),
        ("syn", 8080, 6, 1, CPORT),
        ("udp", 53, 4, 0, 0),
        ("udp", 53, 6, 1, CPORT),
        ("echo", 0, 4, 0, 0),
        ("echo", 0, 6, 0, 0),
    ],
)
@pytest.mark.parametrize("detour", [False, True], ids=["fast lane", "detour"])
def test_the_bucket_is_the_oracles(
    rig: Rig, kind: str, port: int, version: int, group: int, hashed_port: int, detour: bool
) -> None:
    frame = packet(kind, version, port, detour=detour)
    bit = bucket_bit(CLIENT4 if version == 4 else CLIENT6, hashed_port)
    rule = RULE[port, version]

    rig.state("own", buckets=bit, groups=(group,))
    expect(rig.judge(frame), frame, "accept-own", rule)
    rig.state("own", buckets=((1 << 4096) - 1) ^ bit, groups=(group,))
    expect(rig.judge(frame), frame, "drop-not-owner", rule)
    rig.state("own", groups=(1 - group,))
    expect(rig.judge(frame), frame, "drop-not-owner", rule)


@pytest.mark.parametrize("kind", ["syn", "data", "udp", "echo"])
@pytest.mark.parametrize("version", [4, 6])
def test_other_traffic_passes_untouched(rig: Rig, kind: str, version: int) -> None:
    rig.control.renew(0)  # even without a lease
    frame = packet(kind, version)
    own = bytes.fromhex(frame.hex().replace(_packed(version, True), _packed(version, False)))
    assert own != frame

    expect(rig.judge(own), own, None)


def _packed(version: int, vip: bool) -> str:
    if version == 4:
        return bytes(map(int, (VIP4 if vip else NODE4).split("."))).hex()
    return bytes(IPv6(dst=VIP6 if vip else NODE6))[24:40].hex()


def test_an_unknown_interface_is_told(rig: Rig) -> None:
    rig.run(rig.filter.configure, replace(rig.config, interfaces=()), KEY, [])
    frame = packet("syn", 4)

    expect(rig.judge(frame), frame, "drop-no-interface")


def test_the_node_never_hears_itself(rig: Rig) -> None:
    for ip in (IP(src=VIP4, dst=VIP4), IPv6(src=VIP6, dst=VIP6)):
        frame = bytes(Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC) / ip / TCP(sport=1, dport=80, flags="S"))
        expect(rig.judge(frame), frame, "drop-malformed")


def test_whatever_mac_it_came_for(rig: Rig) -> None:
    for destination in (VIRTUAL_MAC, "02:00:00:00:00:99", "ff:ff:ff:ff:ff:ff"):
        frame = with_mac(packet("syn", 4), destination=destination)
        expect(rig.judge(frame), frame, "accept-own", 1)
