# SPDX-License-Identifier: Apache-2.0
"""How long a node must be steadily heard before it is let in: longer with every failure, so that one bad node cannot
move everybody's buckets again and again."""

from __future__ import annotations

from farmd.model.config import Timing
from farmd.model.nodes import NodeId

_FORGIVEN_AFTER = 10
"""A failure is forgotten after so many of the longest hold-downs."""


class HoldDown:
    """Counts failures of each node and says how long it is kept out for them."""

    def __init__(self, timing: Timing) -> None:
        self._first_ns = timing.hold_down_ns
        self._most_ns = timing.hold_down_max_ns
        self._failures: dict[NodeId, tuple[int, int]] = {}

    def failed(self, now_ns: int, node: NodeId) -> None:
        """`node` fell out of the view."""
        self._failures[node] = (self._count(now_ns, node) + 1, now_ns)

    def needed_ns(self, now_ns: int, node: NodeId) -> int:
        """How long `node` must have been steadily heard to be let in."""
        doublings = max(0, self._count(now_ns, node) - 1)
        return min(self._most_ns, self._first_ns << min(doublings, 32))

    def _count(self, now_ns: int, node: NodeId) -> int:
        count, last_ns = self._failures.get(node, (0, now_ns))
        return 0 if now_ns - last_ns > _FORGIVEN_AFTER * self._most_ns else count
