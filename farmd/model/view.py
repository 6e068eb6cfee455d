# SPDX-License-Identifier: Apache-2.0
"""The view: the one thing that the nodes of a farm agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from farmd.model.buckets import NOBODY, PlaneOf, assign, plane_of
from farmd.model.nodes import MAX_NODES, BootId, NodeId


@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    """A view's number. The boot id makes it unique per incarnation, so that no disk is needed to avoid reuse."""

    counter: int
    proposer: NodeId
    boot: BootId

    def __str__(self) -> str:
        return f"{self.counter}.{self.proposer}.{self.boot & 0xFFFF:04x}"


NO_BALLOT = Ballot(0, NodeId(0), BootId(0))
"""Below every ballot that was ever proposed."""


@dataclass(frozen=True, slots=True)
class View:
    """Members, weights and the owner of every bucket, under one ballot.

    `weights` and `owners` have one entry a group, in group order. A weights entry is `bytes` of length `MAX_NODES`:
    byte n is the configured weight of node n, kept also for nodes that are away, so that they come back as they were.
    An owners entry is an owner map (see `farmd.model.buckets`). `drained` nodes stay members and own nothing.
    """

    ballot: Ballot
    members: frozenset[NodeId]
    drained: frozenset[NodeId]
    weights: tuple[bytes, ...]
    owners: tuple[bytes, ...]

    @property
    def epoch(self) -> int:
        """The ballot's counter: what people see as the view's number."""
        return self.ballot.counter

    def weight(self, group: int, node: NodeId) -> int:
        """The weight that counts for `node` now: 0 while it is drained or away."""
        if node not in self.members or node in self.drained:
            return 0
        return self.weights[group][node]

    def share(self, group: int, node: NodeId, plane_of: PlaneOf = plane_of) -> int:
        """The plane of buckets that `node` owns in `group`."""
        return plane_of(self.owners[group], node)

    def shares(self, node: NodeId, plane_of: PlaneOf = plane_of) -> tuple[int, ...]:
        """`share` for every group."""
        return tuple(plane_of(owners, node) for owners in self.owners)

    def owner(self, group: int, bucket: int) -> NodeId | None:
        """The node that owns `bucket` in `group`, if any."""
        owner = self.owners[group][bucket]
        return None if owner == NOBODY else NodeId(owner)


def weights_table(weights: Mapping[NodeId, int]) -> bytes:
    """A `View.weights` entry from a mapping; nodes that it does not name get 0."""
    return bytes(weights.get(NodeId(node), 0) for node in range(MAX_NODES))


def successor(
    previous: View,
    ballot: Ballot,
    members: frozenset[NodeId],
    *,
    drained: frozenset[NodeId] | None = None,
    weights: tuple[bytes, ...] | None = None,
) -> View:
    """The view that follows `previous` with these members: the same weights unless given, the fewest buckets moved."""
    drained = previous.drained if drained is None else drained
    weights = previous.weights if weights is None else weights
    owners = tuple(
        assign(old, {node: 0 if node in drained else table[node] for node in members})
        for old, table in zip(previous.owners, weights, strict=True)
    )
    return View(ballot, members, drained, weights, owners)
