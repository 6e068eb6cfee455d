# SPDX-License-Identifier: Apache-2.0
"""Reads the head of a frame or packet: who talks to whom, and what kind of segment it is. Pure, and never raises."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from farmd.model.rules import Address

ETHERNET_BYTES = 14
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_TAGS = (0x8100, 0x88A8)
_MAX_TAGS = 2
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_EXTENSIONS = (0, 43, 60, 135)
_FRAGMENT = 44
_MAX_EXTENSIONS = 6
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_ICMP_NAMES = {0: "echo-reply", 3: "unreachable", 8: "echo-request", 11: "time-exceeded"}
_ICMPV6_NAMES = {1: "unreachable", 2: "too-big", 3: "time-exceeded", 128: "echo-request", 129: "echo-reply"}
_ADVERTISEMENT = 136
_ND_NAMES = {135: "solicitation", 136: "advertisement"}


@dataclass(frozen=True, slots=True)
class Packet:
    """From whom to whom. Ports are None where the protocol has none; `flags` says what kind of packet it is."""

    source: Address
    source_port: int | None
    target: Address
    target_port: int | None
    protocol: str
    flags: str

    def turned(self) -> Packet:
        """The same as the other side would send it."""
        return Packet(self.target, self.target_port, self.source, self.source_port, self.protocol, self.flags)


def read_frame(frame: bytes) -> Packet | None:
    """The packet in an Ethernet frame with up to two tags; None if it is none that concerns a VIP."""
    at = 12
    for _ in range(_MAX_TAGS):
        if int.from_bytes(frame[at : at + 2], "big") in _TAGS:
            at += 4
    kind = int.from_bytes(frame[at : at + 2], "big")
    if kind == _ARP:
        return _read_arp(frame[at + 2 :])
    return read_ip(frame[at + 2 :]) if kind in (_IPV4, _IPV6) else None


def read_ip(packet: bytes) -> Packet | None:
    """The packet that begins with an IP header; None if not even that is whole."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        source, target = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        later = int.from_bytes(packet[6:8], "big") & 0x1FFF
        return _transport(source, target, packet[9], packet[(packet[0] & 15) * 4 :], bool(later))
    if version == 6 and len(packet) >= 40:
        number, at, later_v6 = _skip_extensions(packet)
        return _transport(IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), number, packet[at:], later_v6)
    return None


def _read_arp(body: bytes) -> Packet | None:
    if len(body) < 28:
        return None
    flags = {1: "request", 2: "reply"}.get(int.from_bytes(body[6:8], "big"), "")
    return Packet(IPv4Address(body[14:18]), None, IPv4Address(body[24:28]), None, "arp", flags)


def _skip_extensions(packet: bytes) -> tuple[int, int, bool]:
    """Protocol number, where it begins, and whether this is a later fragment."""
    number, at = packet[6], 40
    for _ in range(_MAX_EXTENSIONS):
        if len(packet) < at + 8:
            break
        if number == _FRAGMENT:
            if int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF8:
                return packet[at], at + 8, True
            number, at = packet[at], at + 8
        elif number in _EXTENSIONS:
            number, at = packet[at], at + 8 + packet[at + 1] * 8
        else:
            break
    return number, at, False


def _transport(source: Address, target: Address, number: int, body: bytes, later_fragment: bool) -> Packet:
    ports: tuple[int | None, int | None] = (None, None)
    if later_fragment:
        return Packet(source, None, target, None, {_TCP: "tcp", _UDP: "udp"}.get(number, str(number)), "fragment")
    if number in (_TCP, _UDP) and len(body) >= 4:
        ports = int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big")
    if number == _TCP:
        return Packet(source, ports[0], target, ports[1], "tcp", _tcp_flags(body))
    if number == _UDP:
        return Packet(source, ports[0], target, ports[1], "udp", "")
    if number == _ICMP:
        return Packet(source, None, target, None, "icmp", _ICMP_NAMES.get(body[0], str(body[0])) if body else "")
    if number == _ICMPV6 and body and body[0] in _ND_NAMES and len(body) >= 24:
        # What it is about stands in the body; the destination is a multicast group, unless this is an answer.
        if body[0] == _ADVERTISEMENT and not target.is_multicast:
            return Packet(IPv6Address(body[8:24]), None, target, None, "nd", _ND_NAMES[body[0]])
        return Packet(source, None, IPv6Address(body[8:24]), None, "nd", _ND_NAMES[body[0]])
    if number == _ICMPV6:
        return Packet(source, None, target, None, "icmp", _ICMPV6_NAMES.get(body[0], str(body[0])) if body else "")
    return Packet(source, None, target, None, str(number), "")


def _tcp_flags(body: bytes) -> str:
    if len(body) < 14:
        return ""
    return ",".join(name for bit, name in enumerate(_FLAGS) if body[13] >> bit & 1)
