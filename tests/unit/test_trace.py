# SPDX-License-Identifier: Apache-2.0
"""The trace without a kernel: frames, records, verdicts, and the text that is compiled."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet as Layers
from scapy.packet import Raw
from scapy.utils import rdpcap

from farmd.client import Client
from farmd.dataplane.reasons import Reason, Verdict
from farmd.dataplane.tap import Sample
from farmd.model.errors import DaemonUnreachable, FarmError
from farmd.trace import program
from farmd.trace.packets import Packet, read_frame, read_ip
from farmd.trace.pcap import PcapFile
from farmd.trace.places import Places
from farmd.trace.program import HEAD_BYTES, Kind
from farmd.trace.records import Form, Record, connection, decode
from farmd.trace.sampler import SETTLED_NS, Event, Sampler
from farmd.trace.tracer import Pace
from tests.unit import farms

FARM = farms.config()
CLIENT, VIP = "203.0.113.7", "10.77.0.100"
CLIENT6, VIP6 = "2001:db8::7", "fd77::100"
ETHER = Ether(src="02:00:00:00:00:09", dst="02:fa:12:00:00:01")
V4, V6 = IP(src=CLIENT, dst=VIP), IPv6(src=CLIENT6, dst=VIP6)


def packet(*fields: Any) -> Packet:
    source, source_port, target, target_port, protocol, flags = fields
    return Packet(ip_address(source), source_port, ip_address(target), target_port, protocol, flags)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (V4 / TCP(sport=40000, dport=80, flags="S"), (CLIENT, 40000, VIP, 80, "tcp", "SYN")),
        (V4 / TCP(sport=1, dport=80, flags="PA"), (CLIENT, 1, VIP, 80, "tcp", "PSH,ACK")),
        (Dot1Q(vlan=5) / V4 / UDP(sport=53, dport=80), (CLIENT, 53, VIP, 80, "udp", "")),
        (Dot1AD(vlan=5) / Dot1Q(vlan=6) / V6 / TCP(sport=9, flags="R"), (CLIENT6, 9, VIP6, 80, "tcp", "RST")),
        (V4 / ICMP(type=8), (CLIENT, None, VIP, None, "icmp", "echo-request")),
        (V6 / ICMPv6EchoRequest(), (CLIENT6, None, VIP6, None, "icmp", "echo-request")),
        (IP(src=CLIENT, dst=VIP, frag=10, proto=17) / Raw(b"x" * 16), (CLIENT, None, VIP, None, "udp", "fragment")),
        (V6 / IPv6ExtHdrDestOpt() / TCP(sport=7, dport=80), (CLIENT6, 7, VIP6, 80, "tcp", "SYN")),
        (V6 / IPv6ExtHdrFragment(offset=3, nh=17) / Raw(b"x" * 16), (CLIENT6, None, VIP6, None, "udp", "fragment")),
        (IP(src=CLIENT, dst=VIP, proto=47) / Raw(b"x" * 8), (CLIENT, None, VIP, None, "47", "")),
        (ARP(psrc=CLIENT, pdst=VIP), (CLIENT, None, VIP, None, "arp", "request")),
        (
            IPv6(src=CLIENT6, dst="ff02::1:ff00:100") / ICMPv6ND_NS(tgt=VIP6),
            (CLIENT6, None, VIP6, None, "nd", "solicitation"),
        ),
    ],
)
def test_frames_are_read(layers: Layers, expected: tuple[Any, ...]) -> None:
    assert read_frame(bytes(ETHER / layers)) == packet(*expected)


@pytest.mark.parametrize(
    "layers", [V4 / TCP(), V6 / IPv6ExtHdrDestOpt() / TCP(), Dot1Q() / V4 / UDP(), ARP(), V6 / ICMPv6ND_NS()]
)
def test_a_frame_cut_anywhere_is_no_error(layers: Layers) -> None:
    frame = bytes(ETHER / layers)
    for size in range(len(frame)):
        read_frame(frame[:size])
        read_ip(frame[14:size])


def raw_record(kind: int, head: bytes, form: Form, reason: int = 0, at_ns: int = 0) -> bytes:
    return struct.pack(f"=QIIII{HEAD_BYTES}s", at_ns, kind, reason, len(head), form, head[:HEAD_BYTES])


def sample_of(
    layers: Layers,
    verdict: Verdict = Verdict.PASS,
    reason: Reason = Reason.ACCEPT_OWN,
    *,
    rule: int = 1,
    at_ns: int = 0,
) -> Sample:
    head = bytes(ETHER / layers)
    return Sample(at_ns, verdict, reason, rule, len(head), 2, head)


def tuple_record(kind: Kind, local: str, port: int, remote: str, remote_port: int) -> Record:
    head = b"".join(program.mapped(ip_address(text)) for text in (local, remote)) + struct.pack(
        "=HH", port, remote_port
    )
    return decode(raw_record(kind, head, Form.TUPLE))


def test_records_are_read() -> None:
    record = decode(raw_record(Kind.STACK_DROP, bytes(V4 / TCP()), Form.IP, 3, 55))
    assert (record.kind, record.at_ns, record.reason, record.head) == (Kind.STACK_DROP, 55, 3, bytes(V4 / TCP()))
    assert len(decode(raw_record(Kind.STACK_DROP, bytes(400), Form.IP)).head) == HEAD_BYTES
    told = connection(tuple_record(Kind.RETRANSMIT, VIP, 80, CLIENT, 40000).head)
    assert told == packet(VIP, 80, CLIENT, 40000, "tcp", "")
    assert connection(tuple_record(Kind.RETRANSMIT, VIP6, 80, CLIENT6, 4).head).source == ip_address(VIP6)


class FakeDaemon:
    """Answers `explain`; counts how often it was asked."""

    def __init__(self, down: bool = False) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._down = down

    def explain(self, *question: Any) -> Any:
        self.asked.append(question)
        if self._down:
            raise DaemonUnreachable("socket", "nobody", "start it")

        return SimpleNamespace(data={"bucket": 2210, "group": "default", "owner": "node2"})


def sampler(daemon: FakeDaemon | None = None) -> Sampler:
    places = Places(FARM, cast(Client, daemon or FakeDaemon()), lambda: 0)
    names = {2: "SKB_DROP_REASON_NOT_SPECIFIED", 3: "SKB_DROP_REASON_NO_SOCKET", 1: "SKB_CONSUMED"}
    return Sampler(FARM, places, names)


SYN = V4 / TCP(sport=40000, dport=80, flags="S")


def told(of: Sampler, *records: Record | Sample) -> list[dict[str, Any]]:
    for record in records:
        of.receive(record)
    return [event.data for event in of.settle(10 * SETTLED_NS)]


def test_a_frame_that_passed() -> None:
    (event,) = told(sampler(), sample_of(SYN))

    assert event == {
        "type": "verdict",
        "client": CLIENT,
        "port": 40000,
        "vip": VIP,
        "vport": 80,
        "protocol": "tcp",
        "flags": "SYN",
        "length": len(bytes(ETHER / SYN)),
        "verdict": "pass",
        "reason": "accept-own",
        "rule": "web",
        "bucket": 2210,
        "group": "default",
        "owner": "node2",
    }


def test_a_drop_has_its_reason() -> None:
    (event,) = told(sampler(), sample_of(SYN, Verdict.DROP, Reason.DROP_NO_RULE, rule=0))

    assert (event["verdict"], event["reason"], event["rule"], event["bucket"]) == ("drop", "drop-no-rule", None, None)


@pytest.mark.parametrize(
    ("layers", "client", "vip", "reason"),
    [
        (ARP(op=2, psrc=VIP, pdst=CLIENT), CLIENT, VIP, Reason.ARP_ANSWERED),
        (IPv6(src=VIP6, dst=CLIENT6) / ICMPv6ND_NA(tgt=VIP6), CLIENT6, VIP6, Reason.ND_ANSWERED),
    ],
)
def test_an_answer_of_the_filter_is_told_as_the_clients(layers: Layers, client: str, vip: str, reason: Reason) -> None:
    (event,) = told(sampler(), sample_of(layers, Verdict.TX, reason, rule=0))

    assert (event["verdict"], event["reason"]) == ("tx", reason.value)
    assert (event["client"], event["vip"], event["bucket"]) == (client, vip, 2210)


def test_a_frame_that_cannot_be_read_is_left_out() -> None:
    assert told(sampler(), sample_of(Raw(b"x" * 60))) == []


def test_events_come_in_the_order_of_their_times_and_not_too_early() -> None:
    of = sampler()
    for at_ns in (30, 10, 20):
        of.receive(sample_of(SYN, at_ns=at_ns))

    assert list(of.settle(SETTLED_NS)) == []
    assert [event.at_ns for event in of.settle(SETTLED_NS + 20)] == [10, 20]
    assert [event.at_ns for event in of.settle(SETTLED_NS + 30)] == [30]


@pytest.mark.parametrize("kind", [Kind.RESET_RECEIVED, Kind.RETRANSMIT, Kind.RESET_SENT])
def test_kernel_events_name_the_client_whichever_side_told_them(kind: Kind) -> None:
    (event,) = told(sampler(), tuple_record(kind, VIP, 80, CLIENT, 40000))

    assert (event["type"], event["client"], event["port"]) == (kind.name.lower().replace("_", "-"), CLIENT, 40000)
    assert (event["vip"], event["vport"], event["rule"], event["owner"]) == (VIP, 80, "web", "node2")


def test_a_drop_in_the_stack_has_the_kernels_reason() -> None:
    head = bytes(V4 / TCP(sport=4, dport=80, flags="A"))
    (event,) = told(sampler(), decode(raw_record(Kind.STACK_DROP, head, Form.IP, reason=3)))
    assert (event["type"], event["detail"], event["flags"]) == ("stack-drop", "no-socket", "ACK")

    (event,) = told(sampler(), decode(raw_record(Kind.STACK_DROP, head, Form.IP, reason=999)))
    assert event["detail"] == "999"
    assert told(sampler(), decode(raw_record(Kind.STACK_DROP, head, Form.IP, reason=1))) == []
    assert told(sampler(), decode(raw_record(Kind.STACK_DROP, b"\x45", Form.IP, reason=3))) == []


def test_owners_are_asked_for_once_a_second_and_by_what_the_rule_hashes() -> None:
    daemon, now = FakeDaemon(), [0]
    places = Places(FARM, cast(Client, daemon), lambda: now[0])
    web, _, api = FARM.rules
    places.of(packet(CLIENT, 1, VIP, 80, "tcp", ""), web)
    places.of(packet(CLIENT, 2, VIP, 80, "tcp", ""), web)
    assert daemon.asked == [(CLIENT, None, VIP, 80, "tcp")]
    places.of(packet(CLIENT, 1, VIP, 8080, "tcp", ""), api)
    places.of(packet(CLIENT, 2, VIP, 8080, "tcp", ""), api)
    assert [question[1] for question in daemon.asked] == [None, 1, 2]
    now[0] = 2_000_000_000
    places.of(packet(CLIENT, 1, VIP, 80, "tcp", ""), web)
    assert len(daemon.asked) == 4


def test_without_a_daemon_or_a_rule_there_is_no_owner() -> None:
    places = Places(FARM, cast(Client, FakeDaemon(down=True)), lambda: 0)
    assert places.of(packet(CLIENT, 1, VIP, 80, "tcp", ""), FARM.rules[0]).owner is None
    assert (
        Places(FARM, cast(Client, FakeDaemon()), lambda: 0).of(packet(CLIENT, 1, VIP, 9, "tcp", ""), None).bucket
        is None
    )


def test_pace() -> None:
    pace = Pace(2)
    assert [pace.allows(at) for at in (0, 1, 2, 1_000_000_000, 1_000_000_001)] == [True, True, False, True, True]
    assert (pace.told, pace.withheld) == (4, 1)


def test_the_pcap_is_readable_by_others(tmp_path: Path) -> None:
    frame = bytes(ETHER / SYN)
    with PcapFile(tmp_path / "t.pcap", HEAD_BYTES) as file:
        file.write(1_700_000_000_123_456_789, frame, 900)
    (read,) = rdpcap(str(tmp_path / "t.pcap"))
    assert bytes(read) == frame
    assert read.wirelen == 900
    assert float(read.time) == pytest.approx(1_700_000_000.123456789)
    with pytest.raises(FarmError, match="cannot be written"):
        PcapFile(tmp_path / "none" / "t.pcap", 1)


@pytest.mark.parametrize(
    ("client", "inside", "outside"),
    [
        ("203.0.113.0/24", "203.0.113.77", "203.0.114.1"),
        ("203.0.113.7/32", "203.0.113.7", "203.0.113.8"),
        ("2001:db8::/64", "2001:db8::ffff", "2001:db8:0:1::"),
        ("0.0.0.0/0", "1.2.3.4", "2001:db8::1"),
    ],
)
def test_clients_are_compared_as_the_probes_do(client: str, inside: str, outside: str) -> None:
    mask, value = program.client_words(ip_network(client))

    def matches(text: str) -> bool:
        words = struct.unpack("=QQ", program.mapped(ip_address(text)))
        return all(word & bits == wanted for word, bits, wanted in zip(words, mask, value, strict=True))

    assert matches(inside)
    assert not matches(outside)


def test_code_of_a_kernel_function_ends_where_the_next_begins() -> None:
    symbols = [
        "ffffffff81000100 T do_xdp_generic",
        "ffffffff81000100 T an_alias",
        "ffffffff81000180 t next_one",
        "ffffffff81000900 t do_xdp_generic.cold",
        "ffffffff81000920 t last",
        "ffffffff81000010 d do_xdp_generic",
    ]
    first, cold = program.code_of(("do_xdp_generic",), symbols)
    assert first == (0xFFFFFFFF81000100, 0xFFFFFFFF81000180)
    assert cold == (0xFFFFFFFF81000900, 0xFFFFFFFF81000920)
    hidden = [f"{'0' * 16} {line.split(maxsplit=1)[1]}" for line in symbols]
    assert program.code_of(("do_xdp_generic",), hidden) == []


def test_an_event_has_no_frame_unless_it_is_about_one() -> None:
    assert Event(1, {}).head == b""
