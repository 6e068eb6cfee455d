# SPDX-License-Identifier: Apache-2.0
"""Buckets in transition: what a real socket of the node claims, in every state that TCP knows."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.packet.rig import CLIENT4, CLIENT6, CLIENT_MAC, NODE_MAC, VIP4, VIP6, VIRTUAL_MAC, Rig, expect

pytestmark = pytest.mark.root

PORTS = {4: 80, 6: 8080}
"""IPv4 by client-ip, IPv6 by client-ip-port."""
RULE = {4: 1, 6: 4}
VIP = {4: VIP4, 6: VIP6}
CLIENT = {4: CLIENT4, 6: CLIENT6}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.fixture(autouse=True, scope="module")
def addresses(loaded: Rig) -> None:
    """VIPs and clients all live on the node's lo: a connection between them is found like one from outside."""
    for address in (f"{VIP4}/32", f"{CLIENT4}/32"):
        loaded.node.ip(f"addr add {address} dev lo")
    for address in (f"{VIP6}/128", f"{CLIENT6}/128"):
        loaded.node.ip(f"addr add {address} dev lo nodad")


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@contextmanager
def listener(rig: Rig, version: int) -> Iterator[socket.socket]:
    def listen() -> socket.socket:
        made = socket.socket(FAMILY[version], socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((VIP[version], PORTS[version]))
        made.listen()
        return made

    with rig.run(listen) as made:
        yield made


@contextmanager
def connection(rig: Rig, version: int) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """An established connection: the server's end, the client's end, the client's port."""
    with listener(rig, version) as listening, ExitStack() as stack:
        client = stack.enter_context(rig.run(socket.socket, FAMILY[version], socket.SOCK_STREAM))
        client.bind((CLIENT[version], 0))
        client.connect((VIP[version], PORTS[version]))
        server = stack.enter_context(listening.accept()[0])
        yield server, client, client.getsockname()[1]


def segment(version: int, cport: int, flags: str, *, seq: int = 1, ack: int = 1, data: bytes = b"") -> bytes:
    ip = (IP if version == 4 else IPv6)(src=CLIENT[version], dst=VIP[version])
    tcp = TCP(sport=cport, dport=PORTS[version], flags=flags, seq=seq, ack=ack)
    return bytes(Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC) / ip / tcp / Raw(data))


def too_big(version: int, cport: int) -> bytes:
    """An ICMP error about what the VIP sent on this connection."""
    quoted = (IP if version == 4 else IPv6)(src=VIP[version], dst=CLIENT[version])
    quoted /= TCP(sport=PORTS[version], dport=cport, flags="A")
    outer: Packet = (
        IP(src="192.0.2.1", dst=VIP4) / ICMP(type=3, code=4)
        if version == 4
        else IPv6(src="2001:db8::1", dst=VIP6) / ICMPv6PacketTooBig()
    )
    return bytes(Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC) / outer / quoted)


def check(rig: Rig, version: int, frame: bytes, *, held: str, fresh: str) -> None:
    """The reasons in a bucket that moved away, and in one that came from a live node."""
    rig.state("held")
    expect(rig.judge(frame), frame, held, RULE[version])
    rig.state("own+fresh")
    expect(rig.judge(frame), frame, fresh, RULE[version])
    rig.state("none")
    expect(rig.judge(frame), frame, "drop-not-owner", RULE[version])


HERE = {"held": "accept-held-socket", "fresh": "accept-fresh-socket"}
AWAY = {"held": "drop-held-unknown", "fresh": "drop-fresh-unknown"}


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "RA", "SA"])
def test_an_established_connection_is_kept(rig: Rig, version: int, flags: str) -> None:
    with connection(rig, version) as (_, _, cport):
        check(rig, version, segment(version, cport, flags), **HERE)
        check(rig, version, segment(version, cport ^ 1, flags), **AWAY)


def test_icmp_errors_reach_the_connection(rig: Rig, version: int) -> None:
    with connection(rig, version) as (_, _, cport):
        check(rig, version, too_big(version, cport), **HERE)
        check(rig, version, too_big(version, cport ^ 1), **AWAY)


def test_a_new_connection_on_the_ports_of_a_stale_one(rig: Rig, version: int) -> None:
    """The owner takes the SYN; where the stale connection lives the stack challenges it, so that it ends."""
    with connection(rig, version) as (_, _, cport):
        check(rig, version, segment(version, cport, "S"), held="accept-held-socket", fresh="accept-fresh-new")


def test_closing_connections_are_kept(rig: Rig, version: int) -> None:
    with connection(rig, version) as (server, client, cport):
        client.shutdown(socket.SHUT_WR)  # the server is in CLOSE_WAIT
        check(rig, version, segment(version, cport, "A"), **HERE)
        server.shutdown(socket.SHUT_WR)  # LAST_ACK, and soon gone
        gone = time.monotonic() + 5
        rig.state("held")
        while rig.judge(segment(version, cport, "A")).verdict == "pass" and time.monotonic() < gone:
            time.sleep(0.02)
        check(rig, version, segment(version, cport, "A"), **AWAY)


def test_a_listener_is_no_connection(rig: Rig, version: int) -> None:
    with listener(rig, version):
        for flags in ("A", "PA", "FA", "R"):
            check(rig, version, segment(version, 41000, flags), **AWAY)
        check(rig, version, segment(version, 41000, "S"), held="drop-held-new", fresh="accept-fresh-new")
        check(rig, version, too_big(version, 41000), **AWAY)


