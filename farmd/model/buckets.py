# SPDX-License-Identifier: Apache-2.0
"""Who owns which bucket: exact shares by weight, and as few moves as those shares allow.

An owner map is `bytes` of length `BUCKETS`: byte b is the `NodeId` that owns bucket b, or `NOBODY`. A plane is an `int`
used as a bit set: bit b stands for bucket b. Both are cheap to copy, compare and send, and a plane's little-endian
bytes are the kernel's 64-bit words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import compress, cycle

from farmd.model.nodes import MAX_NODES, NodeId

BUCKETS = 4096
NOBODY = 255
NO_OWNERS = bytes([NOBODY]) * BUCKETS
ALL_BUCKETS = (1 << BUCKETS) - 1
PLANE_BYTES = BUCKETS // 8
_DIGITS = tuple(bytes(48 + (owner == node) for owner in range(256)) for node in range(MAX_NODES))
"""For each node a translation of an owner map into binary digits: 1 where it is the owner."""


def seats(weights: Mapping[NodeId, int], held: Mapping[NodeId, int]) -> dict[NodeId, int]:
    """How many buckets each node gets.

    Every node gets the floor or the ceiling of its exact share `BUCKETS * weight / total` (so equal weights differ by
    at most one bucket), and weight 0 gets none. The odd buckets go first to nodes that already hold more than their
    floor in `held`, because that moves fewest, then by the largest remainder, then by number, so that every node
    computes the same answer.
    """
    total = sum(weights.values())
    if total == 0:
        return dict.fromkeys(weights, 0)
    result = {node: BUCKETS * weight // total for node, weight in weights.items()}
    rest = BUCKETS - sum(result.values())
    remainder = {node: BUCKETS * weight % total for node, weight in weights.items()}
    odd = sorted(
        (node for node in weights if remainder[node]),
        key=lambda node: (held.get(node, 0) <= result[node], -remainder[node], node),
    )
    for node in odd[:rest]:
        result[node] += 1
    return result


def assign(previous: bytes, weights: Mapping[NodeId, int]) -> bytes:
    """The owner map for `weights` that moves fewest buckets away from `previous`.

    Invariants: counts equal `seats(...)`; a bucket changes hands only if its owner is gone or holds more than its
    seats; so a dead node's buckets are the only ones that move when it dies, and a joiner takes just its share. With no
    weight above 0, nobody owns anything.
    """
    if len(previous) != BUCKETS:
        raise ValueError(f"an owner map has {BUCKETS} bytes, not {len(previous)}")
    if any(not 0 <= node < MAX_NODES or weight < 0 for node, weight in weights.items()):
        raise ValueError(f"node numbers are 0..{MAX_NODES - 1} and weights are not negative: {dict(weights)}")
    held = {node: previous.count(node) for node in weights}
    room = seats(weights, held)
    # Whole-map operations of bytes instead of a loop over buckets: a takeover waits for this.
    owners = bytearray(previous.translate(bytes(node if room.get(NodeId(node), 0) else NOBODY for node in range(256))))
    for node, has in held.items():
        kept = min(has, room[node])
        if kept:
            _disown_last(owners, node, has - kept)
            room[node] -= kept
    homeless = positions(bytes(owners), NOBODY)
    # Deal the rest out in turn, so that a dead node's neighbours in bucket space don't all land on one survivor.
    while homeless and (takers := [node for node in sorted(room) if room[node] > 0]):
        rounds = max(1, min(len(homeless) // len(takers), *(room[node] for node in takers)))
        dealt = homeless[-rounds * len(takers) :]
        del homeless[-rounds * len(takers) :]
        for bucket, node in zip(reversed(dealt), cycle(takers)):
            owners[bucket] = node
            room[node] -= 1
    return bytes(owners)


def _disown_last(owners: bytearray, node: NodeId, count: int) -> None:
    """Take the `count` highest buckets of `node` away from it."""
    at = len(owners)
    for _ in range(count):
        at = owners.rfind(node, 0, at)
        owners[at] = NOBODY


def positions(owners: bytes, owner: int) -> list[int]:
    """The buckets whose entry is `owner`, ascending."""
    marks = bytes(number == owner for number in range(256))
    return list(compress(range(len(owners)), owners.translate(marks)))


PlaneOf = Callable[[bytes, NodeId], int]
"""What computes `plane_of`: this module's, or its fast twin in C, which an engine uses."""


def plane_of(owners: bytes, node: NodeId) -> int:
    """The plane of the buckets that `node` owns."""
    digits = owners.translate(_DIGITS[node])
    return int(digits[::-1], 2)


def plane_from_bits(bits: Iterable[bool]) -> int:
    """The plane whose bit b is the b-th truth value of `bits`."""
    digits = "".join("1" if bit else "0" for bit in bits)
    return int(digits[::-1] or "0", 2)


def buckets_in(plane: int) -> list[int]:
    """The bucket numbers set in `plane`, ascending."""
    return [bucket for bucket, digit in enumerate(reversed(f"{plane:b}")) if digit == "1"]


def plane_bytes(plane: int) -> bytes:
    """`plane` as the kernel's 512 bytes (64-bit words of a little-endian machine)."""
    return plane.to_bytes(PLANE_BYTES, "little")
