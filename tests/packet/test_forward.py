# SPDX-License-Identifier: Apache-2.0
"""Delivery `directed`: what a node does with frames that are another's. Node 0 judges; node 1 owns, nodes 2, 3 hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from farmd.dataplane import tables
from farmd.dataplane._libbpf import lib
from farmd.dataplane.planes import KernelPlanes
from farmd.dataplane.routes import KernelRoutes
from farmd.model.buckets import ALL_BUCKETS, BUCKETS, NO_OWNERS
from farmd.model.config import Delivery
from farmd.model.nodes import NodeId
from farmd.net import neighbour
from tests.packet import test_sockets
from tests.packet.rig import CLIENT4, CLIENT6, CLIENT_MAC, KEY, NODE_MAC, STATES, VIP4, VIP6, Rig, bucket_bit, with_mac
from tests.packet.test_decision import RULE, packet
from tests.packet.test_neighbours import arp, solicitation

pytestmark = pytest.mark.root

OWNER, HOLDER, MACLESS = NodeId(1), NodeId(2), NodeId(3)
MACS = {OWNER: "02:00:00:00:00:12", HOLDER: "02:00:00:00:00:13"}
HOPS = int(lib.FARM_HOPS)
SEARCH = 0x80

TABLE = """
packet   own         own+fresh         held              none
syn      accept-own  accept-fresh-new  sent-to-owner     sent-to-owner
syn+ecn  accept-own  accept-fresh-new  sent-to-owner     sent-to-owner
ack      accept-own  sent-to-previous  sent-to-owner     sent-to-owner
data     accept-own  sent-to-previous  sent-to-owner     sent-to-owner
fin      accept-own  sent-to-previous  sent-to-owner     sent-to-owner
rst      accept-own  sent-to-previous  sent-to-owner     sent-to-owner
syn+ack  accept-own  sent-to-previous  sent-to-owner     sent-to-owner
null     accept-own  sent-to-previous  sent-to-owner     sent-to-owner
udp      accept-own  accept-fresh-new  sent-to-owner     sent-to-owner
echo     accept-own  accept-fresh-new  sent-to-owner     sent-to-owner
"""
"""A frame from a client, and no socket here."""
SEARCHING = """
packet   own         own+fresh           held               none
syn      accept-own  accept-fresh-new    drop-held-new      drop-not-owner
data     accept-own  sent-to-previous    sent-to-previous   sent-to-previous
fin      accept-own  sent-to-previous    sent-to-previous   sent-to-previous
udp      accept-own  accept-fresh-new    drop-held-new      drop-not-owner
"""
"""A frame on its way along the holders of its bucket."""


def rows(table: str) -> list[tuple[str, str, str]]:
    lines = [line.split() for line in table.strip().splitlines()]
    return [
        (line[0], state, reason) for line in lines[1:] for state, reason in zip(lines[0][1:], line[1:], strict=True)
    ]


@pytest.fixture(autouse=True, scope="module")
def addresses(loaded: Rig) -> None:
    """VIPs and clients all live on the node's lo, for real sockets."""
    for address in (f"{VIP4}/32", f"{CLIENT4}/32"):
        loaded.node.ip(f"addr add {address} dev lo")
    for address in (f"{VIP6}/128", f"{CLIENT6}/128"):
        loaded.node.ip(f"addr add {address} dev lo nodad")


