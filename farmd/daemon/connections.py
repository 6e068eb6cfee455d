# SPDX-License-Identifier: Apache-2.0
"""From a node's sockets to the numbers of a drain: connections left, and held buckets that nobody needs any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol as Seam

from farmd.model.planes import Planes
from farmd.model.rules import Address, Affinity, Protocol, Rule, RuleBook

Hash = Callable[[bytes, Affinity, Address, int], int]
"""`bucket_of`: the model's, or the same in C."""


class VipSocket(Seam):
    """A TCP socket of this node whose local address is a VIP (see `farmd.net.sockets`)."""

    @property
    def vip(self) -> Address: ...  # noqa: D102
    @property
    def vport(self) -> int: ...  # noqa: D102
    @property
    def client(self) -> Address: ...  # noqa: D102
    @property
    def cport(self) -> int: ...  # noqa: D102
    @property
    def lingering(self) -> bool:
        """In TIME-WAIT: no connection any more for people, but its last segments may still come."""
        ...


@dataclass(frozen=True, slots=True)
class Census:
    """What one look at the socket table says."""

    established: int
    """Connections to VIPs, without those in TIME-WAIT."""
    held: int
    """Those of them whose bucket has moved to another node: what a drain waits for."""
    forgettable: tuple[int, ...]
    """By group: held buckets without any socket left, as a plane."""


def take_census(
    sockets: Iterable[VipSocket], rules: Sequence[Rule], planes: Sequence[Planes], key: bytes, bucket_of: Hash
) -> Census:
    """Place every socket in its bucket and compare that with the planes.

    Sockets of TCP only: there `bucket_of`'s last argument is a port, since `packet-id` is for UDP.
    """
    book = RuleBook(rules)
    needed = [0] * len(planes)
    established = held = 0
    for socket in sockets:
        rule = book.find(socket.vip, Protocol.TCP, socket.vport)
        if rule is None:
            continue
        bit = 1 << bucket_of(key, rule.affinity, socket.client, socket.cport)
        needed[rule.group] |= bit
        if not socket.lingering:
            established += 1
            held += bool(planes[rule.group].held & bit)
    forgettable = tuple(plane.held & ~bits for plane, bits in zip(planes, needed, strict=True))
    return Census(established, held, forgettable)


def count_behind_balancer(sockets: Iterable[VipSocket], rules: Sequence[Rule], planes: Sequence[Planes]) -> Census:
    """The same where a balancer outside places connections: buckets say nothing about them, so none is kept for any.

    A connection counts by its port alone, because the balancer may have rewritten the VIP to an address of the node.
    """
    ports = {port for rule in rules if rule.protocol is Protocol.TCP for port in rule.ports}
    established = sum(socket.vport in ports and not socket.lingering for socket in sockets)
    return Census(established, 0, tuple(plane.held for plane in planes))
