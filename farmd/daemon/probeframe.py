# SPDX-License-Identifier: Apache-2.0
"""The smallest frames that ask the filter a question.

Only what the filter reads is right: checksums stay zero, as XDP runs before anything verifies them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from farmd.model.question import PacketKind
from farmd.model.rules import PROTOCOL_NUMBER, Address, Protocol

_ETH_IPV4, _ETH_IPV6 = 0x0800, 0x86DD
_CLIENT_MAC = bytes.fromhex("02fa00000001")
_TCP_SYN, _TCP_ACK = 0x02, 0x10
_ICMP, _ICMP6, _FRAGMENT = 1, 58, 44
_PAYLOAD = bytes(24)
"""Pads a frame past Ethernet's 60 bytes; the kernel's test run refuses frames that are too short."""
_MORE_IPV4, _MORE_IPV6 = 0x2000, 0x0001


@dataclass(frozen=True, slots=True)
class Flow:
    """Who talks to which service; both addresses are of one family."""

    client: Address
    port: int
    vip: Address
    vport: int
    protocol: Protocol

    def __post_init__(self) -> None:
        if self.client.version != self.vip.version:
            raise ValueError(f"{self.client} and {self.vip} are of different families")


def probe_frames(virtual_mac: bytes, flow: Flow, kind: PacketKind, identification: int) -> tuple[bytes, ...]:
    """The Ethernet frames to show to the filter one after another: the last is of this kind."""
    ethertype = _ETH_IPV4 if flow.vip.version == 4 else _ETH_IPV6
    head = virtual_mac + _CLIENT_MAC + struct.pack("!H", ethertype)
    return tuple(head + packet for packet in _packets(flow, kind, identification))


def _packets(flow: Flow, kind: PacketKind, identification: int) -> tuple[bytes, ...]:
    client, vip, number = flow.client, flow.vip, PROTOCOL_NUMBER[flow.protocol]
    icmp = _ICMP if vip.version == 4 else _ICMP6
    if kind is PacketKind.ECHO:
        return (_ip(client, vip, icmp, _echo(vip.version), identification),)
    if kind is PacketKind.ICMP_ERROR:
        return (_ip(client, vip, icmp, _error(flow), identification),)
    whole = _transport(flow, kind)
    first = _ip(client, vip, number, whole, identification, at=0, more=True)
    later = _ip(client, vip, number, _PAYLOAD, identification, at=len(whole), more=False)
    if kind is PacketKind.FIRST_FRAGMENT:
        return (first,)
    if kind is PacketKind.LATER_FRAGMENT:
        return (first, later)
    if kind is PacketKind.LOST_FRAGMENT:
        return (later,)
    return (_ip(client, vip, number, whole, identification),)


def _transport(flow: Flow, kind: PacketKind) -> bytes:
    """A segment or datagram whose length is a multiple of 8 bytes, as that of a first fragment must be."""
    if flow.protocol is Protocol.UDP:
        return struct.pack("!HHHH", flow.port, flow.vport, 8 + len(_PAYLOAD), 0) + _PAYLOAD
    flags = _TCP_ACK if kind is PacketKind.FOLLOWING else _TCP_SYN
    return struct.pack("!HHIIBBHHH", flow.port, flow.vport, 1, 0, 5 << 4, flags, 65535, 0, 0) + bytes(4)


def _echo(version: int) -> bytes:
    return struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, 1, 1) + _PAYLOAD


def _error(flow: Flow) -> bytes:
    """The path to the client does not take packets as long as ours (RFC 1191, RFC 8201); with the head of ours."""
    kind, code = (3, 4) if flow.vip.version == 4 else (2, 0)
    ours = struct.pack("!HHI", flow.vport, flow.port, 1)
    return struct.pack("!BBHI", kind, code, 0, 1280) + _ip(flow.vip, flow.client, PROTOCOL_NUMBER[flow.protocol], ours)


def _ip(
    source: Address,
    to: Address,
    protocol: int,
    payload: bytes,
    identification: int = 0,
    at: int = 0,
    more: bool = False,
) -> bytes:
    """A packet, or the fragment that begins at byte `at`; `more`: others follow."""
    if source.version == 4:
        place = at // 8 | (_MORE_IPV4 if more else 0)
        fixed = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), identification, place, 64, protocol, 0)
        return fixed + source.packed + to.packed + payload
    if at or more:
        place = at // 8 << 3 | (_MORE_IPV6 if more else 0)
        payload = struct.pack("!BxHI", protocol, place, identification) + payload
        protocol = _FRAGMENT
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source.packed + to.packed + payload
