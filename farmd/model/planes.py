# SPDX-License-Identifier: Apache-2.0
"""One node's planes of one group, and the two steps of a move: release first, acquire when the view starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Planes:
    """The three bitmaps that the filter reads (see `farmd.model.buckets` for the bit set form).

    `own`: accept. `held`: moved away, connections may still live here. `fresh`: owned, and a live node still holds
    connections of it; only meaningful together with `own`. Invariant: `own & held == 0` and `fresh & ~own == 0`.
    """

    own: int = 0
    held: int = 0
    fresh: int = 0

    @property
    def claims(self) -> int:
        """Every bucket of which this node may have connections."""
        return self.own | self.held


CLOSED = Planes()
"""Accepts nothing."""


def release(planes: Planes, share: int) -> Planes:
    """Close what `share` does not give us, before we promise anything; what we close we go on holding."""
    own = planes.own & share
    lost = planes.own ^ own  # as `& ~share`, without a negative number, which takes Python far longer
    return Planes(own=own, held=planes.held | lost, fresh=planes.fresh & own)


def acquire(planes: Planes, share: int, claimed_elsewhere: int) -> Planes:
    """Open our share of a started view; buckets that another live node may have connections of open as `fresh`."""
    held = planes.held ^ (planes.held & share)
    return Planes(own=share, held=held, fresh=share & claimed_elsewhere)


def forget_held(planes: Planes, buckets: int) -> Planes:
    """Drop `buckets` from `held`: no connection of theirs is left here."""
    return Planes(own=planes.own, held=planes.held & ~buckets, fresh=planes.fresh)


def settle(planes: Planes) -> Planes:
    """Nobody else holds connections any more: unknown segments may reach the stack again and be reset by it."""
    return Planes(own=planes.own, held=planes.held, fresh=0)
