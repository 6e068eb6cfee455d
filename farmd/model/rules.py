# SPDX-License-Identifier: Apache-2.0
"""VIPs, rules and groups: which traffic the farm shares out, and by what."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

MAX_GROUPS = 16
MAX_VIPS = 256
MAX_RULES = 1000


class Affinity(StrEnum):
    """What is hashed to find a packet's bucket."""

    CLIENT_IP = "client-ip"
    """The client's address: all of a client's traffic lands on one node (SafeKit `on_addr`)."""
    CLIENT_IP_PORT = "client-ip-port"
    """Address and source port: each connection is placed on its own (SafeKit `on_port`)."""


class Protocol(StrEnum):
    """Transport protocols that a rule can name."""

    TCP = "tcp"
    UDP = "udp"


PROTOCOL_NUMBER = {Protocol.TCP: 6, Protocol.UDP: 17}
"""IANA protocol numbers, as they stand in the IP header."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that share one bucket map and one set of weights. `index` is its slot in the kernel's plane map."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Rule:
    """(VIP, protocol, port) -> affinity, group. `index` is its slot in the kernel's counter map, from 1."""

    index: int
    name: str
    vip: Address
    protocol: Protocol
    port: int
    affinity: Affinity
    group: int
