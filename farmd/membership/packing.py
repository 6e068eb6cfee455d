# SPDX-License-Identifier: Apache-2.0
"""Bucket maps and planes in messages: deflated, and bounded before they are unpacked."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from farmd.model.buckets import BUCKETS, NOBODY, PLANE_BYTES
from farmd.model.nodes import MAX_NODES
from farmd.model.routes import MAX_HOLDERS
from farmd.model.rules import MAX_GROUPS

_LARGEST = 60_000
"""Bytes of planes and holders: what a datagram takes, with room for its envelope."""
_GROUPS = struct.Struct(">B")

Holders = tuple[tuple[bytes, ...], ...]
"""Layers by group (`farmd.model.routes`)."""


class WireError(ValueError):
    """Bytes that are no message of ours."""


def inflate(data: bytes, record: int, most: int = MAX_GROUPS) -> list[bytes]:
    """Unpack 1..`most` records of `record` bytes."""
    engine = zlib.decompressobj()
    try:
        plain = engine.decompress(data, record * most + 1)
    except zlib.error as error:
        raise WireError(f"cannot be unpacked: {error}") from error
    if not engine.eof or engine.unused_data or not plain or len(plain) % record or len(plain) > record * most:
        raise WireError(f"{len(plain)} bytes are no whole number of groups")
    return [plain[at : at + record] for at in range(0, len(plain), record)]


def pack_planes(planes: Sequence[int]) -> bytes:
    """Planes of all groups."""
    return zlib.compress(b"".join(plane.to_bytes(PLANE_BYTES, "little") for plane in planes), 1)


def unpack_planes(data: bytes) -> tuple[int, ...]:
    """The inverse of `pack_planes`."""
    return tuple(int.from_bytes(plane, "little") for plane in inflate(data, PLANE_BYTES))


def pack_holders(contested: Sequence[int], holders: Holders) -> bytes:
    """The planes of all groups, and their layers.

    Layers past what fits into a datagram are left out, last holders first: without a START nobody would serve.
    """
    planes = b"".join(plane.to_bytes(PLANE_BYTES, "little") for plane in contested)
    planes = planes.ljust(_planes_maps(len(contested)) * BUCKETS, b"\0")
    for most in range(max(map(len, holders)), -1, -1):
        kept = [layers[:most] for layers in holders]
        body = zlib.compress(planes + b"".join(layer for layers in kept for layer in layers), 1)
        if len(body) <= _LARGEST:
            break
    return b"".join((_GROUPS.pack(len(kept)), bytes(map(len, kept)), body))


def unpack_holders(data: bytes) -> tuple[tuple[int, ...], Holders]:
    """The inverse of `pack_holders`."""
    groups = data[0] if data else 0
    depths = data[1 : 1 + groups]
    if not 0 < groups <= MAX_GROUPS or len(depths) != groups or max(depths) > MAX_HOLDERS:
        raise WireError(f"a START of {groups} groups with up to {max(depths, default=0)} holders of a bucket")
    plane_maps = _planes_maps(groups)
    maps = inflate(data[1 + groups :], BUCKETS, plane_maps + sum(depths))
    if len(maps) != plane_maps + sum(depths):
        raise WireError(f"{len(maps)} maps where {plane_maps + sum(depths)} are told")
    if any(set(layer) - _HOLDERS for layer in maps[plane_maps:]):
        raise WireError("buckets held by nodes that cannot be")
    planes, layers = b"".join(maps[:plane_maps]), iter(maps[plane_maps:])
    cut = (planes[at : at + PLANE_BYTES] for at in range(0, groups * PLANE_BYTES, PLANE_BYTES))
    contested = tuple(int.from_bytes(plane, "little") for plane in cut)
    return contested, tuple(tuple(next(layers) for _ in range(depth)) for depth in depths)


_HOLDERS = frozenset((*range(MAX_NODES), NOBODY))


def _planes_maps(groups: int) -> int:
    """How many owner maps' worth of bytes the planes of so many groups fill."""
    return -(-groups * PLANE_BYTES // BUCKETS)
