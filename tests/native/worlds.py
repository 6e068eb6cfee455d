# SPDX-License-Identifier: Apache-2.0
"""Farms of very different shapes, for generated packets to be sent to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

from farmd.dataplane import tables
from farmd.model.config import Delivery
from farmd.model.interfaces import InterfaceFacts
from farmd.model.rules import MAX_GROUPS, MAX_RULES, MAX_VIPS, Address, Affinity, Protocol, Rule
from tests.packet import rig
from tests.unit import farms

IFINDEX = 2
NODE_MAC = bytes.fromhex("020000000011")
VIRTUAL_MAC = bytes.fromhex("02fa12000001")
FARM = "test"
MARKER = b"\x06\xfa" + sha256(FARM.encode()).digest()[:2]
"""How source addresses of frames begin that were sent on."""
NODES = {node: bytes((2, 0, 0, 0, 1, node)) for node in (1, 2, 3)}
"""Where other nodes are in delivery `directed`; we are node 0. A fourth has not said where it is."""


@dataclass(frozen=True, eq=False)
class World:
    """What farm.toml decides. `rules` count from 1, as everywhere."""

    key: bytes
    vips: tuple[Address, ...]
    rules: tuple[Rule, ...]
    drop_without_rule: bool = True
    directed: bool = False

    @cached_property
    def table(self) -> bytes:
        """The filter's table, by the code that farmd uses."""
        facts = InterfaceFacts("eth0", IFINDEX, NODE_MAC, "veth", "veth", 1500)
        config = replace(
            rig.config(Path("/nowhere")),
            vips=self.vips,
            rules=self.rules,
            virtual_mac=VIRTUAL_MAC,
            drop_without_rule=self.drop_without_rule,
            delivery=Delivery.DIRECTED if self.directed else Delivery.FLOOD,
            farm=FARM,
        )
        return tables.encode(config, self.key, [facts])


def _largest() -> World:
    """As many VIPs and rules as there may be, in all groups. Half of the VIPs steer some protocol by port."""
    rng = random.Random(1)
    vips = tuple(
        ip_address(f"198.18.{number}.7") if number % 2 else ip_address(f"2001:db8:{number:x}::7")
        for number in range(MAX_VIPS)
    )

    def rules() -> Iterator[Rule]:
        for index in range(1, MAX_RULES + 1):
            number, nth = index % MAX_VIPS, index // MAX_VIPS
            by_port = number % 4 < 2 and rng.random() < 0.5
            protocol = Protocol.UDP if nth % 2 else Protocol.TCP
            affinity = Affinity.CLIENT_IP_PORT if by_port else Affinity.CLIENT_IP
            if number % 16 == 5:
                affinity = Affinity.CLIENT_NETWORK
            group = rng.randrange(MAX_GROUPS) if number % 8 < 4 else number % MAX_GROUPS
            yield Rule(index, f"r{index}", vips[number], protocol, 1 + rng.randrange(65535), affinity, group)

    return World(rng.randbytes(16), vips, tuple(rules()))


def _by_port() -> World:
    """Every rule by client-ip-port, and what has no rule is accepted by address."""
    vips = (ip_address("10.9.8.7"), ip_address("2001:db8:9::7"))
    rules = tuple(
        Rule(index, f"r{index}", vips[index % 2], protocol, port, Affinity.CLIENT_IP_PORT, index % 3)
        for index, (protocol, port) in enumerate(
            [(protocol, port) for protocol in Protocol for port in (1, 53, 443, 65535) for _ in vips], 1
        )
    )
    return World(bytes(range(100, 116)), vips, rules, drop_without_rule=False)


def _one_vip() -> World:
    """Addresses with special bits: rules of one VIP by address, but in two groups, so that later fragments are lost."""
    vip = ip_address("0.0.0.1")
    rules = (
        Rule(1, "a", vip, Protocol.TCP, 80, Affinity.CLIENT_IP, 14),
        Rule(2, "b", vip, Protocol.TCP, 81, Affinity.CLIENT_IP, 15),
        Rule(3, "c", vip, Protocol.UDP, 80, Affinity.CLIENT_IP, 15),
    )
    return World(b"\xff" * 16, (vip,), rules)


def _ranges() -> World:
    """Ranges that touch, any port, every affinity; later fragments that need their first one, and some that do not."""
    four, six, all4, all6 = map(ip_address, ("10.1.1.1", "2001:db8:1::1", "10.1.1.2", "2001:db8:1::2"))
    tcp, udp = Protocol.TCP, Protocol.UDP
    rules = (
        Rule(1, "a", four, udp, 1000, Affinity.PACKET_ID, 3, 1999),
        Rule(2, "b", four, udp, 2000, Affinity.PACKET_ID, 3),
        Rule(3, "c", four, udp, 2001, Affinity.PACKET_ID, 3, 65535),
        Rule(4, "d", four, tcp, 1, Affinity.CLIENT_NETWORK, 1, 127),
        Rule(5, "e", four, tcp, 128, Affinity.CLIENT_NETWORK, 1, 255),
        Rule(6, "f", six, tcp, 80, Affinity.CLIENT_NETWORK, 2),
        Rule(7, "g", six, tcp, 81, Affinity.CLIENT_IP_PORT, 2, 40000),
        Rule(8, "h", six, udp, 0, Affinity.CLIENT_NETWORK, 4, 65535),
        Rule(9, "i", all4, tcp, 0, Affinity.CLIENT_IP_PORT, 5, 65535),
        Rule(10, "j", all4, udp, 53, Affinity.PACKET_ID, 5),
        Rule(11, "k", all4, udp, 54, Affinity.CLIENT_NETWORK, 5, 90),
        Rule(12, "l", all6, tcp, 100, Affinity.CLIENT_NETWORK, 6, 65534),
    )
    return World(bytes(range(7, 23)), (four, six, all4, all6), rules)


WORLDS: tuple[World, ...] = (
    World(farms.KEY, (farms.VIP4, farms.VIP6), rig.RULES),
    _largest(),
    _by_port(),
    _one_vip(),
    World(farms.KEY, (farms.VIP4, farms.VIP6), rig.RULES, directed=True),
    _ranges(),
)
"""The first is the farm of the packet tests."""
