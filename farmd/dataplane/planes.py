# SPDX-License-Identifier: Apache-2.0
"""The engine's hand on the filter: the planes of every group, and the lease."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol, Self

from farmd.dataplane._libbpf import ffi, lib
from farmd.dataplane.kernel import Map, Program
from farmd.model.buckets import BUCKETS, PLANE_BYTES, plane_bytes
from farmd.model.errors import KernelError
from farmd.model.nodes import NodeId
from farmd.model.planes import CLOSED, Planes

CLOCK_MONOTONIC_COARSE = 6
"""Linux's clock that advances once a tick, so its resolution is a tick's length; Python's `time` does not name it."""

_OWN, _HELD, _FRESH = int(lib.FARM_OWN), int(lib.FARM_HELD), int(lib.FARM_FRESH)


class FilterControl(Protocol):
    """What the engine does to a filter."""

    def write(self, group: int, planes: Planes) -> None:
        """Make `planes` those of `group`. Every bucket changes at once; buckets change one after another."""

    def read(self, group: int) -> Planes:
        """The planes that the filter has."""

    def renew(self, deadline_boot_ns: int) -> None:
        """Serve until `deadline_boot_ns` (CLOCK_BOOTTIME), and not an instant longer; 0 closes at once."""

    def lease_left_ns(self) -> int:
        """How long the filter will go on accepting; 0 or less when the lease is over."""


class KernelPlanes:
    """The filter that is loaded in the kernel."""

    def __init__(self, planes: Map, renew: Program, *, directed: bool = False) -> None:
        self._memory = planes.memory()
        self._words = ffi.from_buffer("uint64_t[]", self._memory, require_writable=True)
        planes.close()
        self._renew = renew
        self._directed = directed
        self._tick_ns = round(time.clock_getres(CLOCK_MONOTONIC_COARSE) * 1e9)

    @classmethod
    def open(cls, pin_dir: Path, *, directed: bool = False) -> Self:
        """Open the filter that `Filter.attach` pinned; `directed`: it sends on what is not its node's.

        Raises KernelError if there is none.
        """
        try:
            return cls(Map.get(pin_dir / "planes"), Program.get(pin_dir / "renew"), directed=directed)
        except FileNotFoundError as error:
            raise KernelError(
                str(pin_dir), "no filter is pinned here", "Start farmd first: it loads the filter"
            ) from error

    def write(self, group: int, planes: Planes) -> None:
        """See `FilterControl`."""
        _put(self._words + _place(group).start // 8, planes, self._directed)

    def read(self, group: int) -> Planes:
        """See `FilterControl`."""
        return decode(self._memory[_place(group)])

    def renew(self, deadline_boot_ns: int) -> None:
        """See `FilterControl`. The kernel counts ticks, so the lease ends up to `FARM_LEASE_MARGIN_TICKS` + 1 early."""
        self._call(lib.FARM_LEASE_WRITE, deadline_boot_ns)

    def lease_left_ns(self) -> int:
        """See `FilterControl`."""
        return self._call(lib.FARM_LEASE_READ, 0)

    def close(self) -> None:
        """Let go of the filter, which goes on as it is."""
        ffi.release(self._words)
        self._memory.close()
        self._renew.close()

    def _call(self, verb: int, deadline_ns: int) -> int:
        call = ffi.new("struct farm_lease_call *", {"deadline_ns": deadline_ns, "tick_ns": self._tick_ns, "verb": verb})
        self._renew.run_syscall(call)
        return int(call.left_ns)


def _place(group: int) -> slice:
    if not 0 <= group < int(lib.FARM_GROUPS):
        raise ValueError(f"there is no group {group}")
    return slice(group * BUCKETS, (group + 1) * BUCKETS)


class MemoryPlanes:
    """A filter that exists only in this process: the twin of `KernelPlanes` for tests. `now_ns` is set by the test."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.deadline_ns = 0
        self._planes: dict[int, Planes] = {}

    def write(self, group: int, planes: Planes) -> None:
        """See `FilterControl`."""
        self._planes[group] = planes

    def read(self, group: int) -> Planes:
        """See `FilterControl`."""
        return self._planes.get(group, CLOSED)

    def renew(self, deadline_boot_ns: int) -> None:
        """See `FilterControl`."""
        self.deadline_ns = deadline_boot_ns

    def lease_left_ns(self) -> int:
        """See `FilterControl`."""
        return self.deadline_ns - self.now_ns


def encode(planes: Planes, *, directed: bool = False) -> bytes:
    """The kernel's form: a byte a bucket, with a bit for each plane."""
    states = bytearray(BUCKETS)
    _put(ffi.from_buffer("uint64_t[]", states, require_writable=True), planes, directed)
    return bytes(states)


def _put(at: Any, planes: Planes, directed: bool) -> None:
    """In C, because a takeover waits for it."""
    lib.farm_write_planes(at, plane_bytes(planes.own), plane_bytes(planes.held), plane_bytes(planes.fresh), directed)


def plane_of(owners: bytes, node: NodeId) -> int:
    """The fast twin of `farmd.model.buckets.plane_of`: a takeover waits for it."""
    if len(owners) != BUCKETS:
        raise ValueError(f"an owner map has {BUCKETS} bytes, not {len(owners)}")
    plane = bytearray(PLANE_BYTES)
    lib.farm_plane_of(ffi.from_buffer("uint8_t[]", plane, require_writable=True), owners, node)
    return int.from_bytes(plane, "little")


def decode(state: bytes) -> Planes:
    """The inverse of `encode`."""
    return Planes(own=_gather(state, _OWN), held=_gather(state, _HELD), fresh=_gather(state, _FRESH))


def _gather(state: bytes, bit: int) -> int:
    digits = state[::-1].translate(bytes(ord("1") if value & bit else ord("0") for value in range(256)))
    return int(digits, 2)
