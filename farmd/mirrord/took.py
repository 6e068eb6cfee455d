# SPDX-License-Identifier: Apache-2.0
"""Where the time of a promotion goes, part by part: what somebody asks who waits for it at three in the morning."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from farmd.mirror import commands as do
from farmd.mirror.orders import Order, Promote
from farmd.model.errors import FarmError

PARTS: dict[type, str] = {
    do.Cas: "arbiter",
    do.ReadRegister: "arbiter",
    do.Persist: "record",
    do.Inherit: "journal",
    do.ClearJournal: "journal",
    do.StopReceiving: "receiver",
    do.StartAccepting: "mount",
}
"""The commands of the core that a promotion consists of. Parts may overlap, so they need not sum up to the total."""


class Took:
    """Milliseconds of the last promotion, from its order to the directory that is mounted."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._parts: dict[str, float] = {}
        self.last: dict[str, float] | None = None

    def begin(self, order: Order) -> None:
        """An order came; if it is one to promote, the clock runs."""
        if isinstance(order, Promote):
            self._began, self._parts = time.perf_counter(), {}

    def end(self, order: Order, error: FarmError | None) -> None:
        """It is carried out, or was refused: then nothing came of it."""
        if isinstance(order, Promote) and self._began is not None:
            total = (time.perf_counter() - self._began) * 1000
            self._began = None
            if error is None:
                self.last = {name: round(ms, 1) for name, ms in {"total": total, **self._parts}.items()}

    @contextmanager
    def part(self, command: type) -> Iterator[None]:
        """What is done inside is for this command."""
        name, began = PARTS.get(command), time.perf_counter()
        try:
            yield
        finally:
            if name is not None and self._began is not None:
                self._parts[name] = self._parts.get(name, 0.0) + (time.perf_counter() - began) * 1000
