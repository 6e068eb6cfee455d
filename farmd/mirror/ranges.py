# SPDX-License-Identifier: Apache-2.0
"""Ranges of a file's bytes, as (offset, length), and what they come from."""

from __future__ import annotations

from collections.abc import Iterable

from farmd.mirror.zones import BLOCK_BYTES, BLOCKS_PER_ZONE, Kind, Zone

Range = tuple[int, int]


def gathered(pieces: list[Range], limit_bytes: int) -> list[list[Range]]:
    """Pieces in groups of at most `limit_bytes`."""
    groups: list[list[Range]] = []
    room = 0
    for piece in pieces:
        if piece[1] > room:
            groups.append([])
            room = limit_bytes
        groups[-1].append(piece)
        room -= piece[1]
    return groups


def runs(numbers: Iterable[int]) -> list[Range]:
    """Neighbours joined, as (first, behind the last)."""
    found: list[Range] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def of_masks(masks: dict[Zone, int], zones: list[Zone], size: int) -> list[Range]:
    """The bytes that the masks of a file's zones mean, as (offset, length), up to its size."""
    found: list[Range] = []
    for zone in sorted(zone for zone in zones if zone.kind is Kind.DATA):
        mask, first = masks.get(zone, 0), zone.number * BLOCKS_PER_ZONE
        while mask:
            start = (mask & -mask).bit_length() - 1
            count = (~(mask >> start) & -~(mask >> start)).bit_length() - 1
            mask &= ~(((1 << count) - 1) << start)
            offset = (first + start) * BLOCK_BYTES
            length = min((first + start + count) * BLOCK_BYTES, size) - offset
            if length > 0:
                found.append((offset, length))
    return found
