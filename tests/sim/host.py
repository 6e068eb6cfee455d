# SPDX-License-Identifier: Apache-2.0
"""One simulated server: a clock that runs a little wrong, a kernel that outlives its engine, and the engine's core."""

from __future__ import annotations

from dataclasses import dataclass, field

from farmd.membership.core import Node
from farmd.membership.messages import Message
from farmd.model.nodes import NodeId
from farmd.model.planes import Planes

MILLION = 1_000_000


@dataclass(slots=True)
class Clock:
    """Local time = offset + true time, running `ppm` millionths too fast."""

    offset_ns: int
    ppm: int

    def local(self, true_ns: int) -> int:
        return self.offset_ns + true_ns + true_ns * self.ppm // MILLION

    def true(self, local_ns: int) -> int:
        """The first true time at which this clock shows `local_ns` or more."""
        return -(-(local_ns - self.offset_ns) * MILLION // (MILLION + self.ppm))


@dataclass(slots=True)
class Host:
    """What is left when the engine crashes is the kernel: `planes` and `deadline_ns` (true time)."""

    id: NodeId
    clock: Clock
    planes: tuple[Planes, ...]
    deadline_ns: int = 0
    node: Node | None = None
    boots: int = 0
    wake_ns: int = 0
    """True time of the wake-up that counts; others in the queue are stale."""
    stalled_until_ns: int = 0
    stalled_since_ns: int = 0
    backlog: list[tuple[NodeId, Message | bytes]] = field(default_factory=list)
    postponed: list[object] = field(default_factory=list)
    """Commands that a stall cut off."""
    halted: bool = False

    def open_planes(self, true_ns: int) -> tuple[int, ...] | None:
        """What the filter accepts at this instant."""
        if self.deadline_ns <= true_ns:
            return None
        return tuple(planes.own for planes in self.planes)
