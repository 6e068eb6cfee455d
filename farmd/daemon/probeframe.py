# SPDX-License-Identifier: Apache-2.0
"""The smallest frame that asks the filter a question: one TCP SYN or UDP datagram from a client to a VIP.

Only what the filter reads is right: checksums stay zero, as XDP runs before anything verifies them.
"""

from __future__ import annotations

import struct

from farmd.model.rules import PROTOCOL_NUMBER, Address, Protocol

_ETH_IPV4, _ETH_IPV6 = 0x0800, 0x86DD
_CLIENT_MAC = bytes.fromhex("02fa00000001")
_TCP_SYN = 0x02
_PAYLOAD = bytes(22)
"""Pads a UDP frame past Ethernet's 60 bytes; the kernel's test run refuses frames that are too short."""


def probe_frame(virtual_mac: bytes, client: Address, port: int, vip: Address, vport: int, protocol: Protocol) -> bytes:
    """An Ethernet frame from `client` to `vip`; both addresses are of one family.

    Raises:
        ValueError: the families differ.
    """
    if client.version != vip.version:
        raise ValueError(f"{client} and {vip} are of different families")
    if protocol is Protocol.TCP:
        transport = struct.pack("!HHIIBBHHH", port, vport, 1, 0, 5 << 4, _TCP_SYN, 65535, 0, 0)
    else:
        transport = struct.pack("!HHHH", port, vport, 8 + len(_PAYLOAD), 0) + _PAYLOAD
    if client.version == 4:
        ethertype, header = _ETH_IPV4, _ipv4_header(client, vip, protocol, len(transport))
    else:
        ethertype, header = _ETH_IPV6, _ipv6_header(client, vip, protocol, len(transport))
    return virtual_mac + _CLIENT_MAC + struct.pack("!H", ethertype) + header + transport


def _ipv4_header(client: Address, vip: Address, protocol: Protocol, length: int) -> bytes:
    fixed = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, PROTOCOL_NUMBER[protocol], 0)
    return fixed + client.packed + vip.packed


def _ipv6_header(client: Address, vip: Address, protocol: Protocol, length: int) -> bytes:
    return struct.pack("!IHBB", 6 << 28, length, PROTOCOL_NUMBER[protocol], 64) + client.packed + vip.packed
