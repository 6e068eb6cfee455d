# SPDX-License-Identifier: Apache-2.0
"""The seams between the pure core and the world: what the shell in the daemon has to bring.

The shell keeps one `farmd.mirror.core.Node`, feeds it events and executes its commands strictly in order. The engine
in C does the data path; what it must do at each command and on each operation is said in `commands`, `tracking`,
`receiving` and `acks`, and `tests/sim/mirror/engine.py` is that same behaviour on simulated disks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from farmd.mirror.acks import Gate, Mode
from farmd.mirror.arbiter import Answer, Claim, Register
from farmd.mirror.journal import Block
from farmd.mirror.record import Record
from farmd.mirror.zones import Cover
from farmd.model.nodes import NodeId


class RecordStore(Protocol):
    """Where the node's record is: two slots of 4 KiB."""

    def read(self) -> Record | None:
        """The newest whole record; None on a new node. Raises RecordDamaged."""
        ...

    def write(self, record: Record) -> None:
        """Write the older slot with O_DSYNC; durable on return."""
        ...


class JournalStore(Protocol):
    """Where the zones' journal is: a preallocated file of two halves. While mounted, the engine alone writes it."""

    def read(self) -> Cover:
        """What it says after a crash. Raises JournalDamaged."""
        ...

    def write(self, blocks: Sequence[Block]) -> None:
        """Write blocks with O_DSYNC, in order; durable on return."""
        ...


class ArbiterLink(Protocol):
    """The way to the arbiter. Both calls may never be answered; the core asks again."""

    async def claim(self, node: NodeId, claim: Claim, *, ordered: bool) -> Answer:
        """Compare and swap. The register is durable before the answer."""
        ...

    async def read(self) -> Register:
        """What the register holds."""
        ...


class Engine(Protocol):
    """The data path: the write-through file system, its stream and its receiver. One process a mirror.

    Calls return when their effect holds, unless said otherwise. A connection that ends is handled by the engine at
    once and by itself (nothing is taken from it, `Tracker.peer_lost`, what waits for the peer goes on waiting); the
    core is told afterwards.
    """

    def recover(self) -> bool:
        """syncfs the replicated directories, read the journal, begin a new generation; whether it could be trusted."""
        ...

    def set_mode(self, mode: Mode, max_lag_bytes: int, max_lag_ns: int) -> None:
        """What an acknowledgement promises while the peer is in sync."""
        ...

    def set_gate(self, gate: Gate) -> None:
        """See `commands.SetGate`."""
        ...

    def start_accepting(self) -> None:
        """Mount over the replicated directories."""
        ...

    def stop_accepting(self, *, drain: bool) -> None:
        """See `commands.StopAccepting`."""
        ...

    def say(self, session: int, message: bytes) -> None:
        """A message of the core as a frame of the stream, behind everything that is in it."""
        ...

    def start_receiving(self, session: int) -> None:
        """Apply and answer this connection's data frames."""
        ...

    def stop_receiving(self) -> None:
        """Apply no frame any more; on return none is under way."""
        ...

    def inherit(self) -> None:
        """`Unflushed.lines` into the journal as unsent; durable on return."""
        ...

    def send_cover(self, session: int) -> None:
        """The journal's lines as frames of the stream; the receiver takes them with `Tracker.suspect`."""
        ...

    def compare_all(self) -> None:
        """`Tracker.compare_all`; durable on return."""
        ...

    def start_resync(self, session: int) -> None:
        """Forward writes from now on and send what is unsent, each zone read and enqueued with its writers locked out.

        Writes to unsent blocks are not forwarded while the gate is ALONE (they travel with their zone), and are while
        it is PEER.
        """
        ...

    def checkpoint(self, session: int) -> None:
        """Flush both: a FLUSH frame, syncfs here behind all writes before it, `Tracker.settle`, `Tracker.tidy`."""
        ...

    def flush(self, number: int) -> None:
        """syncfs; the end is told with this number."""
        ...

    def clear_journal(self) -> None:
        """Begin an empty generation of the journal; durable on return."""
        ...

    def set_rate(self, bytes_s: float) -> None:
        """The resync's pace."""
        ...
