# SPDX-License-Identifier: Apache-2.0
"""Headers on the way to the ports: VLAN tags, options, extensions, fragments, ICMP errors, and frames cut short."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.packet.rig import CLIENT4, CLIENT6, CLIENT_MAC, VIP4, VIP6, VIRTUAL_MAC, Rig, bucket_bit, expect

pytestmark = pytest.mark.root

ROUTER4, ROUTER6 = "192.0.2.1", "2001:db8::1"
CPORT = 41000
ETHER = Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC)
IP4, IP6 = IP(src=CLIENT4, dst=VIP4), IPv6(src=CLIENT6, dst=VIP6)
SYN = TCP(sport=CPORT, dport=80, flags="S")
LONG_OPTION = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(200))])

WELL_FORMED: dict[str, tuple[Packet, int]] = {
    "one tag": (ETHER / Dot1Q(vlan=7) / IP4 / SYN, 1),
    "one tag, v6": (ETHER / Dot1Q(vlan=7) / IP6 / SYN, 2),
    "QinQ": (ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=8) / IP4 / SYN, 1),
    "QinQ, v6": (ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=8) / IP6 / SYN, 2),
    "QinQ of two 802.1Q tags": (ETHER / Dot1Q(vlan=7) / Dot1Q(vlan=8) / IP4 / SYN, 1),
    "one option": (ETHER / IP(src=CLIENT4, dst=VIP4, options=[IPOption_NOP()] * 4) / SYN, 1),
    "all options": (ETHER / IP(src=CLIENT4, dst=VIP4, options=[IPOption_RR(routers=["1.2.3.4"] * 9)]) / SYN, 1),
    "all options and QinQ": (
        ETHER / Dot1AD() / Dot1Q() / IP(src=CLIENT4, dst=VIP4, options=[IPOption_RR(routers=["1.2.3.4"] * 9)]) / SYN,
        1,
    ),
    "hop by hop": (ETHER / IP6 / IPv6ExtHdrHopByHop() / SYN, 2),
    "routing": (ETHER / IP6 / IPv6ExtHdrRouting(addresses=["::1"], segleft=0) / SYN, 2),
    "destination options": (ETHER / IP6 / IPv6ExtHdrDestOpt() / SYN, 2),
    "authentication header": (ETHER / IP6 / AH(spi=1, icv=bytes(12), nh=6, payloadlen=4) / SYN, 2),
    "atomic fragment": (ETHER / IP6 / IPv6ExtHdrFragment(id=9) / SYN, 2),
    "six extensions": (ETHER / IP6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / (IPv6ExtHdrDestOpt() / SYN), 2),
    "long extensions": (ETHER / IP6 / LONG_OPTION / LONG_OPTION / LONG_OPTION / SYN, 2),
    "more bytes than IP counts": (ETHER / IP4 / SYN / Raw(bytes(18)), 1),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_the_ports_are_found(rig: Rig, name: str) -> None:
    packet, rule = WELL_FORMED[name]
    frame = bytes(packet)

    expect(rig.judge(frame), frame, "accept-own", rule)


def chain(length: int) -> bytes:
    packet = ETHER / IP6
    for _ in range(length):
        packet /= IPv6ExtHdrDestOpt()
    return bytes(packet / SYN)


def test_six_extensions_are_followed_and_no_more(rig: Rig) -> None:
    expect(rig.judge(chain(6)), chain(6), "accept-own", 2)
    expect(rig.judge(chain(7)), chain(7), "drop-header-chain")


def test_headers_far_into_the_frame_are_not_followed(rig: Rig) -> None:
    packet = ETHER / IP6
    for _ in range(5):
        packet /= LONG_OPTION
    frame = bytes(packet / SYN)

    expect(rig.judge(frame), frame, "drop-malformed")


def test_a_third_tag_is_not_ours(rig: Rig) -> None:
    frame = bytes(ETHER / Dot1Q() / Dot1Q() / Dot1Q() / IP4 / SYN)

    expect(rig.judge(frame), frame, None)


@pytest.mark.parametrize("payload", [SYN, UDP(sport=CPORT, dport=53), ICMP()], ids=["tcp", "udp", "icmp"])
@pytest.mark.parametrize("options", [0, 9], ids=["plain", "options"])
@pytest.mark.parametrize("tags", [0, 2], ids=["untagged", "QinQ"])
def test_every_truncation_of_ipv4(rig: Rig, payload: Packet, options: int, tags: int) -> None:
    ip = IP(src=CLIENT4, dst=VIP4, options=[IPOption_RR(routers=["1.2.3.4"] * options)] if options else [])
    whole = bytes((ETHER / Dot1AD() / Dot1Q() if tags else ETHER) / ip / payload)
    ip_ends = 14 + 4 * tags + 20

    for length in range(14, len(whole)):
        frame = whole[:length]
        told = rig.judge(frame)
        expect(told, frame, "drop-malformed" if length >= ip_ends else None)


def test_every_truncation_of_ipv6(rig: Rig) -> None:
    whole = bytes(ETHER / IP6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(id=4) / IPv6ExtHdrDestOpt() / SYN)

    for length in range(14, len(whole)):
        frame = whole[:length]
        expect(rig.judge(frame), frame, "drop-malformed" if length >= 54 else None)


LYING = {
    "version 5": ETHER / IP(src=CLIENT4, dst=VIP4, version=5) / SYN,
    "header of 16 bytes": ETHER / IP(src=CLIENT4, dst=VIP4, ihl=4) / SYN,
    "shorter than its header": ETHER / IP(src=CLIENT4, dst=VIP4, len=19) / SYN,
    "no room for TCP": ETHER / IP(src=CLIENT4, dst=VIP4, len=39) / SYN,
    "no room for UDP": ETHER / IP(src=CLIENT4, dst=VIP4, len=27) / UDP(sport=1, dport=53),
    "no room for ICMP": ETHER / IP(src=CLIENT4, dst=VIP4, len=27) / ICMP(),
    "version 4 in IPv6": ETHER / IPv6(src=CLIENT6, dst=VIP6, version=4) / SYN,
    "IPv6: no room for TCP": ETHER / IPv6(src=CLIENT6, dst=VIP6, plen=19) / SYN,
    "IPv6: extension beyond the end": ETHER / IPv6(src=CLIENT6, dst=VIP6, plen=4, nh=60) / IPv6ExtHdrDestOpt() / SYN,
}


@pytest.mark.parametrize("name", LYING)
def test_lying_headers_are_dropped(rig: Rig, name: str) -> None:
    frame = bytes(LYING[name])

    expect(rig.judge(frame), frame, "drop-malformed")


def split(packet: Packet) -> list[Packet]:
    """The fragments that carry 1200 bytes each."""
    return list(fragment(packet, 1200))  # type: ignore[no-untyped-call]


class TestFragments:
    @staticmethod
    def pieces(dport: int = 8080, ident: int = 1, protocol: type[Packet] = TCP) -> list[bytes]:
        transport = protocol(sport=CPORT, dport=dport) / Raw(bytes(3000))
        return [bytes(ETHER / part) for part in split(IP(src=CLIENT4, dst=VIP4, id=ident) / transport)]

    def test_later_fragments_follow_the_first(self, rig: Rig) -> None:
        frames = self.pieces(ident=1)
        assert len(frames) == 3
        for frame in frames:
            expect(rig.judge(frame), frame, "accept-own", 3)

    def test_also_into_the_drop(self, rig: Rig) -> None:
        frames = self.pieces(ident=2)
        rig.state("none")
        expect(rig.judge(frames[0]), frames[0], "drop-not-owner", 3)
        rig.state("own")  # the bucket moves here in the middle of a datagram: the other node has its beginning
        for frame in frames[1:]:
            expect(rig.judge(frame), frame, "drop-not-owner", 3)

    def test_without_the_first_nobody_takes_them(self, rig: Rig) -> None:
        frame = self.pieces(ident=3)[1]
        expect(rig.judge(frame), frame, "drop-fragment-unknown")

    @pytest.mark.parametrize(
        ("ident", "state", "reason"),
        [
            (4, "own", "accept-own"),
            (5, "own+fresh", "drop-fragment-unknown"),
            (6, "held", "drop-fragment-unknown"),
            (7, "none", "drop-not-owner"),
        ],
    )
    def test_where_all_rules_agree_the_address_is_enough(self, rig: Rig, ident: int, state: str, reason: str) -> None:
        rig.state(state)
        frame = self.pieces(53, ident, UDP)[1]
        expect(rig.judge(frame), frame, reason, 5)

    def test_datagrams_are_told_apart(self, rig: Rig) -> None:
        first = self.pieces(ident=8)[0]
        rig.judge(first)
        other_id = self.pieces(ident=9)[1]
        expect(rig.judge(other_id), other_id, "drop-fragment-unknown")
        other_client = bytes(ETHER / IP(src="10.77.0.202", dst=VIP4, id=8, frag=150, proto=6) / Raw(bytes(99)))
        expect(rig.judge(other_client), other_client, "drop-fragment-unknown")

    def test_a_fragmented_ping(self, rig: Rig) -> None:
        parts = split(IP(src=CLIENT4, dst=VIP4, id=10) / ICMP() / Raw(bytes(3000)))
        for part in reversed(parts):  # even when the last comes first
            frame = bytes(ETHER / part)
            expect(rig.judge(frame), frame, "accept-own")

    def test_a_first_fragment_without_ports(self, rig: Rig) -> None:
        frame = bytes(ETHER / IP(src=CLIENT4, dst=VIP4, id=11, flags="MF", proto=6) / Raw(bytes(8)))
        expect(rig.judge(frame), frame, "drop-malformed")

    def test_ipv6(self, rig: Rig) -> None:
        whole = bytes(TCP(sport=CPORT, dport=8080, flags="A") / Raw(bytes(1000)))
        first = bytes(ETHER / IP6 / IPv6ExtHdrFragment(id=12, m=1, nh=6) / Raw(whole[:512]))
        later = bytes(ETHER / IP6 / IPv6ExtHdrFragment(id=12, offset=64, nh=6) / Raw(whole[512:]))
        expect(rig.judge(later), later, "drop-fragment-unknown")
        expect(rig.judge(first), first, "accept-own", 4)
        expect(rig.judge(later), later, "accept-own", 4)


def sent4(payload: Packet, source: str = VIP4) -> Packet:
    """A packet of the VIP's, as an ICMP error quotes it."""
    return IP(src=source, dst=CLIENT4) / payload


