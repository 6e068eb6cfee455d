# SPDX-License-Identifier: Apache-2.0
"""What a secondary remembers of the stream: zones that it was sent and has not flushed to disk.

When it is promoted it *inherits* them: they go into its own journal before anything else. Both copies have these
blocks, so nothing seems to differ; but a crash of the new primary would take them from its page cache, and then the
old one, brought back by comparing what the journals name, would keep a block that nobody else has.
"""

from __future__ import annotations

from collections.abc import Mapping

from farmd.mirror.zones import Line, Mark, Zone


class Unflushed:
    """Blocks received since the last flush. Bounded by the sender's cover: a flush settles both."""

    def __init__(self) -> None:
        self._zones: dict[Zone, tuple[int, int]] = {}

    def received(self, seq: int, touches: Mapping[Zone, int]) -> None:
        """Frame `seq` was applied here."""
        for zone, mask in touches.items():
            self._zones[zone] = (self._zones.get(zone, (0, 0))[0] | mask, seq)

    def flushed(self, seq: int) -> None:
        """A flush that began after frame `seq` was applied has ended."""
        self._zones = {zone: each for zone, each in self._zones.items() if each[1] > seq}

    def lines(self) -> list[Line]:
        """What a promotion inherits."""
        return [Mark(zone, mask, False) for zone, (mask, _) in sorted(self._zones.items())]
