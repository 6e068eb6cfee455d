# SPDX-License-Identifier: Apache-2.0
"""Asks on the wire who has the VIPs, and listens to everybody who says so."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts
from farmd.model.rules import Address
from farmd.net import neighbour

_ATTEMPTS = 3
_PATIENCE_S = 0.3
"""After each attempt: a host that defends its address answers within milliseconds."""
_FRAME_BYTES = 2048
_ADVERTISED_AT = 14 + 40 + 24
_TARGET_MAC_OPTION = 2


def claims(vips: Sequence[Address], link: InterfaceFacts, source: IPv6Address | None) -> dict[Address, set[bytes]]:
    """The MACs that hosts on `link` give for each of `vips`, the farm's own included. Raises KernelError.

    IPv4 is asked as RFC 5227 probes do, without a source; IPv6 with `source`, an address of this node.
    """
    found: dict[Address, set[bytes]] = {vip: set() for vip in vips}
    try:
        for version, protocol in ((4, neighbour.ETH_P_ARP), (6, neighbour.ETH_P_IPV6)):
            asked = [vip for vip in vips if vip.version == version]
            if asked:
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as wire:
                    wire.bind((link.name, protocol))
                    _ask(wire, asked, link, source, found)
    except OSError as error:
        step = "Run as root, or with CAP_NET_RAW, while the interface is up"
        raise KernelError(f"interface {link.name}", f"it cannot be asked about VIPs: {error.strerror}", step) from error
    return found


def _ask(
    wire: socket.socket,
    asked: Sequence[Address],
    link: InterfaceFacts,
    source: IPv6Address | None,
    found: dict[Address, set[bytes]],
) -> None:
    for _ in range(_ATTEMPTS):
        for vip in asked:
            wire.send(_question(vip, link.mac, source))
        end = time.monotonic() + _PATIENCE_S
        while (left := end - time.monotonic()) > 0 and select.select([wire], [], [], left)[0]:
            claim = read_claim(wire.recv(_FRAME_BYTES), asked)
            if claim is not None:
                found[claim[0]].add(claim[1])


def _question(vip: Address, mac: bytes, source: IPv6Address | None) -> bytes:
    if isinstance(vip, IPv4Address):
        return neighbour.arp_request(mac, None, vip)
    return neighbour.solicitation(mac, source, vip)


def read_claim(frame: bytes, vips: Sequence[Address]) -> tuple[Address, bytes] | None:
    """Which VIP a frame announces, and at which MAC; None if it announces none of them."""
    for vip in vips:
        if isinstance(vip, IPv4Address) and neighbour.is_arp_reply(frame, vip):
            return vip, frame[22:28]
        if isinstance(vip, IPv6Address) and neighbour.is_advertisement(frame, vip):
            option = frame[_ADVERTISED_AT : _ADVERTISED_AT + 8]
            return vip, option[2:] if option[:1] == bytes([_TARGET_MAC_OPTION]) else frame[6:12]
    return None
