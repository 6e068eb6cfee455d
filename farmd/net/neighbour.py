# SPDX-License-Identifier: Apache-2.0
"""ARP and Neighbour Discovery frames: how one host asks on a link whether another is there."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
_BROADCAST = b"\xff" * 6
_ARP = struct.Struct("!HHBBH6s4s6s4s")
"""Hardware type, protocol type, their lengths, operation, sender's MAC and IP, target's MAC and IP (RFC 826)."""
_ARP_ETHERNET = (1, 0x0800, 6, 4)
_ARP_REQUEST, _ARP_REPLY = 1, 2
_IPV6 = struct.Struct("!IHBB16s16s")
_ICMPV6 = 58
_SOLICITATION, _ADVERTISEMENT = 135, 136
_HOP_LIMIT = 255
"""Neighbour Discovery is only valid if no router can have forwarded it (RFC 4861)."""
_SOURCE_MAC_OPTION, _TARGET_MAC_OPTION = b"\x01\x01", b"\x02\x01"
_OVERRIDE = 0x20000000
_ALL_NODES = IPv6Address("ff02::1")


def arp_request(mac: bytes, source: IPv4Address | None, target: IPv4Address) -> bytes:
    """A broadcast frame that asks who has `target`. Without a source it is an RFC 5227 probe, from 0.0.0.0."""
    sender = source.packed if source else bytes(4)
    body = _ARP.pack(*_ARP_ETHERNET, _ARP_REQUEST, mac, sender, bytes(6), target.packed)
    return _frame(_BROADCAST, mac, ETH_P_ARP, body)


def arp_announcement(mac: bytes, address: IPv4Address) -> bytes:
    """A broadcast frame that says that `address` is at `mac` (RFC 5227, 2.3): who knows it learns the new place."""
    body = _ARP.pack(*_ARP_ETHERNET, _ARP_REQUEST, mac, address.packed, bytes(6), address.packed)
    return _frame(_BROADCAST, mac, ETH_P_ARP, body)


def is_arp_reply(frame: bytes, target: IPv4Address) -> bool:
    """Whether `frame` is an ARP reply in which `target` says where it is."""
    if len(frame) < 14 + _ARP.size or frame[12:14] != ETH_P_ARP.to_bytes(2):
        return False
    *kind, operation, _mac, sender, _target_mac, _target = _ARP.unpack_from(frame, 14)
    return tuple(kind) == _ARP_ETHERNET and operation == _ARP_REPLY and sender == target.packed


def solicitation(mac: bytes, source: IPv6Address | None, target: IPv6Address) -> bytes:
    """A Neighbour Solicitation for `target` to its solicited-node group.

    Without a source it is the one of duplicate address detection, which is answered to all nodes.
    """
    group = bytes.fromhex("ff0200000000000000000001ff") + target.packed[13:]
    option = _SOURCE_MAC_OPTION + mac if source else b""
    sender = source.packed if source else bytes(16)
    message = struct.pack("!BBH4x", _SOLICITATION, 0, 0) + target.packed + option
    message = message[:2] + _checksum(sender, group, message).to_bytes(2) + message[4:]
    header = _IPV6.pack(6 << 28, len(message), _ICMPV6, _HOP_LIMIT, sender, group)
    return _frame(b"\x33\x33" + group[12:], mac, ETH_P_IPV6, header + message)


def advertisement(mac: bytes, address: IPv6Address) -> bytes:
    """An unsolicited Neighbour Advertisement to all nodes (RFC 4861, 7.2.6): `address` is at `mac` now."""
    message = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + address.packed + _TARGET_MAC_OPTION + mac
    message = message[:2] + _checksum(address.packed, _ALL_NODES.packed, message).to_bytes(2) + message[4:]
    header = _IPV6.pack(6 << 28, len(message), _ICMPV6, _HOP_LIMIT, address.packed, _ALL_NODES.packed)
    return _frame(b"\x33\x33" + _ALL_NODES.packed[12:], mac, ETH_P_IPV6, header + message)


def is_advertisement(frame: bytes, target: IPv6Address) -> bool:
    """Whether `frame` is a valid Neighbour Advertisement in which `target` says where it is."""
    start = 14 + _IPV6.size
    if len(frame) < start + 24 or frame[12:14] != ETH_P_IPV6.to_bytes(2):
        return False
    _version, length, following, hops, sender, receiver = _IPV6.unpack_from(frame, 14)
    message = frame[start : start + length]
    if following != _ICMPV6 or hops != _HOP_LIMIT or len(message) < 24 or len(message) != length:
        return False
    if _checksum(sender, receiver, message) != 0:
        return False
    return message[0] == _ADVERTISEMENT and message[1] == 0 and message[8:24] == target.packed


def _frame(destination: bytes, source: bytes, protocol: int, body: bytes) -> bytes:
    return destination + source + protocol.to_bytes(2) + body


def _checksum(source: bytes, destination: bytes, message: bytes) -> int:
    """The Internet checksum with the IPv6 pseudo-header (RFC 8200, 8.1); 0 over a message that carries a right one."""
    data = source + destination + len(message).to_bytes(4) + _ICMPV6.to_bytes(4) + message
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
