# SPDX-License-Identifier: Apache-2.0
"""Who has the VIP? One node answers, with the virtual MAC in the answer and its own on the frame."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from tests.packet.rig import (
    CLIENT4,
    CLIENT6,
    CLIENT_MAC,
    NODE4,
    NODE6,
    NODE_MAC,
    VIP4,
    VIP6,
    VIRTUAL_MAC,
    Rig,
    bucket_bit,
    expect,
)

pytestmark = pytest.mark.root

BROADCAST = "ff:ff:ff:ff:ff:ff"
SOLICITED_MAC, SOLICITED = "33:33:ff:00:01:00", "ff02::1:ff00:100"
OTHERS = (1 << 4096) - 1


def arp(
    sender: str = CLIENT4, target: str = VIP4, op: int = 1, to: str = BROADCAST, tags: Packet | None = None
) -> bytes:
    ether = Ether(dst=to, src=CLIENT_MAC)
    question = ARP(op=op, hwsrc=CLIENT_MAC, psrc=sender, hwdst="00:00:00:00:00:00", pdst=target)
    return bytes(ether / tags / question if tags else ether / question)


def solicitation(
    source: str = CLIENT6,
    to: str = SOLICITED,
    target: str = VIP6,
    hops: int = 255,
    options: Packet | None = ICMPv6NDOptSrcLLAddr(lladdr=CLIENT_MAC),  # noqa: B008 - an immutable part of a frame
    tags: Packet | None = None,
) -> bytes:
    ether = Ether(dst=SOLICITED_MAC if to.startswith("ff") else VIRTUAL_MAC, src=CLIENT_MAC)
    packet = IPv6(src=source, dst=to, hlim=hops) / ICMPv6ND_NS(tgt=target)
    if options is not None:
        packet = packet / options
    return bytes(ether / tags / packet if tags else ether / packet)


def advertisement(to: str = CLIENT6, mac: str = CLIENT_MAC, solicited: int = 1, tags: Packet | None = None) -> bytes:
    ether = Ether(dst=mac, src=NODE_MAC)
    packet = (
        IPv6(src=VIP6, dst=to, hlim=255)
        / ICMPv6ND_NA(tgt=VIP6, R=0, S=solicited, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=VIRTUAL_MAC)
    )
    return bytes(ether / tags / packet if tags else ether / packet)


def expect_answer(rig: Rig, question: bytes, reason: str, answer: bytes) -> None:
    told = rig.judge(question)
    assert (told.verdict, told.reason, told.rule) == ("tx", reason, 0)
    assert Ether(told.frame).show(dump=True) == Ether(answer).show(dump=True)
    assert told.frame == answer


@pytest.mark.parametrize("tags", [None, Dot1Q(vlan=5), Dot1AD(vlan=5) / Dot1Q(vlan=6)], ids=["plain", "VLAN", "QinQ"])
@pytest.mark.parametrize(
    ("sender", "to"),
    [(CLIENT4, BROADCAST), (CLIENT4, VIRTUAL_MAC), ("0.0.0.0", BROADCAST)],
    ids=["ask", "check", "probe"],
)
def test_arp(rig: Rig, sender: str, to: str, tags: Packet | None) -> None:
    question = arp(sender, to=to, tags=tags)
    reply = ARP(op=2, hwsrc=VIRTUAL_MAC, psrc=VIP4, hwdst=CLIENT_MAC, pdst=sender)
    ether = Ether(dst=CLIENT_MAC, src=NODE_MAC)
    expect_answer(rig, question, "arp-answered", bytes(ether / tags / reply if tags else ether / reply))


@pytest.mark.parametrize("sender", [CLIENT4, "0.0.0.0"])
def test_arp_is_answered_by_the_owner_of_the_askers_bucket(rig: Rig, sender: str) -> None:
    bit = bucket_bit(sender)
    question = arp(sender)

    rig.state("own", buckets=OTHERS ^ bit)
    expect(rig.judge(question), question, "arp-not-owner")
    rig.state("own", groups=(1,))
    expect(rig.judge(question), question, "arp-not-owner")
    rig.state("held")
    expect(rig.judge(question), question, "arp-not-owner")
    for state in ("own", "own+fresh"):
        rig.state(state, buckets=bit, groups=(0,))
        assert rig.judge(question).reason == "arp-answered"


ARP_OF_OTHERS = {
    "another address": arp(target=NODE4),
    "an answer for another address": arp(target=NODE4, op=2),
    "the VIP asks": arp(sender=VIP4, target=NODE4),
    "not Ethernet": bytes(Ether(src=CLIENT_MAC) / ARP(hwtype=6, pdst=VIP4)),
    "not IPv4": bytes(Ether(src=CLIENT_MAC) / ARP(ptype=0x86DD, plen=4, pdst=VIP4)),
    "cut short": arp()[:41],
}


@pytest.mark.parametrize("name", ARP_OF_OTHERS)
def test_other_arp_passes(rig: Rig, name: str) -> None:
    expect(rig.judge(ARP_OF_OTHERS[name]), ARP_OF_OTHERS[name], None)


def test_somebody_else_has_our_address(rig: Rig) -> None:
    for op in (1, 2):
        claim = arp(sender=VIP4, op=op)
        expect(rig.judge(claim), claim, "arp-claim")


def test_arp_that_makes_no_sense(rig: Rig) -> None:
    answer = arp(op=2)
    expect(rig.judge(answer), answer, "drop-malformed")
    from_a_group = answer[:6] + b"\x01" + arp()[7:]
    expect(rig.judge(from_a_group), from_a_group, "drop-malformed")


ND: dict[str, tuple[bytes, bytes]] = {
    "ask": (solicitation(), advertisement()),
    "check": (solicitation(to=VIP6), advertisement()),
    "no option": (solicitation(to=VIP6, options=None), advertisement()),
    "two options": (
        solicitation(
            options=ICMPv6NDOptSrcLLAddr(lladdr=CLIENT_MAC) / ICMPv6NDOptUnknown(type=14, len=1, data=bytes(6))
        ),
        advertisement(),
    ),
    "probe": (
        solicitation("::", options=None),
        advertisement("ff02::1", "33:33:00:00:00:01", 0),
    ),
    "VLAN": (solicitation(tags=Dot1Q(vlan=5)), advertisement(tags=Dot1Q(vlan=5))),
    "QinQ, no option": (
        solicitation(options=None, tags=Dot1AD(vlan=5) / Dot1Q(vlan=6)),
        advertisement(tags=Dot1AD(vlan=5) / Dot1Q(vlan=6)),
    ),
    "padded": (solicitation() + bytes(10), advertisement()),
}


@pytest.mark.parametrize("name", ND)
def test_neighbour_discovery(rig: Rig, name: str) -> None:
    question, answer = ND[name]
    expect_answer(rig, question, "nd-answered", answer)


@pytest.mark.parametrize("source", [CLIENT6, "::"])
@pytest.mark.parametrize("to", [SOLICITED, VIP6])
def test_nd_is_answered_by_the_owner_of_the_askers_bucket(rig: Rig, source: str, to: str) -> None:
    bit = bucket_bit(source)
    question = solicitation(source, to)

    for state, buckets in (("own", OTHERS ^ bit), ("held", OTHERS), ("none", OTHERS)):
        rig.state(state, buckets=buckets)
        expect(rig.judge(question), question, "nd-not-owner")
    rig.state("own", buckets=bit, groups=(0,))
    assert rig.judge(question).reason == "nd-answered"


@pytest.mark.parametrize(
    "frame",
    [solicitation(target=NODE6), solicitation(to=NODE6, target=NODE6), solicitation(to="ff02::1", target=NODE6)],
    ids=["same group", "unicast", "all nodes"],
)
def test_other_nd_passes(rig: Rig, frame: bytes) -> None:
    expect(rig.judge(frame), frame, None)


def test_nd_that_was_routed_is_not_believed(rig: Rig) -> None:
    frame = solicitation(hops=254)
    expect(rig.judge(frame), frame, "drop-malformed")


@pytest.mark.parametrize("ask", [arp, solicitation])
def test_nobody_answers_when_the_lease_is_over(rig: Rig, ask: Callable[[], bytes]) -> None:
    rig.control.renew(0)
    frame = ask()
    expect(rig.judge(frame), frame, "drop-lease-over")