def sent6(payload: Packet, source: str = VIP6) -> Packet:
    return IPv6(src=source, dst=CLIENT6) / payload


REPLY = TCP(sport=8080, dport=CPORT, flags="A")
QUOTE4, QUOTE6 = IP(src=ROUTER4, dst=VIP4), IPv6(src=ROUTER6, dst=VIP6)
ERRORS: dict[str, tuple[Packet, int]] = {
    "fragmentation needed": (QUOTE4 / ICMP(type=3, code=4, nexthopmtu=1400) / sent4(REPLY), 3),
    "time exceeded": (QUOTE4 / ICMP(type=11) / sent4(REPLY), 3),
    "parameter problem": (QUOTE4 / ICMP(type=12) / sent4(REPLY), 3),
    "only eight bytes quoted": (QUOTE4 / ICMP(type=3) / Raw(bytes(sent4(REPLY))[:28]), 3),
    "packet too big": (QUOTE6 / ICMPv6PacketTooBig() / sent6(REPLY), 4),
    "unreachable, v6": (QUOTE6 / ICMPv6DestUnreach() / sent6(REPLY), 4),
    "time exceeded, v6": (QUOTE6 / ICMPv6TimeExceeded() / sent6(REPLY), 4),
    "of our first fragment, v6": (
        QUOTE6 / ICMPv6PacketTooBig() / sent6(IPv6ExtHdrFragment(id=3, m=1, nh=6) / REPLY),
        4,
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_icmp_error_goes_where_the_connection_is(rig: Rig, name: str) -> None:
    packet, rule = ERRORS[name]
    frame = bytes(ETHER / packet)
    bit = bucket_bit(CLIENT4 if rule == 3 else CLIENT6, CPORT)

    rig.state("own", buckets=bit, groups=(1,))
    expect(rig.judge(frame), frame, "accept-own", rule)
    rig.state("own", buckets=((1 << 4096) - 1) ^ bit)
    expect(rig.judge(frame), frame, "drop-not-owner", rule)
    rig.state("held")
    expect(rig.judge(frame), frame, "drop-held-unknown", rule)
    rig.state("own+fresh")
    expect(rig.judge(frame), frame, "drop-fresh-unknown", rule)


def test_icmp_errors_about_udp_and_echo(rig: Rig) -> None:
    about_udp = bytes(ETHER / QUOTE4 / ICMP(type=3) / sent4(UDP(sport=53, dport=CPORT)))
    about_echo = bytes(ETHER / QUOTE6 / ICMPv6TimeExceeded() / sent6(ICMPv6EchoReply()))

    rig.state("own", buckets=bucket_bit(CLIENT4), groups=(0,))
    expect(rig.judge(about_udp), about_udp, "accept-own", 5)
    rig.state("own", buckets=bucket_bit(CLIENT6), groups=(0,))
    expect(rig.judge(about_echo), about_echo, "accept-own")


UNKNOWN = {
    "another sender": QUOTE4 / ICMP(type=3) / sent4(REPLY, source="10.77.0.11"),
    "another sender, v6": QUOTE6 / ICMPv6PacketTooBig() / sent6(REPLY, source="fd77::11"),
    "a later fragment of ours": QUOTE4 / ICMP(type=3) / (IP(src=VIP4, dst=CLIENT4, frag=100, proto=6) / Raw(bytes(8))),
    "no ports quoted": QUOTE4 / ICMP(type=3) / Raw(bytes(sent4(REPLY))[:22]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_icmp_errors_that_cannot_be_steered(rig: Rig, name: str) -> None:
    frame = bytes(ETHER / UNKNOWN[name])

    expect(rig.judge(frame), frame, "drop-icmp-unknown")


def test_an_icmp_error_about_no_rule(rig: Rig) -> None:
    frame = bytes(ETHER / QUOTE4 / ICMP(type=3) / sent4(TCP(sport=99, dport=CPORT)))

    expect(rig.judge(frame), frame, "drop-no-rule")