@pytest.mark.parametrize(
    ("flags", "data", "kept"),
    [("A", b"", False), ("A", b"late", True), ("FA", b"", True), ("R", b"", True), ("RA", b"", True)],
)
def test_time_wait(rig: Rig, version: int, flags: str, data: bytes, kept: bool) -> None:
    with connection(rig, version) as (server, client, cport):
        server.close()
        assert client.recv(1) == b""
        client.close()
        check(rig, version, segment(version, cport, flags, data=data), **(HERE if kept else AWAY))


def test_time_wait_leaves_a_new_connection_to_the_owner(rig: Rig, version: int) -> None:
    with connection(rig, version) as (server, client, cport):
        server.close()
        assert client.recv(1) == b""
        client.close()
        check(rig, version, segment(version, cport, "S"), held="drop-held-new", fresh="accept-fresh-new")


class Stranger:
    """A client at the other end of the cable, whose stack knows nothing of what it sends."""

    def __init__(self, rig: Rig, version: int) -> None:
        self.version = version
        # Addresses of their own: those of the other tests live on the node itself.
        self.address = {4: "10.77.0.202", 6: "fd77::202"}[version]
        self.wire = rig.client.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.wire.bind(("eth0", 0))
        self.wire.settimeout(5)

    def send(self, cport: int, flags: str, *, seq: int = 100, ack: int = 0) -> bytes:
        """Put a segment on the cable; returns the frame."""
        ip = (IP if self.version == 4 else IPv6)(src=self.address, dst=VIP[self.version])
        tcp = TCP(sport=cport, dport=PORTS[self.version], flags=flags, seq=seq, ack=ack)
        frame = bytes(Ether(dst=NODE_MAC, src=CLIENT_MAC) / ip / tcp)
        self.wire.send(frame)
        return frame

    def frame(self, cport: int, flags: str, *, seq: int = 101, ack: int = 0) -> bytes:
        """A segment that stays off the cable."""
        ip = (IP if self.version == 4 else IPv6)(src=self.address, dst=VIP[self.version])
        tcp = TCP(sport=cport, dport=PORTS[self.version], flags=flags, seq=seq, ack=ack)
        return bytes(Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC) / ip / tcp)

    def syn_ack(self, cport: int) -> int:
        """The sequence number of the SYN-ACK that the node sends us."""
        while True:
            packet = Ether(self.wire.recv(2048))
            if TCP in packet and packet[TCP].dport == cport and packet[TCP].flags == "SA":
                return int(packet[TCP].seq)


@contextmanager
def half_open(rig: Rig, version: int, cport: int) -> Iterator[tuple[Stranger, int]]:
    """A listener that has answered a stranger's SYN; the number of its SYN-ACK."""
    stranger = Stranger(rig, version)
    node = {4: "10.77.0.11/24", 6: "fd77::11/64"}[version]
    rig.node.ip(f"addr replace {node} dev eth0{' nodad' if version == 6 else ''}")
    rig.node.ip(f"neigh replace {stranger.address} lladdr {CLIENT_MAC} dev eth0")
    with stranger.wire, listener(rig, version):
        stranger.send(cport, "S")
        yield stranger, stranger.syn_ack(cport)


def test_a_half_open_connection_takes_the_answer_to_its_own_syn_ack(rig: Rig, version: int) -> None:
    with half_open(rig, version, 42001) as (stranger, number):
        check(rig, version, stranger.frame(42001, "A", ack=number + 1), **HERE)
        check(rig, version, stranger.frame(42001, "PA", ack=number + 1), **HERE)
        check(rig, version, stranger.frame(42001, "R"), **HERE)


def test_a_half_open_connection_leaves_what_another_node_opened(rig: Rig, version: int) -> None:
    """The SYN was sent again while the bucket moved, and the client took the other node's SYN-ACK. If this node's stack
    saw the ACK it would reset the connection."""
    with half_open(rig, version, 42002) as (stranger, number):
        for other in (number, number + 2, number + 1_000_000):
            check(rig, version, stranger.frame(42002, "A", ack=other & 0xFFFFFFFF), **AWAY)


def test_a_syn_sent_again_has_one_answer(rig: Rig, version: int) -> None:
    with half_open(rig, version, 42003) as (stranger, _):
        again = stranger.frame(42003, "S", seq=100)
        check(rig, version, again, held="drop-held-new", fresh="accept-fresh-new")


@pytest.fixture
def cookies(rig: Rig) -> Iterator[None]:
    """Every SYN is answered with a cookie, as during a flood."""
    knob = Path("/proc/sys/net/ipv4/tcp_syncookies")
    rig.run(knob.write_text, "2")
    yield
    rig.run(knob.write_text, "1")


@pytest.mark.usefixtures("cookies")
def test_the_node_that_made_a_cookie_takes_it_back(rig: Rig, version: int) -> None:
    taken = {"held": "accept-cookie", "fresh": "accept-cookie"}
    with half_open(rig, version, 42004) as (stranger, number):
        check(rig, version, stranger.frame(42004, "A", ack=number + 1), **taken)
        check(rig, version, stranger.frame(42004, "PA", ack=number + 1), **taken)
        check(rig, version, stranger.frame(42004, "A", ack=number + 77), **AWAY)
        check(rig, version, stranger.frame(42004, "RA", ack=number + 1), **AWAY)


def test_sockets_are_asked_only_in_transition(rig: Rig, version: int) -> None:
    with connection(rig, version) as (_, _, cport):
        frame = segment(version, cport, "A")
        rig.state("own")
        expect(rig.judge(frame), frame, "accept-own", RULE[version])
        rig.state("none")
        expect(rig.judge(frame), frame, "drop-not-owner", RULE[version])
