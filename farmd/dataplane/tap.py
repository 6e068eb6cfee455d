# SPDX-License-Identifier: Apache-2.0
"""Sees what the attached filter does with single frames, drops in a driver too: the filter itself tells.

Nobody looking costs the filter one load of a variable. Who looks says so, with a time at which the filter stops
telling by itself; so nothing is left behind by a trace that is killed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from farmd.dataplane._libbpf import ffi, lib
from farmd.dataplane.kernel import Map, kernel_error
from farmd.dataplane.reasons import REASONS, VERDICTS, Reason, Verdict
from farmd.model.errors import KernelError, Refused

HEAD_BYTES = int(lib.FARM_SAMPLE_HEAD)
"""Of each frame."""
_WATCH_NS = 2_000_000_000
"""The filter tells for so long after the last `read`."""
_WINDOWS_PER_S = 10
_LEAST_BURST = 20
"""In one window: a whole short connection, even at a low rate."""
_WISH = struct.Struct("=IQ16s16s16sQ")
"""struct farm_watch from `verdicts` to `frames_a_window`, behind `open`."""
_OPEN, _WISH_AT = 0, 4
_SUPPRESSED = struct.Struct("=Q")
_SAMPLE = struct.Struct(f"=QIIIIII{HEAD_BYTES}s")
_MOST_SAMPLES = 2048
"""More than the ring has room for."""
_ANY = bytes(16)


@dataclass(frozen=True, slots=True)
class Wish:
    """Which frames: of clients whose address under `client_mask` is `client`, to `vip`, with one of `verdicts`.

    Addresses have 16 bytes, IPv4 as ::ffff:a.b.c.d; the default is any. At most `rate` a second.
    """

    verdicts: frozenset[Verdict] = frozenset(Verdict)
    client_mask: bytes = _ANY
    client: bytes = _ANY
    vip: bytes = _ANY
    rate: int = 100


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame as it left the filter. `at_ns` is CLOCK_MONOTONIC; `rule` an index, 0: none; `length` that of the
    frame, of which `head` is the beginning."""

    at_ns: int
    verdict: Verdict
    reason: Reason | None
    rule: int
    length: int
    ifindex: int
    head: bytes


class Tap:
    """Looks at the filter that is pinned in a folder, and follows it when farmd puts another with new maps there."""

    def __init__(self, pin_dir: Path, wish: Wish) -> None:
        """Errors: KernelError if no filter is pinned; Refused if somebody looks already."""
        self._pin_dir = pin_dir
        self._wish = wish
        self._out = ffi.new("char[]", _SAMPLE.size * _MOST_SAMPLES)
        self._before = 0
        try:
            self._lock = os.open(pin_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _no_filter(pin_dir) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise Refused("trace", "another trace looks at this filter", "Wait for its end, or stop it") from error
        self._open()

    def read(self, timeout_ms: int) -> list[Sample]:
        """The samples that have come, after waiting for the first."""
        self._extend()
        count = lib.farm_ring_read(self._ring, self._out, timeout_ms)
        if count < 0:
            raise kernel_error("trace ring", count, "cannot be read")
        raw = bytes(ffi.buffer(self._out, count * _SAMPLE.size))
        return [_decode(raw, at) for at in range(0, len(raw), _SAMPLE.size)]

    def follow(self) -> None:
        """Go over to the filter that is pinned now, if its maps are others."""
        with _pinned(self._pin_dir, "watch") as there:
            if there.number() == self._number:
                return
        self._let_go()
        self._open()

    @property
    def suppressed(self) -> int:
        """Frames that came when no more were allowed, wanted or not."""
        return self._before + int(_SUPPRESSED.unpack_from(self._memory, _SUPPRESSED_AT)[0])

    def close(self) -> None:
        """Look no more."""
        self._let_go()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        with _pinned(self._pin_dir, "watch") as watch, _pinned(self._pin_dir, "samples") as samples:
            self._number = watch.number()
            self._memory = watch.memory()
            self._ring: Any = lib.farm_ring_open(samples.fd, _SAMPLE.size, _MOST_SAMPLES)
        if self._ring == ffi.NULL:
            raise kernel_error("trace ring", ffi.errno, "cannot be opened")
        lib.farm_ring_read(self._ring, self._out, 0)  # what an earlier trace has left
        self._before -= int(_SUPPRESSED.unpack_from(self._memory, _SUPPRESSED_AT)[0])
        self._extend()

    def _extend(self) -> None:
        wish = self._wish
        verdicts = sum(1 << number for number, verdict in VERDICTS.items() if verdict in wish.verdicts)
        until_ns = time.monotonic_ns() + _WATCH_NS
        frames = max(_LEAST_BURST, wish.rate // _WINDOWS_PER_S)
        packed = _WISH.pack(verdicts, until_ns, wish.client_mask, wish.client, wish.vip, frames)
        self._memory[_WISH_AT : _WISH_AT + _WISH.size] = packed
        self._memory[_OPEN : _OPEN + 4] = (1).to_bytes(4, "little")

    def _let_go(self) -> None:
        self._memory[_OPEN : _OPEN + 4] = bytes(4)
        self._before = self.suppressed
        self._memory.close()
        lib.farm_ring_close(self._ring)


_SUPPRESSED_AT = int(ffi.offsetof("struct farm_watch", "suppressed"))


def _decode(raw: bytes, at: int) -> Sample:
    at_ns, reason, rule, verdict, length, captured, ifindex, head = _SAMPLE.unpack_from(raw, at)
    return Sample(at_ns, VERDICTS[verdict], REASONS[reason], rule, length, ifindex, head[: min(captured, HEAD_BYTES)])


def _pinned(pin_dir: Path, name: str) -> Map:
    try:
        return Map.get(pin_dir / name)
    except FileNotFoundError as error:
        raise _no_filter(pin_dir) from error


def _no_filter(pin_dir: Path) -> KernelError:
    return KernelError(str(pin_dir), "no filter is pinned here", "Start farmd first: it loads the filter")
