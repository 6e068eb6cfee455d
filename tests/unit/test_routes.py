# SPDX-License-Identifier: Apache-2.0
"""Delivery `directed`: the row of nodes that may have a connection, and who tells neighbours of a loss."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from farmd.model.buckets import ALL_BUCKETS, BUCKETS, NO_OWNERS, NOBODY
from farmd.model.nodes import NodeId
from farmd.model.routes import MAX_HOLDERS, announcer, following, holders
from tests.unit import farms


def row(bucket: int, owners: bytes, layers: tuple[bytes, ...]) -> list[int]:
    """Whom a frame visits after the owner, each node knowing only its own part."""
    visited, node = [], owners[bucket]
    while (node := following(NodeId(node), owners, layers)[bucket]) != NOBODY:
        visited.append(node)
    return visited


def test_every_holder_is_visited_once_and_the_owner_never() -> None:
    rng = random.Random(3)
    owners = bytes(rng.choice((0, 1, 2, 63)) for _ in range(BUCKETS))
    claims = {NodeId(node): rng.getrandbits(BUCKETS) for node in (0, 1, 2, 5)}
    layers = holders(owners, claims)
    for bucket in rng.sample(range(BUCKETS), 60):
        expected = [node for node, plane in claims.items() if plane >> bucket & 1 and node != owners[bucket]]
        assert row(bucket, owners, layers) == expected


def test_a_settled_farm_has_no_holders() -> None:
    owners = bytes([1]) * BUCKETS
    assert holders(owners, {NodeId(0): 0, NodeId(1): ALL_BUCKETS}) == ()
    assert following(NodeId(1), owners, ()) == NO_OWNERS


def test_who_neither_owns_nor_holds_asks_nobody() -> None:
    owners = bytes([1]) * BUCKETS
    layers = holders(owners, {NodeId(2): ALL_BUCKETS})
    assert following(NodeId(1), owners, layers) == bytes([2]) * BUCKETS
    assert following(NodeId(2), owners, layers) == following(NodeId(3), owners, layers) == NO_OWNERS


def test_the_row_is_no_longer_than_a_frame_may_hop() -> None:
    owners = bytes([0]) * BUCKETS
    layers = holders(owners, {NodeId(node): ALL_BUCKETS for node in range(1, 20)})
    assert [layer[7] for layer in layers] == list(range(1, 1 + MAX_HOLDERS))


@pytest.mark.parametrize(
    ("before", "after", "drained", "speaks"),
    [
        ({0, 1, 2}, {0, 1, 2}, set(), None),
        ({0, 1}, {0, 1, 2}, set(), None),
        ({0, 1, 2}, {0, 2}, set(), 2),
        ({0, 1, 2}, {0, 1}, set(), 0),
        ({0, 1, 2}, {1, 2}, set(), 1),
        ({0, 1, 2, 3}, {0, 3}, set(), 3),
        ({0, 1, 2}, {0, 2}, {2}, 0),
        ({0, 1, 2}, {2, 3}, {2}, 2),
        ({0, 1, 2}, {2, 3}, set(), 2),
        ({0, 1}, {2}, set(), None),
    ],
)
def test_one_node_announces_a_loss(before: set[int], after: set[int], drained: set[int], speaks: int | None) -> None:
    old, new = (
        replace(farms.view(), members=frozenset(map(NodeId, members)), drained=frozenset(map(NodeId, away)))
        for members, away in ((before, set[int]()), (after, drained))
    )
    assert announcer(old, new) == speaks