class DirectedRig:
    """A rig in a directed farm; `rig.judge` as ever."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.routes = KernelRoutes.open(rig.pin_dir)
        self.control, rig.control = rig.control, KernelPlanes.open(rig.pin_dir, directed=True)
        config = replace(rig.config, delivery=Delivery.DIRECTED)
        rig.run(rig.filter.configure, config, KEY, [rig.facts])
        for node in (OWNER, HOLDER):
            self.routes.write_mac(0, node, mac_bytes(MACS[node]))
        self.take(OWNER, HOLDER)
        rig.state("own")

    def take(self, owner: int, following: int) -> None:
        """Who owns every bucket, and who follows us in the row."""
        for group in (0, 1):
            self.routes.write(group, bytes([owner]) * BUCKETS, bytes([following]) * BUCKETS)

    def close(self) -> None:
        for node in (OWNER, HOLDER, MACLESS):
            self.routes.write_mac(0, node, bytes(6))
        self.routes.close()
        self.rig.control.close()
        self.rig.control = self.control


@pytest.fixture
def directed(rig: Rig) -> Iterator[DirectedRig]:
    made = DirectedRig(rig)
    yield made
    made.close()


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def marked(frame: bytes, trail: int, node: int = 5) -> bytes:
    """The frame as another node sent it on."""
    return frame[:6] + tables.marker("test") + bytes([node, trail]) + frame[12:]


def expect_sent(rig: Rig, frame: bytes, reason: str, rule: int, hop: int = 1) -> None:
    """The frame leaves for the owner or the holder, marked by us, and otherwise untouched."""
    told = rig.judge(frame)
    node, trail = (OWNER, hop) if reason == "sent-to-owner" else (HOLDER, hop | SEARCH)
    assert (told.verdict, told.reason, told.rule) == ("tx", reason, rule)
    assert told.frame == mac_bytes(MACS[node]) + tables.marker("test") + bytes([0, trail]) + frame[12:]


def expect(rig: Rig, frame: bytes, reason: str, rule: int, hop: int = 1) -> None:
    if reason.startswith("sent-"):
        expect_sent(rig, frame, reason, rule, hop)
        return
    told = rig.judge(frame)
    assert (told.reason, told.rule) == (reason, rule)
    if reason.startswith("accept-"):
        assert (told.verdict, told.frame) == ("pass", with_mac(frame, destination=NODE_MAC))
    else:
        assert told.verdict == "drop"


def tagged(frame: bytes, tags: int) -> bytes:
    """With so many VLAN tags."""
    tag = {0: "", 1: "81000005", 2: "88a8000581000006"}[tags]
    return frame[:12] + bytes.fromhex(tag) + frame[12:]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [80, 8080])
@pytest.mark.parametrize("detour", [False, True], ids=["fast lane", "detour"])
@pytest.mark.parametrize("tags", [0, 1, 2])
@pytest.mark.parametrize(("kind", "state", "reason"), rows(TABLE))
def test_frames_of_clients(
    directed: DirectedRig, kind: str, state: str, reason: str, version: int, port: int, detour: bool, tags: int
) -> None:
    directed.rig.state(state)
    rule = RULE[{"udp": 53, "echo": 0}.get(kind, port), version]
    expect(directed.rig, tagged(packet(kind, version, port, detour=detour), tags), reason, rule)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("detour", [False, True], ids=["fast lane", "detour"])
@pytest.mark.parametrize("hops", [1, HOPS - 1])
@pytest.mark.parametrize(("kind", "state", "reason"), rows(SEARCHING))
def test_frames_on_their_way_along_the_holders(
    directed: DirectedRig, kind: str, state: str, reason: str, version: int, detour: bool, hops: int
) -> None:
    directed.rig.state(state)
    frame = marked(packet(kind, version, detour=detour), hops | SEARCH)
    rule = RULE[{"udp": 53}.get(kind, 80), version]
    expect(directed.rig, frame, reason, rule, hops + 1)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("detour", [False, True], ids=["fast lane", "detour"])
@pytest.mark.parametrize("state", ["held", "none"])
def test_a_marked_frame_goes_on_up_to_the_bound(directed: DirectedRig, state: str, version: int, detour: bool) -> None:
    directed.rig.state(state)
    frame = packet("data", version, detour=detour)
    for hops in range(HOPS):
        expect_sent(directed.rig, marked(frame, hops), "sent-to-owner", RULE[80, version], hops + 1)
    for hops in (HOPS, HOPS + 1, 0x7F):
        expect(directed.rig, marked(frame, hops), "drop-hop-limit", RULE[80, version])
        expect(directed.rig, marked(frame, hops | SEARCH), "drop-hop-limit", RULE[80, version])


def test_nobody_elses_mark_counts(directed: DirectedRig) -> None:
    directed.rig.state("none")
    frame = packet("data", 4)
    stranger = frame[:6] + tables.marker("another farm") + bytes([5, HOPS]) + frame[12:]
    expect_sent(directed.rig, stranger, "sent-to-owner", 1)


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_ours_is_accepted_however_far_it_came(directed: DirectedRig, version: int) -> None:
    for trail in (1, HOPS, 0x7F, HOPS | SEARCH):
        expect(directed.rig, marked(packet("data", version), trail), "accept-own", RULE[80, version])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("detour", [False, True], ids=["fast lane", "detour"])
@pytest.mark.parametrize(("state", "kind"), [(s, k) for s in STATES for k in ("syn", "data", "udp")])
def test_when_nobody_is_known_it_is_dropped_as_ever(
    directed: DirectedRig, state: str, kind: str, version: int, detour: bool
) -> None:
    frame = packet(kind, version, detour=detour)
    told = {
        ("own+fresh", "data"): "drop-fresh-unknown",
        ("held", "data"): "drop-held-unknown",
        **dict.fromkeys([("held", "syn"), ("held", "udp")], "drop-held-new"),
        **dict.fromkeys([("none", "syn"), ("none", "data"), ("none", "udp")], "drop-not-owner"),
    }
    accepted = "accept-own" if state == "own" else "accept-fresh-new"
    rule = RULE[53 if kind == "udp" else 80, version]
    directed.rig.state(state)
    for owner, following in ((255, 255), (0, 255), (0, 0), (200, 100)):
        directed.take(owner, following)
        expect(directed.rig, frame, told.get((state, kind), accepted), rule)


@pytest.mark.parametrize("version", [4, 6])
def test_before_it_opens_what_it_gained_a_node_looks_for_connections(directed: DirectedRig, version: int) -> None:
    """Others may have the view's START before us, and send us what will be ours."""
    directed.rig.state("none")
    directed.take(0, HOLDER)
    expect_sent(directed.rig, marked(packet("data", version), 1), "sent-to-previous", RULE[80, version], 2)
    expect(directed.rig, marked(packet("syn", version), 1), "drop-not-owner", RULE[80, version])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("detour", [False, True], ids=["fast lane", "detour"])
