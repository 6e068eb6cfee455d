# SPDX-License-Identifier: Apache-2.0
"""The lab's pure half: plans, texts, frames, verdicts. Needs no root."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from farmd.lab import packets, render
from farmd.lab.chapters import Promise
from farmd.lab.demo import summary
from farmd.lab.load import parse
from farmd.lab.observer import Asked, judge
from farmd.lab.packets import Announcement, Flow, read_announcement, read_syn, syn_frame
from farmd.lab.plan import FIRST_CLIENT_PORT, VIP, VIP6, VIRTUAL_MAC, LabPlan
from farmd.lab.probe import flows_of, owners, takeover
from farmd.model import farmfile
from farmd.model.config import Profile
from farmd.model.errors import FarmError
from farmd.model.nodes import Role

MAC1, MAC2 = bytes.fromhex("02fa00010001"), bytes.fromhex("02fa00010002")
FLOW = Flow(ip_address("10.77.0.201"), 2000, VIP, 81)
FLOW6 = Flow(ip_address("fd77::201"), 2000, VIP6, 81)


@pytest.mark.parametrize(
    "shape",
    [{"name": "Upper"}, {"name": "a-b"}, {"name": "toolongname"}, {"nodes": 0}, {"networks": 3}, {"clients": 0}],
)
def test_impossible_shapes_are_refused(shape: dict[str, object]) -> None:
    with pytest.raises(FarmError, match=r"Use|Ask"):
        LabPlan(**shape)  # type: ignore[arg-type]


def test_a_name_never_owns_another_labs_namespaces() -> None:
    plan = LabPlan("a")
    assert plan.owns_namespace("fl-a-n12")
    assert plan.owns_namespace(plan.switch)
    assert not any(plan.owns_namespace(name) for name in ("fl-ab-n1", "fl-a-b-n1", "fl-a-", "x-fl-a-n1", "fl-a-n1x"))


def test_hosts_are_distinct_and_found_by_either_name() -> None:
    plan = LabPlan("a", nodes=5, networks=2, witness=True)
    macs = [link.mac for host in plan.hosts for link in host.links]
    addresses = [address for host in plan.hosts for link in host.links for address in link.addresses]
    assert len(set(macs)) == len(macs)
    assert len(set(addresses)) == len(addresses)
    assert plan.host("n2") is plan.host("node2")
    assert plan.node_of_mac(plan.host("n2").links[1].mac) == "node2"
    with pytest.raises(FarmError, match="node1"):
        plan.host("nobody")


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("host", ["node1", "witness"])
def test_farm_toml_is_what_farmd_reads(host: str, profile: Profile) -> None:
    plan = LabPlan("a", nodes=2, networks=2, witness=True, profile=profile, timing="fast")
    if profile is Profile.AVAILABLE:
        plan = LabPlan("a", nodes=2, networks=2, profile=profile, timing="fast")
        host = "node1"
    config = farmfile.parse(render.farm_toml(plan, plan.host(host)), Path("farm.toml"))
    assert config.me.name == host
    assert config.me.role is (Role.WITNESS if host == "witness" else Role.NODE)
    assert config.virtual_mac == VIRTUAL_MAC
    assert config.vips == (VIP, VIP6)
    assert [len(member.addresses) for member in config.members] == [2] * len(plan.members)
    assert {(rule.vip, rule.port) for rule in config.rules} == {(vip, port) for vip in (VIP, VIP6) for port in (80, 81)}


def test_a_split_cuts_every_pair_between_groups_and_none_within() -> None:
    plan = LabPlan("a", clients=1)
    pairs = render.split_pairs(plan, [["node1"], ["node2", "gateway"]])
    assert ("node1", "node2") in pairs
    assert ("node2", "client1") in pairs, "hosts that no group names belong to the first"
    assert ("gateway", "node1") in pairs
    assert not {("node1", "client1"), ("node2", "gateway"), ("node1", "node3")} & set(pairs)
    with pytest.raises(FarmError, match="two groups"):
        render.split_pairs(plan, [["node1"], ["n1"]])


@pytest.mark.parametrize("flow", [FLOW, FLOW6])
def test_syn_frames_are_read_back(flow: Flow) -> None:
    frame = syn_frame(flow, 0xFFFFFFFF, MAC1, VIRTUAL_MAC)
    segment = read_syn(frame)
    assert segment is not None
    assert (segment.flow, segment.sequence, segment.answer, segment.source_mac) == (flow, 0xFFFFFFFF, False, MAC1)


def test_syn_frames_are_what_scapy_would_make() -> None:
    from scapy.layers.l2 import Ether

    for flow in (FLOW, FLOW6):
        frame = syn_frame(flow, 7, MAC1, VIRTUAL_MAC)
        packet = Ether(frame)
        for layer in ("IP", "TCP"):
            if packet.haslayer(layer):
                packet[layer].chksum = None
        assert bytes(packet) == frame


def test_answers_are_matched_across_the_wrap_of_sequence_numbers() -> None:
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    answer = Ether(src=MAC2.hex(":"), dst=MAC1.hex(":")) / IP(src=str(VIP), dst="10.77.0.201")
    segment = read_syn(bytes(answer / TCP(sport=81, dport=2000, flags="SA", ack=0)))
    assert segment is not None
    assert (segment.flow, segment.answer, segment.sequence, segment.source_mac) == (FLOW, True, 0xFFFFFFFF, MAC2)
    assert read_syn(bytes(answer / TCP(sport=81, dport=2000, flags="A"))) is None


def test_announcements_are_read() -> None:
    from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
    from scapy.layers.l2 import ARP, Ether

    ether = Ether(src=MAC1.hex(":"), dst=MAC2.hex(":"))
    mac = VIRTUAL_MAC.hex(":")
    arp = ether / ARP(op=2, hwsrc=mac, psrc=str(VIP))
    na = ether / IPv6(src=str(VIP6)) / ICMPv6ND_NA(tgt=str(VIP6)) / ICMPv6NDOptDstLLAddr(lladdr=mac)
    assert read_announcement(bytes(arp)) == Announcement(VIP, VIRTUAL_MAC, MAC1)
    assert read_announcement(bytes(na)) == Announcement(VIP6, VIRTUAL_MAC, MAC1)
    assert read_announcement(bytes(ether / ARP(op=1))) is None


def test_the_capture_filter_jumps_stay_inside() -> None:
    assert len(packets.capture_filter()) == 8 * 16


def test_two_nodes_for_one_syn_is_a_double_and_a_repeat_is_none() -> None:
    plan = LabPlan("a")
    asked = [Asked(FLOW, 0, [(1, MAC1), (2, MAC2)]), Asked(FLOW, 3, [(4, MAC1), (5, MAC1)]), Asked(FLOW, 6)]
    seen = judge(plan, asked, [Announcement(VIP, MAC1, MAC1), Announcement(VIP, VIRTUAL_MAC, MAC1)], 0, 0)
    assert (seen.syns, seen.answered, seen.by_node) == (3, 2, {"node1": 2, "node2": 1})
    assert seen.doubles == len(seen.examples) == 1
    assert "node1 after" in seen.examples[0]
    assert "node2 after" in seen.examples[0]
    assert len(seen.wrong_announcements) == 1
    assert not seen.clean
    assert judge(plan, asked[1:], [], 0, 0).clean
    assert not judge(plan, asked[1:], [], 0, 1).clean, "a witness that looked away proves nothing"


def test_takeover_is_the_last_bucket_to_be_answered_again() -> None:
    other = Flow(FLOW.client, 2001, VIP, 81)
    ms = 1_000_000
    asked = [
        Asked(FLOW, 90 * ms, [(101 * ms, MAC1)]),  # asked before the fault: its answer proves nothing
        Asked(FLOW, 110 * ms),
        Asked(other, 400 * ms, [(401 * ms, MAC2)]),
        Asked(FLOW, 500 * ms, [(502 * ms, MAC2)]),
        Asked(other, 600 * ms, [(601 * ms, MAC2)]),
    ]
    assert owners(asked) == {FLOW: MAC2, other: MAC2}
    result = takeover(asked, [FLOW, other], 100 * ms)
    assert (result.first_ms, result.all_ms, result.sampled, result.silent) == (301.0, 402.0, 2, 0)
    waiting = takeover(asked[:3], [FLOW, other], 100 * ms)
    assert (waiting.first_ms, waiting.all_ms, waiting.silent) == (301.0, None, 1)


def test_probes_stay_below_the_clients_own_ports() -> None:
    flows = flows_of(LabPlan("a"), 3)
    assert len(set(flows)) == len(flows) == 3 * 24
    assert max(flow.port for flow in flows) < FIRST_CLIENT_PORT
    real = Flow(FLOW.client, FIRST_CLIENT_PORT, VIP, 81)
    assert owners([Asked(flows[0], 0, [(1, MAC1)]), Asked(real, 0, [(1, MAC1)])]) == {flows[0]: MAC1}


def test_wrk_reports_are_read() -> None:
    text = """  1000 requests in 2.00s, 200KB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec:    500.25
"""
    result = parse(text)
    assert (result.succeeded, result.failed, result.per_second) == (995, 15, 500.25)
    with pytest.raises(FarmError, match="no report"):
        parse("unable to connect to 10.77.0.100:81 Connection refused")


def test_the_demos_table_says_what_did_not_hold() -> None:
    kept, broken = Promise("a", kept=True, seen="x"), Promise("b", kept=False, seen="y")
    assert "every promise held" in summary([kept], 1.0)
    assert "1 of 2 promises did not hold" in summary([kept, broken], 1.0)
