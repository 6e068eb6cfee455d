# SPDX-License-Identifier: Apache-2.0
"""What a lab consists of: hosts, namespaces, links, addresses. Pure: nothing here touches the machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from pathlib import Path

from farmd.model.config import AttachMode, Delivery, Profile
from farmd.model.errors import FarmError
from farmd.model.rules import Affinity

VIP = IPv4Address("10.77.0.100")
VIP6 = IPv6Address("fd77::100")
GATEWAY = IPv4Address("10.77.0.254")
"""Sits on the switch itself; what a node of the `available` profile asks whether it still has a network."""
VIRTUAL_MAC = bytes.fromhex("02fa00000000")
GROUP_MAC = bytes.fromhex("03fa00000000")
"""The virtual MAC of a lab in delivery `multicast`."""
PORT_BY_ADDRESS = 80
"""Rules with affinity `client-ip`: all of a client's connections go to one node."""
PORT_BY_CONNECTION = 81
"""Rules with affinity `client-ip-port`: each connection is placed on its own."""
SERVICE_PORTS = {PORT_BY_ADDRESS: Affinity.CLIENT_IP, PORT_BY_CONNECTION: Affinity.CLIENT_IP_PORT}

FIRST_CLIENT_PORT = 10000
"""Clients' own connections use ports from here on; probes use lower ones, so the two never meet."""
RUN_DIR = Path("/run/farmd-lab")
PIN_DIR = Path("/sys/fs/bpf/farmd-lab")

MAX_LAB_NODES = 32
_FIRST_CLIENT_ADDRESS = 201
_CLIENT_ADDRESSES = 50
_BALANCER_ADDRESS = 199

Interface = IPv4Interface | IPv6Interface


class HostKind(StrEnum):
    """What a host of the lab is there for."""

    NODE = "node"
    WITNESS = "witness"
    CLIENT = "client"
    BALANCER = "balancer"
    """With delivery external: has the VIPs and HAProxy, and asks the nodes' health URLs."""


@dataclass(frozen=True, slots=True)
class Link:
    """A cable from a host to the switch: `device` is the host's end, `port` the switch's."""

    device: str
    port: str
    bridge: str
    mac: bytes
    addresses: tuple[Interface, ...]

    @property
    def mac_text(self) -> str:
        """The host's MAC as people write it."""
        return self.mac.hex(":")


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace with its cables. `number` is the member's number in the farm; clients have their own count."""

    name: str
    kind: HostKind
    number: int
    namespace: str
    links: tuple[Link, ...]

    @property
    def is_member(self) -> bool:
        """Whether it runs farmd."""
        return self.kind in (HostKind.NODE, HostKind.WITNESS)

    @property
    def addresses(self) -> tuple[Interface, ...]:
        """Its addresses on the service network."""
        return self.links[0].addresses