def test_a_node_that_has_not_told_its_mac(directed: DirectedRig, version: int, detour: bool) -> None:
    directed.rig.state("none")
    directed.take(MACLESS, 255)
    expect(directed.rig, packet("syn", version, detour=detour), "drop-mac-unknown", RULE[80, version])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("detour", [False, True], ids=["fast lane", "detour"])
def test_without_a_lease_nothing_is_accepted_and_all_else_sent_on(
    directed: DirectedRig, version: int, detour: bool
) -> None:
    rig = directed.rig
    rig.control.renew(0)
    for kind in ("syn", "data", "udp", "echo"):
        rule = RULE[{"udp": 53, "echo": 0}.get(kind, 80), version]
        frame = packet(kind, version, detour=detour)
        rig.state("own")
        expect(rig, frame, "drop-lease-over", 0)
        for state in ("held", "none"):
            rig.state(state)
            expect_sent(rig, frame, "sent-to-owner", rule)
        directed.take(0, 255)
        expect(rig, frame, "drop-lease-over", 0)
        directed.take(OWNER, HOLDER)


def test_a_fragment_remembered_under_the_lease_is_not_accepted_after_it(directed: DirectedRig) -> None:
    rig = directed.rig
    first, later = pieces()
    expect(rig, first, "accept-own", 5)
    expect(rig, later, "accept-own", 5)
    rig.control.renew(0)
    expect(rig, later, "drop-lease-over", 0)


def pieces() -> tuple[bytes, bytes]:
    """The two halves of a datagram."""
    whole = bytes(UDP(sport=41000, dport=53) / Raw(bytes(1000)))
    ether = Ether(dst=NODE_MAC, src=CLIENT_MAC)
    first = ether / IP(src=CLIENT4, dst=VIP4, id=77, flags="MF", proto=17) / Raw(whole[:504])
    later = ether / IP(src=CLIENT4, dst=VIP4, id=77, frag=63, proto=17) / Raw(whole[504:])
    return bytes(first), bytes(later)


def test_all_fragments_go_where_the_first_one_went(directed: DirectedRig) -> None:
    rig = directed.rig
    first, later = pieces()
    rig.state("none")
    expect_sent(rig, first, "sent-to-owner", 5)
    rig.state("own")
    expect_sent(rig, later, "sent-to-owner", 5)
    expect(rig, marked(later, HOPS), "drop-hop-limit", 5)


