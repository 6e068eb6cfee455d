# SPDX-License-Identifier: Apache-2.0
"""Nodes of a farm that decide by different means who takes a client, each in a namespace with a cable to one sender.

All of them are one node of the same farm of `NODES`, take packets for `VIP` only, and drop what is not theirs as early
as they can. What they let through goes up to the INPUT hook and is dropped there, the same for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from bench.jhash import node_of
from bench.live import Sender
from farmd.daemon.clock import boot_ns
from farmd.dataplane.filter import Filter, purge
from farmd.dataplane.hash import bucket_of
from farmd.dataplane.kernel import Link
from farmd.dataplane.planes import KernelPlanes
from farmd.model.buckets import NO_OWNERS, assign, plane_of
from farmd.model.config import AttachMode
from farmd.model.interfaces import InterfaceFacts
from farmd.model.nodes import NodeId
from farmd.model.planes import Planes
from farmd.model.rules import Affinity
from tests.unit import farms
from tests.unit.namespaces import Namespace

NODES = 3
VIP = farms.VIP4
MAC = "02:00:00:00:00:11"
SEED = 0xDEADBEEF
_OWNERS = assign(NO_OWNERS, dict.fromkeys(farms.NODES, 100))
_LEASE_NS = 3600 * 10**9
_INPUT = (
    "table ip stop { counter passed { } ; "
    f"chain input {{ type filter hook input priority 0; ip daddr {VIP} counter name passed drop; }}; }}"
)
_NFT = (
    "table netdev farm { chain ingress { type filter hook ingress device eth0 priority 0; "
    f"ip daddr {VIP} jhash ip saddr mod {NODES} seed {SEED} != 0 drop; }}; }}"
)
_CLUSTER = f"-A PREROUTING -i eth0 -d {VIP}"
_IPTABLES = (
    f"{_CLUSTER} -m cluster --cluster-total-nodes {NODES} --cluster-local-node 1 --cluster-hash-seed {SEED}"
    " -j MARK --set-mark 0xffff",
    f"{_CLUSTER} -m mark ! --mark 0xffff -j DROP",
)
"""The recipe of iptables-extensions(8), with the VIP named as the others do."""


@dataclass(frozen=True, slots=True)
class Decider:
    """A node that stands: the sending end of its cable, and which clients are its own (None: it does not decide)."""

    name: str
    node: Namespace
    ifindex: int
    owns: Callable[[IPv4Address], bool] | None


def farm_owns(client: IPv4Address) -> bool:
    """Whether a farm's first node serves `client`."""
    return _OWNERS[bucket_of(farms.KEY, Affinity.CLIENT_IP, client, 0)] == 0


def jhash_owns(client: IPv4Address) -> bool:
    """Whether nftables and the cluster match give `client` to the first node."""
    return node_of(client.packed, SEED, NODES) == 0


def passed(decider: Decider) -> int:
    """How many packets for the VIP its INPUT hook has seen since it was asked last."""
    return int(decider.node.shell("nft reset counter ip stop passed").split("packets ")[1].split()[0])


@contextmanager
def bare_drop(sender: Sender, hub: Namespace) -> Iterator[Decider]:
    """Drops everything at once: what the sender and the cable cost by themselves."""
    with _wired("XDP_DROP", hub, None) as made, made.node.run(Link.create, sender.bare_drop, _facts(made).ifindex, 4):
        yield made


@contextmanager
def bare_stack(hub: Namespace) -> Iterator[Decider]:
    """Lets everything up to the INPUT hook."""
    with _wired("no decision", hub, None) as made:
        yield made


@contextmanager
def farmd(hub: Namespace) -> Iterator[Decider]:
    """The filter of this project, natively, as on a network card."""
    with _wired("farmd", hub, farm_owns) as made:
        pins = Path(f"/sys/fs/bpf/farmd-bench-{os.getpid()}")
        config = replace(farms.config(), pin_dir=pins, attach_mode=AttachMode.NATIVE)
        try:
            made.node.run(Filter.attach, config, farms.KEY, [_facts(made)]).close()
            control = KernelPlanes.open(pins)
            control.renew(boot_ns() + _LEASE_NS)
            control.write(0, Planes(own=plane_of(_OWNERS, NodeId(0))))
            control.close()
            yield made
        finally:
            made.node.run(purge, pins)


@contextmanager
def nftables(hub: Namespace) -> Iterator[Decider]:
    """nftables' jhash at the ingress hook, the earliest that it has."""
    with _wired("nftables jhash", hub, jhash_owns) as made:
        made.node.shell(f"nft {_NFT}")
        yield made


@contextmanager
def cluster_match(hub: Namespace) -> Iterator[Decider]:
    """The cluster match of iptables, which needs connection tracking."""
    with _wired("iptables cluster", hub, jhash_owns) as made:
        for rule in _IPTABLES:
            made.node.shell(f"iptables-legacy -t mangle {rule}")
        for name, value in (("tcp_loose", "0"), ("checksum", "0")):  # a network card checks sums, a cable does not
            made.node.run(Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").write_text, value)
        yield made


@contextmanager
def _wired(name: str, hub: Namespace, owns: Callable[[IPv4Address], bool] | None) -> Iterator[Decider]:
    with Namespace() as node:
        end = f"to{node.id}"
        hub.wire(end, node, "eth0")
        node.ip(f"link set eth0 address {MAC}")
        node.shell("ethtool -K eth0 gro on")  # or a veth without XDP takes no frames, only socket buffers
        node.ip(f"addr add {VIP}/32 dev lo")
        node.shell(f"nft {_INPUT}")
        yield Decider(name, node, _index(hub, end), owns)


def _facts(made: Decider) -> InterfaceFacts:
    return InterfaceFacts("eth0", _index(made.node, "eth0"), bytes.fromhex(MAC.replace(":", "")), "veth", "veth", 1500)


def _index(where: Namespace, device: str) -> int:
    return int(where.ip(f"-o link show {device}").split(":")[0])
