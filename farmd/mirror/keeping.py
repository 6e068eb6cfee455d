# SPDX-License-Identifier: Apache-2.0
"""Keeps a primary's log of dirty zones: events of the data path into the journal, durable before any change goes on.

Two threads. One takes events, writes their lines and confirms; it never waits for a change. The other makes room now
and then: a checkpoint of both nodes while paired, exact blocks for hot zones while alone. Both of these hold changes
up for a moment, and changes may be waiting for the first thread, which is why it does neither.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from farmd.mirror.datapath import DataEvent, DataPathError, EventKind, State, WriteThrough
from farmd.mirror.dirty import Batch, Bounds, DirtyLog
from farmd.mirror.handles import pack
from farmd.mirror.journal import JournalDamaged
from farmd.mirror.journalfile import JournalFile
from farmd.mirror.zones import ZONE_BYTES, Cover, Kind, Zone, place, touched
from farmd.model.errors import FarmError, KernelError

CHECKPOINT_S = 30.0
"""How long a zone stays in the activity log at most, while paired; a crash makes what is in there suspect."""
COOL_S = 5.0
_MANY_ZONES = 1024
"""A change of more zones at once counts as one of the whole file."""
_WAIT_S = 60.0


class Keeper:
    """The log of one mounted directory."""

    def __init__(
        self,
        fs: WriteThrough,
        path: Path,
        mirror: bytes,
        tell: Callable[[DataEvent], None],
        failed: Callable[[str], None],
        bounds: Bounds | None = None,
        *,
        inherited: bool = False,
    ) -> None:
        """Read the journal and begin. What it holds is suspect; one that is damaged says "everything".

        `inherited`: it says so only until `flushed`.
        """
        self._fs, self._tell, self._failed = fs, tell, failed
        self._file = JournalFile(path, mirror)
        try:
            cover = self._file.read()
        except JournalDamaged:
            cover = Cover(tree=b"")
        if inherited:
            cover.tree = None
        self._log = DirtyLog(bounds or Bounds(), cover)
        if inherited:
            self._log.inherit()
        self._lock = threading.Lock()
        self._marks: deque[Callable[[], None]] = deque()
        self._room = threading.Event()
        self._over = threading.Event()
        self._checkpointing = threading.Lock()
        self._ended = threading.Event()
        self._settled = False
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._begin()
        self._threads = [
            threading.Thread(target=self._take_events, name="mirror-log"),
            threading.Thread(target=self._make_room, name="mirror-room"),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Take the last events, put what is known into the journal, end. No change may be under way any more."""
        self._over.set()
        self._room.set()
        self._ended.set()
        os.write(self._stop_write, b"x")
        for thread in self._threads:
            thread.join()
        with self._lock:
            self._log.cool()
            self._write()
        self._file.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    # ---- what others ask ----

    @property
    def everything(self) -> bool:
        """The log does not say what differs: all must be compared."""
        with self._lock:
            return self._log.everything

    def counts(self) -> dict[str, int | bool]:
        """What the peer lacks, for people: bytes in 64 KiB blocks, files and names."""
        with self._lock:
            blocks, files = self._log.counts()
            return {"dirty_bytes": blocks * 65_536, "dirty_files": files, "dirty_more": self._log.everything}

    def has_little(self, zones: int, blocks: int) -> bool:
        """At most so much is known to differ, and nothing is only suspect."""
        with self._lock:
            return self._log.has_little(zones, blocks)

    def compare_everything(self) -> None:
        """The log says "everything" from now on; durable on return. Raises OSError."""
        with self._lock:
            self._log.compare_everything()
            self._write()

    def flushed(self) -> None:
        """What was inherited is durable. Raises OSError."""
        with self._lock:
            self._log.flushed()
            self._write()

    def suspect(self, zones: dict[Zone, int]) -> None:
        """The peer's copy may differ there as well; durable on return. Raises OSError."""
        with self._lock:
            for zone, mask in zones.items():
                self._log.suspect(zone, mask)
            self._write()

    def take(self) -> Batch:
        """All that is known to differ at one moment between two changes. Raises KernelError."""
        found: list[Batch] = []

        def at_mark() -> None:
            self._log.cool()
            found.append(self._log.take())

        self._at_mark(at_mark)
        return found[0]

    def sent(self) -> None:
        """What was taken is equal, and durable on both sides."""
        with self._lock:
            self._log.sent()
            self._write()

    def give_back(self) -> None:
        """What was taken is still to do."""
        with self._lock:
            self._log.give_back()

    def checkpoint(self) -> None:
        """Until both disks have all that was changed before. Raises DataPathError: the peer is lost."""
        with self._checkpointing:
            self._ended.clear()
            self._settled = False
            self._fs.checkpoint()
            while not self._ended.wait(1.0):
                if self._fs.stats().state is not State.PAIRED:
                    break
            if not self._settled:
                raise DataPathError("the checkpoint", "the peer was lost", "See the log")

    # ---- the thread that takes events ----

    def _take_events(self) -> None:
        poll = select.poll()
        poll.register(self._fs, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while not self._over.is_set():
            ready = {fd for fd, _ in poll.poll()}
            try:
                self._take_some()
            except (OSError, FarmError) as error:
                # Nothing is confirmed any more: no change goes on that the log does not have.
                self._failed(f"the log of dirty zones cannot be written: {error}")
                return
            if self._stop_read in ready:
                break
        while self._take_some():
            pass

    def _take_some(self) -> int:
        events = self._fs.events()
        others: list[DataEvent] = []
        with self._lock:
            for event in events:
                self._log.reached(event.number)
                if not self._apply(event):
                    others.append(event)
            self._write()
            # A peer that has just been attached lacks nothing: once both disks have it, the log may forget all.
            room = self._log.wants_room or any(event.kind is EventKind.ATTACHED for event in events)
        if events:
            self._fs.confirm(events[-1].number)
        for event in others:
            self._tell(event)
        if room:
            self._room.set()
        return len(events)

    def _apply(self, event: DataEvent) -> bool:
        """Into the log. False: it is for somebody else, too."""
        log, handle = self._log, pack(*event.handle)
        where = (pack(*event.parent), event.name) if event.parent[1] else None
        match event.kind:
            case EventKind.DATA:
                self._data(event, handle, where)
            case EventKind.INODE | EventKind.WHOLE:
                zone = Zone(Kind.META if event.kind is EventKind.INODE else Kind.WHOLE, handle)
                self._one(event, zone, where)
            case EventKind.NAMES:
                log.coarse(Zone(Kind.ENTRIES, handle))
            case EventKind.PLACE:
                self._one(event, place(handle, event.name), None)
            case EventKind.OVERFLOW:
                log.compare_everything()
            case EventKind.RETOLD:
                self._marks.popleft()()
            case EventKind.ATTACHED:
                log.attached()
            case EventKind.CHECKPOINT:
                log.settled(event.offset)
                self._settled = True
                self._ended.set()
            case EventKind.LOST:
                log.peer_lost()
                self._ended.set()
                return False
            case _:
                return False
        return True

    def _one(self, event: DataEvent, zone: Zone, where: tuple[bytes, bytes] | None) -> None:
        if event.waits:
            self._log.coarse(zone, where)
        else:
            self._log.fine(zone, 1, where)

    def _data(self, event: DataEvent, handle: bytes, where: tuple[bytes, bytes] | None) -> None:
        if event.length > _MANY_ZONES * ZONE_BYTES:
            self._one(event, Zone(Kind.WHOLE, handle), where)
            return
        for zone, mask in touched(handle, event.offset, event.length).items():
            if event.waits:
                self._log.coarse(zone, where)
            else:
                self._log.fine(zone, mask, where)

    # ---- the journal; the lock is held ----

    def _begin(self) -> None:
        with self._lock:
            self._log.begin_anew = True
            self._write()

    def _write(self) -> None:
        if not self._log.begin_anew and not self._file.wants_snapshot:
            lines = self._log.drain()
            if not lines or self._file.append(lines):
                return
        if not self._file.begin(self._log.cover()):
            self._log.compare_everything()
            self._file.begin(self._log.cover())

    # ---- the thread that makes room ----

    def _make_room(self) -> None:
        idle_s = 0.0
        while not self._over.is_set():
            pressed = self._room.wait(COOL_S)
            self._room.clear()
            if self._over.is_set():
                return
            idle_s += COOL_S
            try:
                if self._fs.stats().state is State.PAIRED:
                    if (pressed or idle_s >= CHECKPOINT_S) and self._has_something():
                        idle_s = 0.0
                        self.checkpoint()
                elif self._has_something():
                    self._at_mark(self._log.cool)
            except FarmError:
                continue  # the peer was lost, which an event says as well; or this node ends

    def _has_something(self) -> bool:
        with self._lock:
            return self._log.hot_zones > 0 or not self._log.quiet

    def _at_mark(self, act: Callable[[], None]) -> None:
        """Do it, in the thread that takes events, at a moment between two changes. Raises KernelError."""
        done = threading.Event()

        def at_mark() -> None:
            act()
            done.set()

        self._marks.append(at_mark)
        self._fs.retell()
        if not done.wait(_WAIT_S):
            raise KernelError("the log of dirty zones", "it does not answer", "See the node's log")
