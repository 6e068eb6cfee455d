# SPDX-License-Identifier: Apache-2.0
"""The data path of one node in the model: what the engine in C does, on the real tracking and acknowledgement rules.

Every stage of an operation is a step of its own, so that crashes, cuts and commands fall between any two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from farmd.mirror.acks import Gate, Standing, may_return
from farmd.mirror.events import ResyncDrained, Settled, Stopped, VerifyEnded
from farmd.mirror.messages import Done, Message
from farmd.mirror.receiving import Unflushed
from farmd.mirror.tracking import Admission, Limits, Tracker
from farmd.mirror.zones import Line, Mark, Zone
from tests.sim.mirror.disk import CELLS, HANDLES, Cell
from tests.sim.mirror.network import Frame, Wire

if TYPE_CHECKING:
    from tests.sim.mirror.world import Host

LIMITS = Limits(hot_zones=3, max_zones=64)


@dataclass(slots=True, eq=False)
class Op:
    """One operation of the application: a write of some cells, or a sync of some."""

    cells: tuple[Cell, ...]
    sync: bool
    versions: dict[Cell, int] = field(default_factory=dict)
    done_here: bool = False
    needs: int | None = None
    """The frame that the peer must have applied, or have durable; None: nothing of it is in the stream."""


@dataclass(slots=True, eq=False)
class Verifying:
    """A comparison under way: digests stand in the stream between the writes, so what differs, differs."""

    repair: bool
    left: list[Zone]
    awaited: int = 0
    differences: int = 0


def touches(cells: Iterable[Cell]) -> dict[Zone, int]:
    """Zones and masks of cells."""
    found: dict[Zone, int] = {}
    for zone, bit in cells:
        found[zone] = found.get(zone, 0) | bit
    return found


class Engine:
    """One incarnation of a node's data path."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.disk = host.disk
        self.tracker = Tracker(LIMITS)
        self.unflushed = Unflushed()
        self.gate = Gate.CLOSED
        self.accepting = self.draining = False
        self.session: int | None = None
        self.forwarding = self.receiving = False
        self.seq = 0
        self.sent = 0
        self.received = 0
        self.applied = 0
        self.durable: set[int] = set()
        self.ops: list[Op] = []
        self.batches: deque[list[Line]] = deque()
        self.reported = self.repairing = False
        self.checkpoint = 0
        self.closing_checkpoint = False
        self.copy: tuple[Zone, int, dict[Cell, int]] | None = None
        self.verifying: Verifying | None = None

    # ---- the application ----

    def submit(self, op: Op) -> None:
        if self.accepting and not self.draining and len(self.ops) < 4:
            self.ops.append(op)

    def step_op(self, op: Op) -> None:
        """One stage of an operation."""
        if not op.done_here:
            if op.sync:
                self._sync(op)
            else:
                self._write(op)
            return
        there = op.needs is not None and (op.needs in self.durable if op.sync else self.applied >= op.needs)
        standing = Standing(op.sync, True, op.needs is not None, there)
        if may_return(self.host.world.mode, self.gate, standing):
            self.ops.remove(op)
            self.host.world.acknowledged(self.host, op)
            self._check_drained()

    def _write(self, op: Op) -> None:
        touched = touches(op.cells)
        admission = self.tracker.admit(touched)
        self.queue_lines()
        if admission is Admission.FULL:
            self.flush_both()
        if admission is not Admission.READY:
            return
        in_stream = {cell for cell in op.cells if self._forwards(cell)}
        for cell in op.cells:
            op.versions[cell] = self.host.world.ledger.new_version(self.disk.content[cell])
            self.disk.write(cell, op.versions[cell])
        both = touches(in_stream)
        rest = {zone: mask & ~both.get(zone, 0) for zone, mask in touched.items()}
        if in_stream:
            self.send(Frame("write", self.next_seq(), {cell: op.versions[cell] for cell in in_stream}))
        for zone in touched:
            if zone in both:
                self.tracker.wrote(self.seq, {zone: both[zone]}, forwarded=True)
                if rest[zone]:
                    self.tracker.admit({zone: 0})
                    self.tracker.wrote(0, {zone: rest[zone]}, forwarded=False)
            else:
                self.tracker.wrote(0, {zone: rest[zone]}, forwarded=False)
        op.needs = self.seq if in_stream == set(op.cells) else None
        op.done_here = True

    def _forwards(self, cell: Cell) -> bool:
        return self.forwarding and (self.gate is Gate.PEER or not self.tracker.is_unsent(*cell))

    def _sync(self, op: Op) -> None:
        op.versions = {cell: self.disk.content[cell] for cell in op.cells}
        if self.forwarding:
            self.send(Frame("sync", self.next_seq(), dict.fromkeys(op.cells, 0)))
            op.needs = self.seq
        self.disk.sync(op.cells)
        op.done_here = True

    def _check_drained(self) -> None:
        if self.draining and not self.ops and self.accepting:
            self.accepting = False
            self.host.tell(Stopped())

    # ---- the journal ----

    def queue_lines(self) -> None:
        lines = self.tracker.drain()
        if lines:
            self.batches.append(lines)

    def step_journal(self) -> None:
        if self.batches:
            lines = self.batches.popleft()
            self.host.journal.append(lines)
            self.tracker.logged(lines)

    def pump_journal(self) -> None:
        self.queue_lines()
        while self.batches:
            self.step_journal()

    # ---- the primary's stream ----

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def send(self, frame: Frame) -> None:
        if self.session is not None:
            if frame.wire is Wire.STREAM:
                self.sent = frame.seq
            self.host.world.transmit(self.host, self.session, frame)

    def say(self, message: Message) -> None:
        """A message may overtake frames; DONE is held back over there until those in front of it are applied."""
        after = self.sent if isinstance(message, Done) else 0
        self.send(Frame("message", message=message, after=after))

    def _answer(self, kind: str, seq: int, cells: dict[Cell, int] | None = None) -> None:
        if self.session is not None:
            self.host.world.transmit(self.host, self.session, Frame(kind, seq, cells or {}))

    def step_resync(self) -> None:
        """Send one zone, or one file of the walk: read, send and mark under the lock of its writers."""
        if not self.forwarding or self.session is None:
            return
        work = self.tracker.next_unsent()
        if work is not None:
            self._send_zone(*work)
        elif self.tracker.tree is not None:
            self._send_file()
        elif not self.reported:
            self.reported = True
            self.host.tell(ResyncDrained(self.session))

    def _send_zone(self, zone: Zone, mask: int) -> None:
        if self.host.world.stale_copies and self.copy is None:
            # A mutant: the copy is read without the lock, and sent some steps later.
            self.copy = (zone, mask, self._read(zone, mask))
            return
        content = self._read(zone, mask)
        if self.copy is not None:
            zone, mask, content = self.copy
            self.copy = None
        # A repair overwrites a whole copy with what it should be.
        self.send(Frame("write" if self.repairing else "zone", self.next_seq(), content))
        self.tracker.sent(self.seq, zone, mask)

    def _read(self, zone: Zone, mask: int) -> dict[Cell, int]:
        return {cell: self.disk.content[cell] for cell in CELLS if cell[0] == zone and cell[1] & mask}

    def _send_file(self) -> None:
        above = self.tracker.tree
        assert above is not None
        handle = next((each for each in HANDLES if each > above), None)
        content = {cell: self.disk.content[cell] for cell in CELLS if cell[0].handle == handle}
        self.send(Frame("zone", self.next_seq(), content))
        for zone, mask in touches(content).items():
            if self.tracker.is_tracked(zone):
                self.tracker.sent(self.seq, zone, mask)
        self.tracker.compared(self.seq, handle if handle != HANDLES[-1] else None)

    # ---- verify ----

    def verify(self, *, repair: bool) -> None:
        if self.verifying is None:
            self.verifying = Verifying(repair, sorted({zone for zone, _ in CELLS}, reverse=True))

    def step_verify(self) -> None:
        """Ask about one zone; at the end, and when what differed is sent, tell."""
        work = self.verifying
        if work is None or self.session is None or not self.forwarding:
            return
        if work.left:
            zone = work.left.pop()
            work.awaited += 1
            self.send(Frame("digest", self.next_seq(), self._read(zone, zone.full)))
        elif not work.awaited and self.repairing and not self.tracker.settled:
            # What was repaired counts when it is durable: the rotten block was what a power loss would leave.
            self.flush_both()
        elif not work.awaited:
            self.verifying = None
            self.host.world.verified(work.differences)
            self.host.tell(VerifyEnded(self.session, work.differences))

    def _compared(self, frame: Frame) -> None:
        work = self.verifying
        assert work is not None
        work.awaited -= 1
        work.differences += len(frame.cells)
        if work.repair and frame.cells:
            self.tracker.suspect([Mark(zone, mask, False) for zone, mask in touches(frame.cells).items()])
            self.queue_lines()
            self.reported, self.repairing = False, True

    # ---- checkpoints ----

    def step_background(self) -> None:
        """A checkpoint now and then."""
        if not self.host.world.lazy:
            self.flush_both()

    def flush_both(self) -> None:
        """A checkpoint, if none is under way; alone, only the journal is tidied."""
        if self.forwarding and not self.checkpoint:
            self.checkpoint = self.next_seq()
            self.send(Frame("flush", self.checkpoint))
            self.disk.sync()
        elif not self.forwarding:
            self.tracker.tidy()
            self.queue_lines()

    def connected(self, session: int) -> None:
        self.session = session
        self.sent = self.received = self.applied = 0
        self.durable.clear()

    def lost(self) -> None:
        self.session = None
        self.receiving = False
        self._stop_forwarding()

    def _stop_forwarding(self) -> None:
        self.forwarding = self.reported = self.repairing = self.closing_checkpoint = False
        self.checkpoint, self.copy, self.verifying = 0, None, None
        self.tracker.peer_lost()
        for op in self.ops:
            op.needs = None

    # ---- frames ----

    def receive(self, frame: Frame) -> None:
        if frame.kind in {"write", "zone", "sync", "flush", "digest"}:
            if self.receiving:
                self._apply(frame)
                self.received = frame.seq
        elif frame.kind == "applied":
            self.applied = max(self.applied, frame.seq)
        elif frame.kind == "durable":
            self.durable.add(frame.seq)
            self.applied = max(self.applied, frame.seq)
        elif frame.kind == "flushed" and frame.seq == self.checkpoint:
            self._flushed(frame.seq)
        elif frame.kind == "compared" and self.verifying is not None:
            self._compared(frame)
        elif frame.kind == "cover":
            self.tracker.suspect(frame.lines)
            self.queue_lines()

    def _apply(self, frame: Frame) -> None:
        """The secondary's part."""
        match frame.kind:
            case "sync":
                self.disk.sync(frame.cells)
                self._answer("durable", frame.seq)
            case "flush":
                self.host.world.flush_peer(self.disk)
                self.unflushed.flushed(frame.seq)
                self._answer("flushed", frame.seq)
            case "digest":
                differ = {cell: 1 for cell, version in frame.cells.items() if self.disk.content[cell] != version}
                self._answer("compared", frame.seq, differ)
            case _:
                if frame.kind == "zone":
                    self.host.half_synced = True
                for cell, version in frame.cells.items():
                    self.disk.write(cell, version)
                self.unflushed.received(frame.seq, touches(frame.cells))
                self._answer("applied", frame.seq)

    def _flushed(self, seq: int) -> None:
        self.checkpoint = 0
        self.applied = max(self.applied, seq)
        self.tracker.settle(seq)
        self.tracker.check()
        self.queue_lines()
        if self.closing_checkpoint and self.session is not None:
            if self.tracker.settled:
                self.tracker.tidy()
                self.pump_journal()
                self.closing_checkpoint = False
                self.host.tell(Settled(self.session))
            else:
                self.flush_both()

    # ---- commands ----

    def set_gate(self, gate: Gate) -> None:
        self.gate = gate
        if gate is Gate.CLOSED:
            self._stop_forwarding()
        if gate is Gate.PEER and self.forwarding:
            # What waits without a frame has travelled with its zone, which is in the stream by now.
            for op in self.ops:
                if op.done_here and op.needs is None:
                    frame = Frame("sync", self.next_seq(), dict.fromkeys(op.cells, 0))
                    self.send(frame if op.sync else Frame("write", self.seq, {}))
                    op.needs = self.seq

    def stop(self, *, drain: bool) -> None:
        if drain:
            self.draining = True
            self._check_drained()
        else:
            self.ops.clear()
            self.accepting = self.draining = False
