# SPDX-License-Identifier: Apache-2.0
"""Delivery `directed`: who is asked for a connection whose bucket has moved, and who tells neighbours of a loss. Pure.

Several live nodes may have connections of one bucket if it moved more than once. They form a row, lowest number first,
that every node of a view knows alike: layer 0 names the first holder of each bucket (or `NOBODY`), layer 1 the second.
The owner asks the first, and each holder the one after itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from farmd.model.buckets import BUCKETS, NO_OWNERS, NOBODY
from farmd.model.nodes import NodeId
from farmd.model.view import View

MAX_HOLDERS = 7
"""Layers at most: with the way to the owner it makes FARM_HOPS of `ebpf/farm_abi.h`."""

_FULL = bytes(255 * (digit == ord("1")) for digit in range(256))


def holders(owners: bytes, claims: Mapping[NodeId, int]) -> tuple[bytes, ...]:
    """The layers of one group; `claims` are the planes of buckets of which each node may have connections.

    Whole-map operations on integers instead of a loop over buckets: a takeover waits for this.
    """
    layers: list[int] = []
    nobody = int.from_bytes(NO_OWNERS, "little")
    for node, plane in sorted(claims.items()):
        waiting = _spread(plane) & ~_marks(owners, node)
        mine = int.from_bytes(bytes([node]) * BUCKETS, "little")
        for rank, layer in enumerate(layers):
            place = waiting & _marks(_bytes(layer), NOBODY)
            layers[rank] = layer & ~place | mine & place
            waiting &= ~place
        if waiting and len(layers) < MAX_HOLDERS:
            layers.append(nobody & ~waiting | mine & waiting)
    return tuple(_bytes(layer) for layer in layers)


def following(me: NodeId, owners: bytes, layers: Sequence[bytes]) -> bytes:
    """Whom `me` asks next, by bucket: as owner the first holder, as a holder the one after it; else `NOBODY`."""
    answer = int.from_bytes(NO_OWNERS, "little")
    for askers, asked in zip((owners, *layers), layers, strict=False):
        mine = _marks(askers, me)
        answer = answer & ~mine | int.from_bytes(asked, "little") & mine
    return _bytes(answer)


def announcer(before: View, after: View) -> NodeId | None:
    """Who tells neighbours where the VIPs are now; None if no member was lost, so that no neighbour can be wrong.

    One announcement corrects every neighbour, so one node makes it: the next by number after the (lowest) lost one,
    among those that were there before and so know of the loss; of these rather one that serves.
    """
    lost, stayed = before.members - after.members, before.members & after.members
    candidates = stayed - after.drained or stayed
    if not lost or not candidates:
        return None
    first = min(lost)
    return min(candidates, key=lambda node: (node < first, node))


def _spread(plane: int) -> int:
    """A byte 255 for each bucket of the plane, 0 for the others, as one number."""
    return int.from_bytes(f"{plane:0{BUCKETS}b}".encode().translate(_FULL), "big")


def _marks(owners: bytes, node: int) -> int:
    """A byte 255 where `node` stands in the map."""
    return int.from_bytes(owners.translate(bytes(255 * (number == node) for number in range(256))), "little")


def _bytes(number: int) -> bytes:
    return number.to_bytes(BUCKETS, "little")