@dataclass(frozen=True)
class LabPlan:
    """The shape of a lab. Two plans are equal exactly if they describe the same lab.

    `name`: 1 to 8 lower-case letters and digits, because it is part of every namespace's name. `networks`: 1, or 2
    for a second heartbeat network. `plain_swap` starts the engines so that planes are swapped without `held` and
    `fresh`: only benches want that, to show what it costs. `attach_mode` native works in delivery `directed` alone:
    veth settles what a frame is for before native XDP can readdress it.
    """

    name: str = "lab"
    nodes: int = 3
    clients: int = 2
    client_addresses: int = 12
    networks: int = 1
    witness: bool = False
    profile: Profile = Profile.EXCLUSIVE
    timing: str = "default"
    delivery: Delivery = Delivery.FLOOD
    attach_mode: AttachMode = AttachMode.AUTO
    plain_swap: bool = False
    run_dir: Path = field(default=RUN_DIR)
    pin_dir: Path = field(default=PIN_DIR)

    def __post_init__(self) -> None:
        for wrong, cause, next_step in (
            (
                not re.fullmatch(r"[a-z0-9]{1,8}", self.name),
                "not a lab's name",
                "Use 1 to 8 lower-case letters and digits",
            ),
            (not 1 <= self.nodes <= MAX_LAB_NODES, f"{self.nodes} nodes", f"Ask for 1 to {MAX_LAB_NODES} nodes"),
            (self.networks not in (1, 2), f"{self.networks} networks", "Ask for 1 or 2 networks"),
            (
                self.clients < 1 or not 1 <= self.clients * self.client_addresses <= _CLIENT_ADDRESSES,
                f"{self.clients} clients with {self.client_addresses} addresses each",
                f"Ask for at least one client and at most {_CLIENT_ADDRESSES} addresses in all",
            ),
        ):
            if wrong:
                raise FarmError(f"lab {self.name!r}", cause, next_step)

    @property
    def directory(self) -> Path:
        """Where the lab keeps its files; removed with the lab."""
        return self.run_dir / self.name

    @property
    def pins(self) -> Path:
        """The lab's folder on the bpffs."""
        return self.pin_dir / self.name

    @property
    def switch(self) -> str:
        """The switch's namespace."""
        return self.namespace("sw")

    def namespace(self, short: str) -> str:
        """The namespace of the host abbreviated `short`."""
        return f"fl-{self.name}-{short}"

    def owns_namespace(self, namespace: str) -> bool:
        """Whether a namespace of that name belongs to this lab, whatever shape the lab had."""
        return re.fullmatch(rf"fl-{self.name}-(sw|[nwcb]\d+)", namespace) is not None

    @property
    def bridges(self) -> tuple[str, ...]:
        """One bridge a network, all in the switch's namespace."""
        return tuple(f"br{network}" for network in range(self.networks))

    @cached_property
    def members(self) -> tuple[Host, ...]:
        """Nodes, then the witness, by number."""
        hosts = [self._host(f"node{n + 1}", f"n{n + 1}", HostKind.NODE, n, (11 + n,)) for n in range(self.nodes)]
        if self.witness:
            hosts.append(self._host("witness", "w1", HostKind.WITNESS, self.nodes, (11 + self.nodes,)))
        return tuple(hosts)

    @property
    def serving(self) -> tuple[Host, ...]:
        """The members that serve VIPs."""
        return tuple(host for host in self.members if host.kind is HostKind.NODE)

    @cached_property
    def client_hosts(self) -> tuple[Host, ...]:
        """The hosts that traffic comes from, each with several addresses."""
        result = []
        for n in range(self.clients):
            first = _FIRST_CLIENT_ADDRESS + n * self.client_addresses
            numbers = tuple(range(first, first + self.client_addresses))
            result.append(self._host(f"client{n + 1}", f"c{n + 1}", HostKind.CLIENT, n, numbers))
        return tuple(result)

    @cached_property
    def balancers(self) -> tuple[Host, ...]:
        """The load balancer in front, if the delivery wants one."""
        if self.delivery is not Delivery.EXTERNAL:
            return ()
        return (self._host("balancer", "b1", HostKind.BALANCER, 0, (_BALANCER_ADDRESS,)),)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Every host: members, then clients, then the balancer."""
        return (*self.members, *self.client_hosts, *self.balancers)

    def host(self, name: str) -> Host:
        """The host called `name`, in full or short (`node1` or `n1`). FarmError if there is none."""
        for host in self.hosts:
            if name == host.name or self.namespace(name) == host.namespace:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise FarmError(name, f"lab {self.name} has no such host", f"Use one of {known}")

    @property
    def virtual_mac(self) -> bytes | None:
        """What VIPs resolve to; None: to the node that answers (delivery `directed`)."""
        return {Delivery.FLOOD: VIRTUAL_MAC, Delivery.MULTICAST: GROUP_MAC}.get(self.delivery)

    def node_of_mac(self, mac: bytes) -> str | None:
        """The host that has `mac`, by name."""
        return next((host.name for host in self.hosts for link in host.links if link.mac == mac), None)

    def home(self, host: Host) -> Path:
        """Where a member keeps its files."""
        return self.directory / host.name

    def _host(self, name: str, short: str, kind: HostKind, number: int, last: tuple[int, ...]) -> Host:
        tag = {HostKind.NODE: 1, HostKind.WITNESS: 2, HostKind.CLIENT: 3, HostKind.BALANCER: 4}[kind]
        links = []
        # Clients only sit on the service network: the second one carries heartbeats and nothing else.
        for network in range(self.networks if kind in (HostKind.NODE, HostKind.WITNESS) else 1):
            addresses: list[Interface] = [ip_interface(f"10.{77 + network}.0.{n}/24") for n in last]
            if network == 0:
                addresses += [ip_interface(f"fd77::{n}/64") for n in last]
            mac = bytes([0x02, 0xFA, 0, tag, network, number + 1])
            links.append(Link(f"eth{network}", f"{short}.{network}", f"br{network}", mac, tuple(addresses)))
        return Host(name, kind, number, self.namespace(short), tuple(links))
