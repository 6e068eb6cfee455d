# SPDX-License-Identifier: Apache-2.0
"""Bucket assignment: exact balance, minimal movement, one answer everywhere."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farmd.model.buckets import (
    BUCKETS,
    NO_OWNERS,
    NOBODY,
    assign,
    buckets_in,
    plane_bytes,
    plane_from_bits,
    plane_of,
    positions,
    seats,
)
from farmd.model.nodes import MAX_NODES, NodeId

nodes = st.integers(0, MAX_NODES - 1).map(NodeId)
weights = st.dictionaries(nodes, st.integers(0, 255), max_size=10)


def owner_maps(seed: int, owners: list[int]) -> bytes:
    return bytes(random.Random(seed).choices([*owners, NOBODY], k=BUCKETS))


histories = st.builds(owner_maps, st.integers(0, 2**32), st.lists(nodes, max_size=10))


def assign_plainly(previous: bytes, table: dict[NodeId, int]) -> bytes:
    """The same rule bucket by bucket, as an oracle for the whole-map operations of `assign`."""
    room = seats(table, {node: previous.count(node) for node in table})
    owners = [NOBODY] * BUCKETS
    homeless = []
    for bucket, owner in enumerate(previous):
        if room.get(NodeId(owner), 0):
            owners[bucket] = owner
            room[NodeId(owner)] -= 1
        else:
            homeless.append(bucket)
    while homeless and any(room.values()):
        for node in [node for node in sorted(room) if room[node]]:
            if homeless:
                owners[homeless.pop()] = node
                room[node] -= 1
    return bytes(owners)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(histories, weights)
def test_assign_agrees_with_its_plain_form(previous: bytes, table: dict[NodeId, int]) -> None:
    assert assign(previous, table) == assign_plainly(previous, table)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(histories, weights)
def test_shares_are_exact(previous: bytes, table: dict[NodeId, int]) -> None:
    owners = assign(previous, table)
    total = sum(table.values())
    for node, weight in table.items():
        count = owners.count(node)
        if total == 0:
            assert count == 0
        else:
            assert BUCKETS * weight // total <= count <= -(-BUCKETS * weight // total)
    assert owners.count(NOBODY) == (0 if total else BUCKETS)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(histories, weights)
def test_no_bucket_moves_without_need(previous: bytes, table: dict[NodeId, int]) -> None:
    owners = assign(previous, table)
    for node in table:
        before, after = previous.count(node), owners.count(node)
        stayed = sum(old == new == node for old, new in zip(previous, owners, strict=True))
        assert stayed == min(before, after), "a node both lost and gained buckets"


@settings(derandomize=True, deadline=None, max_examples=60)
@given(histories, weights, st.randoms(use_true_random=False))
def test_the_answer_does_not_depend_on_the_order_of_the_table(
    previous: bytes, table: dict[NodeId, int], shuffler: random.Random
) -> None:
    items = list(table.items())
    shuffler.shuffle(items)
    assert assign(previous, table) == assign(previous, dict(items))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(histories, weights)
def test_assigning_twice_moves_nothing(previous: bytes, table: dict[NodeId, int]) -> None:
    once = assign(previous, table)
    assert assign(once, table) == once


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_equal_weights_differ_by_one_bucket_at_most(count: int) -> None:
    owners = assign(NO_OWNERS, {NodeId(node): 100 for node in range(count)})
    shares = [owners.count(node) for node in range(count)]
    assert sum(shares) == BUCKETS
    assert max(shares) - min(shares) <= 1


def test_a_death_moves_only_the_dead_nodes_buckets() -> None:
    three = assign(NO_OWNERS, {NodeId(node): 1 for node in range(3)})
    two = assign(three, {NodeId(0): 1, NodeId(2): 1})
    assert all(old == new for old, new in zip(three, two, strict=True) if old != 1)


def test_neighbours_in_bucket_space_go_to_different_survivors() -> None:
    previous = bytes([0]) * 2048 + bytes([1]) * 1024 + bytes([2]) * 1024
    owners = assign(previous, {NodeId(1): 1, NodeId(2): 1})
    assert abs(owners[:2048].count(1) - 1024) <= 1


@pytest.mark.parametrize(("previous", "table"), [(b"", {}), (NO_OWNERS, {NodeId(64): 1}), (NO_OWNERS, {NodeId(0): -1})])
def test_nonsense_is_refused(previous: bytes, table: dict[NodeId, int]) -> None:
    with pytest.raises(ValueError, match=r"owner map|node numbers"):
        assign(previous, table)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(histories, nodes)
def test_planes_and_owner_maps_agree(owners: bytes, node: NodeId) -> None:
    plane = plane_of(owners, node)
    assert plane == plane_from_bits(owner == node for owner in owners)
    assert buckets_in(plane) == positions(owners, node)
    words = plane_bytes(plane)
    assert all((words[bucket // 8] >> bucket % 8 & 1) == (owners[bucket] == node) for bucket in range(BUCKETS))