def test_an_unknown_interface_sends_nothing_on(directed: DirectedRig) -> None:
    rig = directed.rig
    rig.state("none")
    rig.run(rig.filter.configure, replace(rig.config, delivery=Delivery.DIRECTED, interfaces=()), KEY, [])
    for detour in (False, True):
        expect(rig, packet("syn", 4, detour=detour), "drop-no-interface", 0)


def test_a_settled_farm_of_another_delivery_sends_nothing_on(rig: Rig) -> None:
    with_routes = KernelRoutes.open(rig.pin_dir)
    with_routes.write(0, bytes([OWNER]) * BUCKETS, NO_OWNERS)
    with_routes.write_mac(0, OWNER, mac_bytes(MACS[OWNER]))
    rig.state("none")
    told = rig.judge(packet("syn", 4))
    assert (told.verdict, told.reason) == ("drop", "drop-not-owner")
    with_routes.write_mac(0, OWNER, bytes(6))
    with_routes.close()


class TestNeighbours:
    """ARP and Neighbour Discovery: the owner of the asker's bucket answers, with its own address."""

    @pytest.mark.parametrize("tags", [None, Dot1Q(vlan=5)], ids=["plain", "VLAN"])
    def test_arp_names_the_nodes_own_mac(self, directed: DirectedRig, tags: Packet | None) -> None:
        told = directed.rig.judge(arp(tags=tags))
        ether = Ether(dst=CLIENT_MAC, src=NODE_MAC)
        reply = ARP(op=2, hwsrc=NODE_MAC, psrc=VIP4, hwdst=CLIENT_MAC, pdst=CLIENT4)
        assert (told.verdict, told.reason) == ("tx", "arp-answered")
        assert told.frame == bytes(ether / tags / reply if tags else ether / reply)

    def test_nd_names_the_nodes_own_mac(self, directed: DirectedRig) -> None:
        told = directed.rig.judge(solicitation())
        answer = IPv6(src=VIP6, dst=CLIENT6, hlim=255) / ICMPv6ND_NA(tgt=VIP6, R=0, S=1, O=1)
        assert (told.verdict, told.reason) == ("tx", "nd-answered")
        frame = Ether(dst=CLIENT_MAC, src=NODE_MAC) / answer / ICMPv6NDOptDstLLAddr(lladdr=NODE_MAC)
        assert told.frame == bytes(frame)

    def test_a_question_to_all_is_not_sent_on(self, directed: DirectedRig) -> None:
        directed.rig.state("none")
        expect(directed.rig, arp(), "arp-not-owner", 0)
        expect(directed.rig, solicitation(), "nd-not-owner", 0)

    @pytest.mark.parametrize("lease", [True, False])
    def test_a_question_to_this_node_alone_is_sent_on(self, directed: DirectedRig, lease: bool) -> None:
        rig = directed.rig
        rig.state("none")
        if not lease:
            rig.control.renew(0)
        for question in (arp(to=NODE_MAC), with_mac(solicitation(to=VIP6), destination=NODE_MAC)):
            expect_sent(rig, question, "sent-to-owner", 0)
            expect(rig, marked(question, HOPS), "drop-hop-limit", 0)

    def test_an_answer_goes_to_who_asked_and_not_to_who_sent_on(self, directed: DirectedRig) -> None:
        told = directed.rig.judge(marked(arp(to=NODE_MAC), 1))
        assert (told.reason, told.frame[:6]) == ("arp-answered", mac_bytes(CLIENT_MAC))
        told = directed.rig.judge(marked(with_mac(solicitation(to=VIP6), destination=NODE_MAC), 1))
        assert (told.reason, told.frame[:6]) == ("nd-answered", mac_bytes(CLIENT_MAC))

    def test_a_solicitation_that_does_not_say_where_the_asker_is_stays(self, directed: DirectedRig) -> None:
        directed.rig.state("none")
        group = ICMPv6NDOptSrcLLAddr(lladdr="33:33:00:00:00:01")
        for options in (None, ICMPv6NDOptDstLLAddr(lladdr=CLIENT_MAC), group):
            question = with_mac(solicitation(to=VIP6, options=options), destination=NODE_MAC)
            expect(directed.rig, question, "nd-not-owner", 0)

    def test_another_node_may_announce_a_vip_and_nobody_else(self, directed: DirectedRig) -> None:
        told = directed.rig.judge(neighbour.arp_announcement(mac_bytes(MACS[OWNER]), IPv4Address(VIP4)))
        assert (told.verdict, told.reason) == ("drop", "arp-announced")
        told = directed.rig.judge(neighbour.arp_announcement(mac_bytes(CLIENT_MAC), IPv4Address(VIP4)))
        assert (told.verdict, told.reason) == ("drop", "arp-claim")
        assert directed.rig.judge(neighbour.advertisement(mac_bytes(MACS[OWNER]), IPv6Address(VIP6))).reason is None

    def test_announcements_are_what_scapy_would_make(self) -> None:
        mac = mac_bytes(MACS[OWNER])
        ether = Ether(dst="ff:ff:ff:ff:ff:ff", src=MACS[OWNER])
        frame = ether / ARP(op=1, hwsrc=MACS[OWNER], psrc=VIP4, hwdst="00:00:00:00:00:00", pdst=VIP4)
        assert neighbour.arp_announcement(mac, IPv4Address(VIP4)) == bytes(frame)
        told = IPv6(src=VIP6, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=VIP6, R=0, S=0, O=1)
        ether = Ether(dst="33:33:00:00:00:01", src=MACS[OWNER])
        assert neighbour.advertisement(mac, IPv6Address(VIP6)) == bytes(
            ether / told / ICMPv6NDOptDstLLAddr(lladdr=MACS[OWNER])
        )


