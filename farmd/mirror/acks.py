# SPDX-License-Identifier: Apache-2.0
"""When an operation may return to the application: the one rule that decides what a crash can take.

The gate says whether the peer is needed at all, the mode what is asked of it. The engine in C applies the same table;
`farmd.mirror.core` sets the gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """What an acknowledgement promises while the peer is in sync."""

    STRICT = "strict"
    """Every operation is applied by the peer; what was synced is on both disks."""
    BARRIER = "barrier"
    """Writes return when they stand in the stream; what was synced is on both disks."""
    ASYNC = "async"
    """Nothing waits for the peer as long as it is not too far behind. A failover may lose the lag."""


class Gate(StrEnum):
    """Whether this node may acknowledge."""

    CLOSED = "closed"
    """Not primary: nothing is acknowledged."""
    PEER = "peer"
    """Only with the peer. Without a connection nothing returns, in every mode."""
    ALONE = "alone"
    """The arbiter granted this generation: the peer can never serve without ours."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one operation is."""

    sync: bool
    """fsync, O_DSYNC, msync, a rename over a file: it promises durability."""
    done_here: bool
    """Applied here; for a sync, durable here."""
    enqueued: bool
    """Its frame, or a later copy of its blocks, stands in the stream of the present connection."""
    done_there: bool
    """The peer has applied it; for a sync, has it durable."""


def may_return(mode: Mode, gate: Gate, op: Standing, *, lag_ok: bool = True) -> bool:
    """Whether the operation may be acknowledged now. `lag_ok`: the peer is not too far behind (mode ASYNC)."""
    if gate is Gate.CLOSED or not op.done_here:
        return False
    if gate is Gate.ALONE:
        return True
    if mode is Mode.STRICT or (mode is Mode.BARRIER and op.sync):
        return op.enqueued and op.done_there
    return op.enqueued and (mode is Mode.BARRIER or lag_ok)
