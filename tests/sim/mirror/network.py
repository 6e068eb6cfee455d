# SPDX-License-Identifier: Apache-2.0
"""The network between the two nodes: two connections a session, each in order by itself, neither with the other.

Messages travel over `CONTROL`, data frames and their answers over `STREAM`. A message may overtake frames that were
sent before it, and be overtaken. Either connection may break alone, in one direction or both, and take with it what was
under way. What is left of an earlier session may still arrive, under that session's number.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

from farmd.mirror.messages import Message
from farmd.mirror.zones import Line
from farmd.model.nodes import NodeId
from tests.sim.mirror.disk import Cell


class Wire(IntEnum):
    """Which of a session's two connections."""

    CONTROL = 0
    STREAM = 1


@dataclass(slots=True)
class Frame:
    """One frame. `seq` counts the sender's frames; `after` is what must be applied before it may be acted on."""

    kind: str
    seq: int = 0
    cells: dict[Cell, int] = field(default_factory=dict)
    message: Message | None = None
    lines: list[Line] = field(default_factory=list)
    after: int = 0

    @property
    def wire(self) -> Wire:
        """A journal's cover travels with the messages, in front of READY."""
        return Wire.CONTROL if self.kind in {"message", "cover"} else Wire.STREAM


@dataclass(slots=True, eq=False)
class Way:
    """One direction of one connection."""

    queue: deque[Frame] = field(default_factory=deque)
    arrives: bool = True
    """Whether what is sent from now on still arrives."""

    def cut(self, rng: random.Random, keep: float = 0.5) -> None:
        """From some frame on everything is lost; each of those under way survives its successor with `keep`."""
        self.arrives = False
        while self.queue and rng.random() >= keep:
            self.queue.pop()


class Session:
    """The two connections between two engines, from the greeting to the moment when both sides have given them up."""

    def __init__(self, number: int, names: tuple[NodeId, ...]) -> None:
        self.number = number
        self.ways = {name: (Way(), Way()) for name in names}
        """To each node: its ways by `Wire`."""

    @property
    def whole(self) -> bool:
        """Whether everything that is sent arrives."""
        return all(way.arrives for ways in self.ways.values() for way in ways)

    @property
    def empty(self) -> bool:
        """Whether nothing is under way."""
        return not any(way.queue for ways in self.ways.values() for way in ways)
