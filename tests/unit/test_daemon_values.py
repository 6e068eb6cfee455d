# SPDX-License-Identifier: Apache-2.0
"""What the daemon computes: reports, status, the census of sockets, and answers to `explain`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import ICMPv6EchoRequest, IPerror6, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether

from farmd.daemon.connections import take_census
from farmd.daemon.explain import explain
from farmd.daemon.probeframe import Flow, probe_frames
from farmd.daemon.report import decode_report, encode_report
from farmd.daemon.status import LocalFacts, farm_status
from farmd.dataplane.filter import Probe
from farmd.dataplane.reasons import Reason, Verdict
from farmd.model.answers import Explanation
from farmd.model.config import Profile
from farmd.model.errors import BadRequest, NotFound
from farmd.model.nodes import NodeId
from farmd.model.planes import Planes
from farmd.model.question import PacketKind, Question
from farmd.model.rules import Address, Affinity, Protocol, Rule
from farmd.model.siphash import bucket_of

from . import farms

NOW_NS = 10**12 - 4 * 10**8
CLIENT = ip_address("203.0.113.7")


@dataclass(frozen=True)
class Socket:
    vip: Address
    vport: int
    client: Address
    cport: int
    lingering: bool = False


def test_a_report_survives_its_json_form() -> None:
    report = farms.report(farms.view(drained=frozenset({NodeId(2)})))

    assert report == decode_report(json.loads(json.dumps(encode_report(report))))


def test_a_report_without_a_view_survives_too() -> None:
    report = farms.report(None)

    assert report == decode_report(json.loads(json.dumps(encode_report(report))))


def test_status_shows_shares_that_add_up() -> None:
    status = farm_status(farms.config(), farms.report(farms.view()), NOW_NS, LocalFacts(()))

    shares = [member["groups"][0]["buckets"] for member in status["members"]]
    assert sum(shares) == 4096
    assert max(shares) - min(shares) <= 1
    assert status["lease"] == {"left_seconds": 0.4, "valid": True}
    assert status["problems"] == []


def test_status_names_a_lost_lease_and_missing_peers() -> None:
    report = farms.report(farms.view(), deadline_ns=0)
    lonely = decode_report({**encode_report(report), "peers": encode_report(report)["peers"][:1]})

    status = farm_status(farms.config(), lonely, NOW_NS, LocalFacts(()))

    texts = [problem["text"] for problem in status["problems"]]
    assert texts[0] == "node1 has no lease: its filter accepts nothing"
    assert "node2 is unseen" in texts
    assert status["lease"]["valid"] is False


def test_status_says_when_exclusion_cannot_be_promised() -> None:
    config = farms.config(profile=Profile.AVAILABLE)

    status = farm_status(config, farms.report(farms.view(), exclusive=False), NOW_NS, LocalFacts(()))

    assert any("exclusive=false" in problem["text"] for problem in status["problems"])


def test_a_drained_node_weighs_nothing_but_keeps_its_weight() -> None:
    status = farm_status(
        farms.config(), farms.report(farms.view(drained=frozenset({NodeId(1)}))), NOW_NS, LocalFacts(())
    )

    group = status["members"][1]["groups"][0]
    assert (group["weight"], group["effective_weight"], group["buckets"]) == (100, 0, 0)


def test_the_census_counts_what_a_drain_waits_for() -> None:
    config = farms.config()
    moved, kept = ip_address("203.0.113.1"), ip_address("203.0.113.2")
    moved_bit = 1 << bucket_of(farms.KEY, Affinity.CLIENT_IP, moved, 0)
    empty_bit = 1 << (moved_bit.bit_length() % 4096)
    planes = (Planes(held=moved_bit | empty_bit), Planes())
    sockets = [
        Socket(farms.VIP4, 80, moved, 40000),
        Socket(farms.VIP4, 80, kept, 40001),
        Socket(farms.VIP4, 22, kept, 1),
    ]

    census = take_census(sockets, config.rules, planes, farms.KEY, bucket_of)

    assert (census.established, census.held) == (2, 1)
    assert census.forgettable == (empty_bit, 0)


def test_a_lingering_socket_keeps_its_bucket_but_is_no_connection() -> None:
    bit = 1 << bucket_of(farms.KEY, Affinity.CLIENT_IP, CLIENT, 0)
    planes = (Planes(held=bit), Planes())

    census = take_census(
        [Socket(farms.VIP4, 80, CLIENT, 40000, lingering=True)], farms.config().rules, planes, farms.KEY, bucket_of
    )

    assert (census.established, census.held, census.forgettable) == (0, 0, (0, 0))


@pytest.mark.parametrize("vip", [farms.VIP4, farms.VIP6])
@pytest.mark.parametrize("protocol", list(Protocol))
def test_scapy_reads_the_probe_frame_as_we_mean_it(vip: Address, protocol: Protocol) -> None:
    client = CLIENT if vip.version == 4 else ip_address("2001:db8::7")

    flow = Flow(client, 40000, vip, 80, protocol)
    (raw,) = probe_frames(bytes.fromhex("02fa12000001"), flow, PacketKind.OPENING, 7)
    frame = Ether(raw)

    header = frame[IP if vip.version == 4 else IPv6]
    transport = frame[TCP if protocol is Protocol.TCP else UDP]
    assert frame.dst == "02:fa:12:00:00:01"
    assert (header.src, header.dst) == (str(client), str(vip))
    assert (transport.sport, transport.dport) == (40000, 80)
    if protocol is Protocol.TCP:
        assert transport.flags == "S"
    assert len(bytes(header)) == len(bytes(frame)) - 14, "the length fields cover the whole frame"


@pytest.mark.parametrize("vip", [farms.VIP4, farms.VIP6])
@pytest.mark.parametrize("protocol", list(Protocol))
def test_scapy_reads_probes_of_fragments_as_we_mean_them(vip: Address, protocol: Protocol) -> None:
    client = CLIENT if vip.version == 4 else ip_address("2001:db8::7")
    flow = Flow(client, 40000, vip, 80, protocol)

    pieces = [Ether(raw) for raw in probe_frames(bytes(6), flow, PacketKind.LATER_FRAGMENT, 4711)]

    transport = pieces[0][TCP if protocol is Protocol.TCP else UDP]
    assert (transport.sport, transport.dport) == (40000, 80)
    header = IP if vip.version == 4 else IPv6ExtHdrFragment
    field = "frag" if vip.version == 4 else "offset"
    assert [piece[header].id for piece in pieces] == [4711, 4711]
    assert [getattr(piece[header], field) * 8 for piece in pieces] == [0, len(bytes(transport))]
    (lost,) = probe_frames(bytes(6), flow, PacketKind.LOST_FRAGMENT, 4711)
    assert lost == bytes(pieces[1])


@pytest.mark.parametrize("vip", [farms.VIP4, farms.VIP6])
def test_scapy_reads_probes_of_icmp_as_we_mean_them(vip: Address) -> None:
    client = CLIENT if vip.version == 4 else ip_address("2001:db8::7")
    flow = Flow(client, 40000, vip, 80, Protocol.TCP)

    (error,) = probe_frames(bytes(6), flow, PacketKind.ICMP_ERROR, 0)
    (echo,) = probe_frames(bytes(6), flow, PacketKind.ECHO, 0)

    ours = Ether(error)[IPerror if vip.version == 4 else IPerror6]
    assert (ours.src, ours.dst) == (str(vip), str(client))
    assert (ours.payload.sport, ours.payload.dport) == (80, 40000)
    assert (ICMP if vip.version == 4 else ICMPv6EchoRequest) in Ether(echo)


def ask(client: str = "203.0.113.7", port: int | None = None, vport: int | None = None) -> Question:
    vip = None if vport is None else farms.VIP4
    return Question(ip_address(client), port, vip, vport, None)


def test_explain_names_bucket_owner_and_proof() -> None:
    view = farms.view()
    bucket = bucket_of(farms.KEY, Affinity.CLIENT_IP, CLIENT, 0)
    owner = view.owner(0, bucket)
    seen: list[bytes] = []

    def probe(frame: bytes) -> Probe:
        seen.append(frame)
        return Probe(Verdict.PASS if owner == 0 else Verdict.DROP, frame, None, 1)

    answer = explain(farms.config(), farms.KEY, farms.report(view), ask(), probe, NOW_NS)

    assert answer["bucket"] == bucket
    assert answer["owner"] == f"node{(owner or 0) + 1}"
    assert answer["rule"] == "web"
    assert answer["proof"] is not None
    assert answer["proof"]["agrees"] is True
    assert Ether(seen[0])[TCP].dport == 80


def test_explain_reports_a_program_that_disagrees() -> None:
    view = farms.view()
    owner = view.owner(0, bucket_of(farms.KEY, Affinity.CLIENT_IP, CLIENT, 0))
    wrong = Verdict.DROP if owner == 0 else Verdict.PASS

    answer = explain(farms.config(), farms.KEY, farms.report(view), ask(), lambda f: Probe(wrong, f, None, 1), NOW_NS)

    assert answer["proof"] is not None
    assert answer["proof"]["agrees"] is False


def test_explain_hashes_the_port_where_the_rule_does() -> None:
    buckets = {
        explain(farms.config(), farms.KEY, farms.report(farms.view()), ask(port=port, vport=8080), None, NOW_NS)[
            "bucket"
        ]
        for port in range(40000, 40020)
    }

    assert len(buckets) > 10


def test_explain_refuses_a_service_that_no_rule_names() -> None:
    with pytest.raises(NotFound) as caught:
        explain(farms.config(), farms.KEY, farms.report(farms.view()), ask(vport=443), None, NOW_NS)

    assert "no rule serves it" in caught.value.cause
    assert "10.77.0.100:80/tcp" in caught.value.next_step


RANGES = (
    Rule(1, "api", farms.VIP4, Protocol.TCP, 8000, Affinity.CLIENT_NETWORK, 1, 8099),
    Rule(2, "dns", farms.VIP4, Protocol.UDP, 53, Affinity.PACKET_ID, 0),
    Rule(3, "web", farms.VIP6, Protocol.TCP, 80, Affinity.CLIENT_IP_PORT, 0),
    Rule(4, "ssh", farms.VIP6, Protocol.TCP, 22, Affinity.CLIENT_IP, 0),
)
RANGED = replace(farms.config(), rules=RANGES)


def explained(question: Question) -> Explanation:
    return explain(RANGED, farms.KEY, farms.report(farms.view()), question, None, NOW_NS)


def test_explain_finds_the_rule_of_a_range_and_hashes_the_network() -> None:
    answers = [explained(Question(ip_address(f"203.0.113.{n}"), 4711, farms.VIP4, 8042)) for n in (7, 8)]

    assert {(each["rule"], each.get("ports"), each["vport"]) for each in answers} == {("api", "8000-8099", 8042)}
    assert {each["key"] for each in answers} == {"203.0.113.0/24"}
    assert len({each["bucket"] for each in answers}) == 1


@pytest.mark.parametrize("packet", [PacketKind.OPENING, PacketKind.FIRST_FRAGMENT, PacketKind.LOST_FRAGMENT])
def test_explain_places_a_datagram_by_its_id_as_all_its_fragments(packet: PacketKind) -> None:
    answer = explained(Question(CLIENT, 5353, farms.VIP4, 53, Protocol.UDP, packet, 4711))

    assert answer["bucket"] == bucket_of(farms.KEY, Affinity.PACKET_ID, CLIENT, 4711)
    assert answer["key"] == f"{CLIENT} packet id 4711"


def test_explain_sends_an_icmp_error_about_a_datagram_by_address() -> None:
    answer = explained(Question(CLIENT, 5353, farms.VIP4, 53, Protocol.UDP, PacketKind.ICMP_ERROR, 4711))

    assert answer["bucket"] == bucket_of(farms.KEY, Affinity.CLIENT_IP, CLIENT, 0)


def test_explain_says_that_nobody_can_place_a_lost_fragment_if_rules_differ() -> None:
    question = Question(ip_address("fd77::7"), 5353, farms.VIP6, 80, Protocol.TCP, PacketKind.LOST_FRAGMENT)
    dropped = [Probe(Verdict.DROP, b"", Reason.DROP_FRAGMENT_UNKNOWN)]

    answer = explain(RANGED, farms.KEY, farms.report(farms.view()), question, lambda _: dropped[0], NOW_NS)

    assert (answer["owner"], answer["rule"]) == (None, None)
    assert "first fragment" in answer["why"]
    assert answer["proof"] is not None
    assert answer["proof"]["agrees"]


def test_explain_tells_who_answers_a_ping() -> None:
    answer = explained(Question(CLIENT, None, farms.VIP4, packet=PacketKind.ECHO))

    assert (answer["rule"], answer["vport"], answer["affinity"]) == (None, None, "client-ip")
    assert answer["bucket"] == bucket_of(farms.KEY, Affinity.CLIENT_IP, CLIENT, 0)


def test_an_ipv4_id_has_16_bits() -> None:
    with pytest.raises(BadRequest, match="16 bits"):
        explained(Question(CLIENT, 1, farms.VIP4, 53, Protocol.UDP, identification=1 << 16))


def test_the_census_finds_the_rule_of_a_range() -> None:
    bucket = bucket_of(farms.KEY, Affinity.CLIENT_NETWORK, CLIENT, 0)
    planes = (Planes(), Planes(held=1 << bucket | 1 << (bucket + 1) % 4096))

    census = take_census([Socket(farms.VIP4, 8042, CLIENT, 40000)], RANGES, planes, farms.KEY, bucket_of)

    assert (census.established, census.held) == (1, 1)
    assert census.forgettable == (0, 1 << (bucket + 1) % 4096)
