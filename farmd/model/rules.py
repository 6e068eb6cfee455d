# SPDX-License-Identifier: Apache-2.0
"""VIPs, rules and groups: which traffic the farm shares out, and by what."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
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
    CLIENT_NETWORK = "client-network"
    """The client's network, /24 of IPv4 and /64 of IPv6: clients behind several proxies, or with changing addresses,
    stay together (NLB's affinity "network")."""
    PACKET_ID = "packet-id"
    """Address and identification of the IPv4 header: each UDP datagram is placed on its own, even if a client always
    uses the same port (SafeKit `on_ipid`). IPv6 has no such field, and a TCP connection must stay together."""


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


ALL_PORTS = range(65536)


@dataclass(frozen=True, slots=True)
class Rule:
    """(VIP, protocol, ports) -> affinity, group. `index` is its slot in the kernel's counter map, from 1."""

    index: int
    name: str
    vip: Address
    protocol: Protocol
    port: int
    affinity: Affinity
    group: int
    last_port: int | None = None
    """The last port of a range that begins with `port`; None: `port` alone."""

    @property
    def ports(self) -> range:
        """All its ports."""
        return range(self.port, (self.port if self.last_port is None else self.last_port) + 1)

    @property
    def ports_text(self) -> str:
        """Its ports as farm.toml says them."""
        return ports_text(self.ports)


def ports_text(ports: range) -> str:
    """Ports as farm.toml says them: `80`, `8000-8099` or `any`."""
    if ports == ALL_PORTS:
        return "any"
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"


class RuleBook:
    """Finds the rule for a VIP, protocol and port. Rules of one VIP and protocol do not overlap."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._services: dict[tuple[Address, Protocol], list[Rule]] = {}
        for rule in sorted(rules, key=lambda rule: rule.port):
            self._services.setdefault((rule.vip, rule.protocol), []).append(rule)

    def find(self, vip: Address, protocol: Protocol, port: int) -> Rule | None:
        """The rule that names this port."""
        rules = self._services.get((vip, protocol), [])
        at = bisect_right(rules, port, key=lambda rule: rule.port) - 1
        return rules[at] if at >= 0 and port in rules[at].ports else None

    def orphan(self, vip: Address, protocol: Protocol) -> Rule | None:
        """The rule for later fragments whose first one nobody saw, and which have no ports.

        There is one if all rules of the VIP and protocol steer alike by what every fragment has: it is the first of
        them in the file. With `client-ip-port`, or different groups or affinities, only the first fragment can tell.
        """
        rules = self._services.get((vip, protocol), [])
        first = min(rules, key=lambda rule: rule.index, default=None)
        if first is None or first.affinity is Affinity.CLIENT_IP_PORT:
            return None
        alike = all((rule.affinity, rule.group) == (first.affinity, first.group) for rule in rules)
        return first if alike else None

    def services(self) -> Iterable[tuple[Address, Protocol]]:
        """Every VIP and protocol with rules."""
        return self._services.keys()
