# SPDX-License-Identifier: Apache-2.0
"""A primary that keeps a log of dirty zones, and a target that it fails back to: real processes, real journal.

What the target gets is applied by a confined process, as on a node."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from farmd.mirror import journalfile
from farmd.mirror.failback import cover_of
from farmd.mirror.keeping import CHECKPOINT_S
from farmd.mirror.native import excludes
from farmd.mirror.zones import Cover
from farmd.mirrord.logbook import handed
from tests.mirror.pair import DEADLINE_S, EngineProcess, Pair, connected
from tests.mirror.trees import differences

MIRROR = bytes(range(16))


class LogPair:
    """`mount` is written to, `backing` is what the primary has and `copy` what the target has."""

    def __init__(
        self,
        freeze_s: float = 60.0,
        rate_bytes_s: int = 0,
        *,
        excluded: tuple[str, ...] = (),
        folder: Path | None = None,
        connect: Callable[[], tuple[socket.socket, socket.socket]] = connected,
    ) -> None:
        """`connect` gives the two ends of a new connection between the nodes."""
        self._pace: dict[str, Any] = {"freeze_s": freeze_s, "rate_bytes_s": rate_bytes_s}
        self._connect, self._excluded = connect, excluded
        self.pair = Pair(folder)
        self.mount, self.backing, self.copy = self.pair.mount, self.pair.backing, self.pair.copy
        self.journal = self.pair.base / "journal"
        self.records = self.pair.base / "records"

    def __enter__(self) -> LogPair:
        self.records.mkdir()
        journalfile.clear(self.journal, MIRROR)
        self.start()
        return self

    @property
    def primary(self) -> EngineProcess:
        return self.pair.primary

    def start(self) -> None:
        """Mount, alone."""
        settings = {"backing": str(self.backing), "mount_point": str(self.mount), "confirm": True}
        # A stream that breaks is a failure of the test, not one that waits for ever for somebody to decide.
        settings |= {"excluded": self._excluded, "decide_ms": int(DEADLINE_S / 2 * 1000)} | self.pair.settings
        self.primary.do("mount", settings=settings, log={"path": str(self.journal), "mirror": MIRROR.hex()})

    def begin_fail_back(self, before: Callable[[LogPair], None] | None = None, their_log: Cover | None = None) -> None:
        """It goes on in both processes; a new one has been made for the target. `before` the primary hears of it."""
        self.pair.session += 1
        ours, theirs = self._connect()
        stream, far_stream = self._connect()
        order: dict[str, Any] = {"session": self.pair.session, "epoch": 1}
        root = self.begin_target()
        with ours, theirs, stream, far_stream:
            self.pair.secondary.do("receive", far_stream.fileno(), backing=f"/proc/self/fd/{root}", **order)
            self.patch(theirs, root, their_log or Cover())
            if before is not None:
                before(self)
            self.primary.do("failback", ours.fileno(), stream.fileno(), **order, **self._pace)

    def begin_target(self) -> int:
        """A new, confined process for the target; the directory's descriptor in it."""
        self.pair.secondary.close()
        folders = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (self.copy, self.records)]
        self.pair.secondary = EngineProcess(*folders, module="farmd.mirrord.worker")
        self.pair.secondary.do("confine", root=folders[0], records=folders[1], readable=[])
        for fd in folders:
            os.close(fd)
        return folders[0]

    def patch(self, theirs: socket.socket, root: int, their_log: Cover) -> None:
        """The target takes a failback from `theirs`; "passed" is its last word."""
        order = {"root": root, "token": self.pair.session, "excluded": self._excluded, "keys": None, "peer": ""}
        copy = os.open(self.copy, os.O_RDONLY | os.O_DIRECTORY)
        with os.fdopen(handed(cover_of(copy, their_log))) as cover:
            self.pair.secondary.do("patch", theirs.fileno(), cover.fileno(), **order)
        os.close(copy)

    def fail_back(self, their_log: Cover | None = None) -> dict[str, Any]:
        """Until the target is attached; what it came to. Raises AssertionError with the reason if it failed."""
        self.begin_fail_back(their_log=their_log)
        ended = self.primary.wait_for_any("failback", "failback-failed")
        self.pair.secondary.wait_for("passed")
        assert ended["event"] == "failback", ended["text"]
        return ended

    def settled(self) -> None:
        """Until both disks have all and the journal says so: at once, not at the next checkpoint's turn."""
        end = time.monotonic() + CHECKPOINT_S / 2
        while self.log().marks or self.log().tree is not None:
            assert time.monotonic() < end, self.log()
            time.sleep(0.05)

    def settle(self) -> None:
        """Until the target has everything."""
        self.pair.settle()

    def part(self) -> None:
        """The peer is lost, and this node goes on alone."""
        self.primary.do("detach")
        self.primary.do("go-alone")

    def kill_primary(self) -> None:
        """As a crash of its process."""
        self.primary.kill()
        self.primary.control.close()
        subprocess.run(["umount", "-l", str(self.mount)], capture_output=True, check=True)
        self.pair.primary = EngineProcess()

    def differences(self) -> list[str]:
        """Between both copies, as a user of the directories sees them, but for what is excluded."""
        return differences(self.backing, self.copy, skip=lambda path: excludes(self._excluded, path))

    def log(self) -> Cover:
        """What the journal says on the disk."""
        return journalfile.load(self.journal, MIRROR)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pair.__exit__(kind, error, trace)
        Path(self.journal).unlink(missing_ok=True)
