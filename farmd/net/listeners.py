# SPDX-License-Identifier: Apache-2.0
"""Which ports of this namespace somebody serves: TCP sockets that listen, and bound UDP sockets without a peer."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from farmd.model.rules import Address, Protocol
from farmd.net.sockets import dump

_ANSWER = struct.Struct("!4xH2x16s")
"""Of `struct inet_diag_msg` after family and state: local port and local address, in network order."""
_ANSWER_BYTES = 72
_ATTRIBUTE = struct.Struct("=HH")
_V6_ONLY = 11
"""INET_DIAG_SKV6ONLY, one byte: an IPv6 socket that takes no IPv4."""
_CLOSED, _LISTENING = 1 << 7, 1 << 10
_PLACES = {
    Protocol.TCP: (socket.IPPROTO_TCP, _LISTENING),
    Protocol.UDP: (socket.IPPROTO_UDP, _CLOSED),
}
"""Protocol -> its number, and the state of a socket that serves: UDP calls one without a peer closed."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A port that is served. `address` may be the unspecified one; `both`: an IPv6 socket that takes IPv4 too."""

    protocol: Protocol
    address: Address
    port: int
    both: bool = False

    def takes(self, protocol: Protocol, address: Address, ports: range) -> bool:
        """Whether packets to that address, and to one of the ports, are this socket's."""
        if protocol is not self.protocol or self.port not in ports:
            return False
        if self.address == address:
            return True
        return self.address.is_unspecified and (self.both or self.address.version == address.version)


def listeners(protocol: Protocol) -> list[Listener]:
    """Every port that is served by `protocol`. Raises KernelError."""
    number, state = _PLACES[protocol]
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for data, start in dump(family, number, state):
            port, packed = _ANSWER.unpack_from(data, start)
            if not port:
                continue
            if family == socket.AF_INET:
                found.append(Listener(protocol, IPv4Address(packed[:4]), port))
            else:
                address = IPv6Address(packed)
                mapped = address.ipv4_mapped
                found.append(Listener(protocol, mapped or address, port, both=not _v6_only(data, start)))
    return found


def _v6_only(data: bytes, start: int) -> bool:
    (length,) = struct.unpack_from("=I", data, start - 16)
    at, end = start + _ANSWER_BYTES, start - 16 + length
    while at + _ATTRIBUTE.size <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind == _V6_ONLY:
            return bool(data[at + _ATTRIBUTE.size])
        at += max(4, size + 3 & ~3)
    return False