class TestSockets:
    """With a real socket: what is claimed stays, what is not goes on."""

    @pytest.mark.parametrize("version", [4, 6])
    @pytest.mark.parametrize("trail", [0, 1, 2 | SEARCH])
    def test_a_claimed_segment_stays(self, directed: DirectedRig, version: int, trail: int) -> None:
        rig, rule = directed.rig, test_sockets.RULE[version]
        with test_sockets.connection(rig, version) as (_, _, cport):
            ours = test_sockets.segment(version, cport, "A")
            other = test_sockets.segment(version, cport ^ 1, "A")
            if trail:
                ours, other = marked(ours, trail), marked(other, trail)
            rig.state("held")
            expect(rig, ours, "accept-held-socket", rule)
            hop = (trail & 0x7F) + 1
            expect_sent(rig, other, "sent-to-previous" if trail & SEARCH else "sent-to-owner", rule, hop)
            rig.state("own+fresh")
            expect(rig, ours, "accept-fresh-socket", rule)
            expect_sent(rig, other, "sent-to-previous", rule, hop)

    @pytest.mark.parametrize("version", [4, 6])
    def test_icmp_errors_look_for_their_connection(self, directed: DirectedRig, version: int) -> None:
        rig, rule = directed.rig, test_sockets.RULE[version]
        with test_sockets.connection(rig, version) as (_, _, cport):
            for state, here in (("held", "accept-held-socket"), ("own+fresh", "accept-fresh-socket")):
                rig.state(state)
                expect(rig, test_sockets.too_big(version, cport), here, rule)
                on = "sent-to-owner" if state == "held" else "sent-to-previous"
                expect_sent(rig, test_sockets.too_big(version, cport ^ 1), on, rule)


def test_each_bucket_has_its_own_taker(directed: DirectedRig) -> None:
    directed.rig.state("none")
    mine = bucket_bit(CLIENT4).bit_length() - 1
    owners = bytearray([HOLDER]) * BUCKETS
    owners[mine] = OWNER
    directed.routes.write(0, bytes(owners), NO_OWNERS)
    expect_sent(directed.rig, packet("syn", 4), "sent-to-owner", 1)
    owners[mine] = HOLDER
    directed.routes.write(0, bytes(owners), NO_OWNERS)
    assert directed.rig.judge(packet("syn", 4)).frame[:6] == mac_bytes(MACS[HOLDER])


def test_the_planes_of_a_directed_farm_are_read_back(directed: DirectedRig) -> None:
    for state in STATES:
        directed.rig.state(state, buckets=ALL_BUCKETS >> 7)
        plain = directed.control.read(0)
        assert directed.rig.control.read(0) == plain
