# SPDX-License-Identifier: Apache-2.0
"""An application that counts what was acknowledged to it as durable."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.mirror.nodes import MirrorNode


class Writer:
    """Appends lines, each with an fsync, and counts those that were acknowledged. It ends at the first error."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ledger"
        self.acknowledged = 0
        self.longest_s = 0.0
        self.error: OSError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._path.open("a") as file:
                while not self._stop.is_set():
                    began = time.monotonic()
                    file.write(f"{self.acknowledged + 1}\n")
                    file.flush()
                    os.fsync(file.fileno())
                    self.longest_s = max(self.longest_s, time.monotonic() - began)
                    self.acknowledged += 1
        except OSError as error:
            self.error = error

    def goes_on(self, count: int = 20) -> None:
        """Until it has written `count` times more."""
        until("the application writes", lambda: self.acknowledged >= goal, goal := self.acknowledged + count)

    def ends(self) -> int:
        """Ended; how many lines were acknowledged."""
        self._stop.set()
        self._thread.join(90)
        assert not self._thread.is_alive(), "the application hangs"
        return self.acknowledged


def until(what: str, is_so: Callable[[], bool], _: object = None) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, f"not within a minute: {what}"
        time.sleep(0.02)


def lines(folder: Path) -> int:
    """How many lines of the ledger are there; they are 1, 2, 3 ..."""
    words = (folder / "ledger").read_text().split()
    assert words == [str(number) for number in range(1, len(words) + 1)]
    return len(words)


@contextlib.contextmanager
def writing(node: MirrorNode) -> Iterator[Writer]:
    writer = Writer(node.data)
    try:
        yield writer
    finally:
        writer.ends()
