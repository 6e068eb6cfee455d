# SPDX-License-Identifier: Apache-2.0
"""What `farm.toml` says, as values. `farmd.model.farmfile` reads it; nothing here touches a file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from farmd.model.nodes import NodeId, Role
from farmd.model.rules import Address, Group, Rule

MEMBERSHIP_PORT = 4804
"""UDP port of the membership protocol unless the file says otherwise."""
METRICS_PORT = 4805
"""TCP port of /metrics, beside it: the range that Prometheus exporters share, 9100 to 9999, has no number left."""
HEALTH_PORT = 4806
"""TCP port of the health URLs."""
MAX_VOTERS = 7
"""Up to this many nodes all vote; in larger farms the lowest numbers do."""


class Profile(StrEnum):
    """What counts more when a majority cannot be had."""

    EXCLUSIVE = "exclusive"
    """At most one node serves a bucket, always. Needs a majority of voters."""
    AVAILABLE = "available"
    """Two nodes without a witness: the one that still reaches the gateway serves everything, perhaps both do."""


class AttachMode(StrEnum):
    """How the filter is attached to an interface."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


class Delivery(StrEnum):
    """How every node comes to see a VIP's packets."""

    FLOOD = "flood"
    """The VIP resolves to a virtual unicast MAC that nobody uses as a source, so the switch floods."""
    MULTICAST = "multicast"
    """The VIP resolves to a multicast MAC, which the switch brings to every node."""
    DIRECTED = "directed"
    """The VIP resolves to a node's own MAC; a node sends on to the owner what is not its own."""
    EXTERNAL = "external"
    """A load balancer or router in front picks the node; farmd filters nothing and tells it by health URLs."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The protocol's clockwork, in nanoseconds (DESIGN section 5)."""

    heartbeat_ns: int
    lease_ns: int
    hold_down_ns: int = 3_000_000_000
    """How long a newcomer must be steadily heard before it is let in; doubles with every flap."""
    hold_down_max_ns: int = 60_000_000_000
    clock_error: float = 0.01
    """Bound of the relative error of any node's clock rate (rho)."""

    @property
    def promise_ns(self) -> int:
        """How long a voter stands by a node it has heard: the lease, as the slowest holder's clock may count it."""
        return int(self.lease_ns * (1 + self.clock_error) / (1 - self.clock_error)) + 1


TIMINGS = {
    "default": Timing(heartbeat_ns=100_000_000, lease_ns=500_000_000),
    "fast": Timing(heartbeat_ns=50_000_000, lease_ns=300_000_000),
}


@dataclass(frozen=True, slots=True)
class Member:
    """A configured server: one `[[member]]` table."""

    id: NodeId
    name: str
    role: Role
    addresses: tuple[Address, ...]
    """Where it listens for the membership protocol: one address for each heartbeat network."""
    weight: int


@dataclass(frozen=True, slots=True)
class Listen:
    """Where a TCP port is served."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class FarmConfig:
    """The whole of a valid `farm.toml`, seen from the node that reads it.

    Invariants (the reader enforces them): `me` is one of `members`; numbers, names and addresses are unique; groups and
    rules are in index order; every rule names a VIP and a group that exist; `weights[g]` names every serving member.
    """

    path: Path
    farm: str
    key_file: Path
    profile: Profile
    timing: Timing
    delivery: Delivery
    virtual_mac: bytes
    """6 bytes; locally administered, derived from the farm's name unless the file gives one.

    A group address in delivery `multicast`, else unicast; delivery `directed` has no use for it."""
    gateway: Address | None
    port: int
    me: Member
    members: tuple[Member, ...]
    """By number, this node and witnesses included."""
    voters: frozenset[NodeId]
    vips: tuple[Address, ...]
    groups: tuple[Group, ...]
    rules: tuple[Rule, ...]
    weights: tuple[dict[NodeId, int], ...]
    """Configured weight of every serving member, by group index."""
    interfaces: tuple[str, ...]
    """Where the filter is attached; empty on a witness."""
    attach_mode: AttachMode
    drop_without_rule: bool
    """VIP traffic that no rule names: drop it, or (False) let the client-ip owner's stack answer."""
    drain_deadline_s: float
    """After this long, connections of moved buckets are no longer kept."""
    api_socket: Path
    engine_socket: Path
    pin_dir: Path
    """A folder on a bpffs where links and maps are pinned."""
    state_dir: Path
    metrics: Listen | None = None
    """Where Prometheus may ask; None: nowhere."""
    health: Listen | None = None
    """Where load balancers may ask whether this node should get new clients; None: nowhere."""
    outside_vips: frozenset[Address] = frozenset()
    """VIPs that a balancer outside has and this host has not: it rewrites them to a node's own address."""

    @property
    def filters(self) -> bool:
        """Whether this node has a filter: no witness has, and none where a load balancer outside decides."""
        return self.me.role is Role.NODE and self.delivery is not Delivery.EXTERNAL

    @property
    def host_vips(self) -> tuple[Address, ...]:
        """The VIPs that farmd puts on this host."""
        return tuple(vip for vip in self.vips if vip not in self.outside_vips)

    @property
    def nodes(self) -> tuple[Member, ...]:
        """The members that serve: all but witnesses."""
        return tuple(member for member in self.members if member.role is Role.NODE)

    def member(self, name: str) -> Member | None:
        """The member called `name`, if there is one."""
        return next((member for member in self.members if member.name == name), None)
