# SPDX-License-Identifier: Apache-2.0
"""What applications were promised, and whether a copy keeps it."""

from __future__ import annotations

from tests.sim.mirror.disk import CELLS, Cell, Disk


class Violation(AssertionError):
    """A promise was broken."""


class Ledger:
    """Every version with the one that it replaced, and the newest that was acknowledged and synced, for each cell.

    A copy keeps a version if it has it, or one that continues it.
    """

    def __init__(self) -> None:
        self._replaced = [0, 0]
        self.acknowledged: dict[Cell, int] = {}
        self.synced: dict[Cell, int] = {}

    def new_version(self, over: int) -> int:
        self._replaced.append(over)
        return len(self._replaced) - 1

    def keeps(self, content: int, version: int) -> bool:
        while content > version:
            content = self._replaced[content]
        return content == version

    def wrote(self, cell: Cell, version: int) -> None:
        self.acknowledged[cell] = max(version, self.acknowledged.get(cell, 0))

    def check_promotion(self, name: str, disk: Disk, *, strict: bool) -> None:
        """A node begins to serve with what its disk shows."""
        content = disk.content
        for cell in CELLS:
            synced = self.synced.get(cell)
            if synced is not None and not self.keeps(content[cell], synced):
                raise Violation(f"{name} serves without a synced write")
            acknowledged = self.acknowledged.get(cell, 0)
            if acknowledged and not self.keeps(content[cell], acknowledged):
                if strict and not any(self.keeps(version, acknowledged) for version in disk.lost.get(cell, ())):
                    raise Violation(f"{name} serves without an acknowledged write that no power loss took from it")
                # Lost as a local disk may lose it; from here on this content counts.
                self.acknowledged[cell] = content[cell]
