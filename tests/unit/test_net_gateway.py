# SPDX-License-Identifier: Apache-2.0
"""The question whether a gateway is there: frames as scapy reads them, and a real neighbour that answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts
from farmd.net import interfaces, neighbour
from farmd.net.gateway import reachable
from tests.unit.namespaces import Namespace

MAC, OTHER_MAC = bytes.fromhex("02000000000a"), "02:00:00:00:00:0b"
ME4, GW4 = IPv4Address("10.1.0.1"), IPv4Address("10.1.0.254")
ME6, GW6 = IPv6Address("fd01::1"), IPv6Address("fd01::12:3456")


def test_an_arp_request_is_what_scapy_builds() -> None:
    expected = Ether(src=MAC.hex(":"), dst="ff:ff:ff:ff:ff:ff") / ARP(
        op="who-has", hwsrc=MAC.hex(":"), psrc=str(ME4), pdst=str(GW4)
    )

    assert neighbour.arp_request(MAC, ME4, GW4) == bytes(expected)
    assert ARP(neighbour.arp_request(MAC, None, GW4)[14:]).psrc == "0.0.0.0"


def test_a_solicitation_is_what_scapy_builds() -> None:
    expected = (
        Ether(src=MAC.hex(":"), dst="33:33:ff:12:34:56")
        / IPv6(src=str(ME6), dst="ff02::1:ff12:3456", hlim=255)
        / ICMPv6ND_NS(tgt=str(GW6))
        / ICMPv6NDOptSrcLLAddr(lladdr=MAC.hex(":"))
    )

    assert neighbour.solicitation(MAC, ME6, GW6) == bytes(expected)


def test_a_solicitation_without_a_source_carries_no_option() -> None:
    packet = Ether(neighbour.solicitation(MAC, None, GW6))

    assert packet[IPv6].src == "::"
    assert ICMPv6NDOptSrcLLAddr not in packet
    assert packet[ICMPv6ND_NS].tgt == str(GW6)


def arp_reply(**fields: object) -> bytes:
    reply: dict[str, Any] = {
        "op": "is-at",
        "hwsrc": OTHER_MAC,
        "psrc": str(GW4),
        "hwdst": MAC.hex(":"),
        "pdst": str(ME4),
    }
    return bytes(Ether(src=OTHER_MAC, dst=MAC.hex(":")) / ARP(**reply | fields))


def test_only_the_gateways_own_reply_is_an_answer() -> None:
    assert neighbour.is_arp_reply(arp_reply(), GW4)
    assert neighbour.is_arp_reply(arp_reply() + bytes(18), GW4)  # padded to the minimum of Ethernet
    assert not neighbour.is_arp_reply(arp_reply(op="who-has"), GW4)
    assert not neighbour.is_arp_reply(arp_reply(psrc="10.1.0.253"), GW4)
    assert not neighbour.is_arp_reply(arp_reply(hwtype=6), GW4)


def advertisement(hlim: int = 255, target: IPv6Address = GW6, checksum: int | None = None) -> bytes:
    message = ICMPv6ND_NA(tgt=str(target), R=1, S=1, cksum=checksum) / ICMPv6NDOptDstLLAddr(lladdr=OTHER_MAC)
    header = IPv6(src=str(GW6), dst=str(ME6), hlim=hlim)
    return bytes(Ether(src=OTHER_MAC, dst=MAC.hex(":")) / header / message)


def test_only_a_valid_advertisement_is_an_answer() -> None:
    assert neighbour.is_advertisement(advertisement(), GW6)
    assert not neighbour.is_advertisement(advertisement(hlim=254), GW6)
    assert not neighbour.is_advertisement(advertisement(target=ME6), GW6)
    assert not neighbour.is_advertisement(advertisement(checksum=1), GW6)
    assert not neighbour.is_advertisement(neighbour.solicitation(MAC, ME6, GW6), GW6)


@given(st.binary(max_size=120), st.integers(0, 120))
def test_any_bytes_are_read_without_an_error(noise: bytes, cut: int) -> None:
    for frame in (noise, arp_reply()[:cut], advertisement()[:cut], advertisement()[:cut] + noise):
        neighbour.is_arp_reply(frame, GW4)
        neighbour.is_advertisement(frame, GW6)


@pytest.fixture(scope="module")
def wire() -> Iterator[tuple[Namespace, Namespace, InterfaceFacts]]:
    with Namespace() as node, Namespace() as gateway:
        node.wire("eth0", gateway, "eth0")
        node.ip(f"address add {ME4}/24 dev eth0")
        node.ip(f"address add {ME6}/64 dev eth0 nodad")
        gateway.ip(f"address add {GW4}/24 dev eth0")
        gateway.ip(f"address add {GW6}/64 dev eth0 nodad")
        (facts,) = node.run(interfaces.facts, ["eth0"])
        yield node, gateway, facts


Wire = tuple[Namespace, Namespace, InterfaceFacts]


@pytest.mark.root
@pytest.mark.parametrize("source", [None, ME4, ME6])
@pytest.mark.parametrize("gateway", [GW4, GW6])
def test_a_gateway_that_is_there_answers_at_once(
    wire: Wire, gateway: IPv4Address | IPv6Address, source: IPv4Address | IPv6Address | None
) -> None:
    node, _, facts = wire
    before = time.monotonic()

    assert node.run(asyncio.run, reachable(gateway, facts, 6.0, source))

    assert time.monotonic() - before < 5


@pytest.mark.root
@pytest.mark.parametrize("nobody", ["10.1.0.77", "fd01::77"])
def test_a_gateway_that_is_not_there_does_not(wire: Wire, nobody: str) -> None:
    node, _, facts = wire

    assert not node.run(asyncio.run, reachable(ip_address(nobody), facts, 0.09, ME4))


@pytest.mark.root
def test_an_interface_that_is_down_reaches_nothing(wire: Wire) -> None:
    node, _, facts = wire
    node.ip("link set eth0 down")
    try:
        assert not node.run(asyncio.run, reachable(GW4, facts, 0.09, ME4))
    finally:
        node.ip("link set eth0 up")


def test_raw_sockets_that_are_refused_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    async def ask() -> bool:
        monkeypatch.setattr("socket.socket", refuse)  # only now: the event loop has sockets of its own
        return await reachable(GW4, InterfaceFacts("eth0", 2, MAC, "", "", 1500), 0.1)

    with pytest.raises(KernelError, match="may not open raw sockets"):
        asyncio.run(ask())
