# SPDX-License-Identifier: Apache-2.0
"""The filter as a process: batches of frames in, verdicts out. If a sanitizer ends it, its report is the error."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from farmd.dataplane.reasons import REASONS, VERDICTS
from tests.native.oracle import Arrival, Told
from tests.native.sockets import NO_SOCKET

REPLY = struct.Struct("<BBHHHHxx")
REQUEST = struct.Struct("<IHBx")
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


class SanitizerError(Exception):
    """The filter did what it must not; the text is the sanitizer's."""


class Judge:
    """One node's filter, with the planes and the lease that are written here."""

    def __init__(self, program: Path) -> None:
        # Not a pipe: nobody would read it while the process writes its report.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=os.environ | OPTIONS,
        )

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def configure(self, table: bytes) -> None:
        """A new table; fragments are forgotten."""
        self._send(b"T" + table)

    def planes(self, group: int, states: bytes) -> None:
        """The state of every bucket of a group."""
        self._send(struct.pack("<cI", b"P", group) + states)

    def routes(self, group: int, owners: bytes, following: bytes) -> None:
        """Who owns every bucket of a group, and whom to ask after us."""
        self._send(struct.pack("<cI", b"R", group) + owners + following)

    def macs(self, macs: Mapping[int, bytes]) -> None:
        """Where nodes are, on the only interface that there is."""
        words = [int.from_bytes(macs.get(node, b""), "little") for node in range(64)]
        self._send(struct.pack("<c512Q", b"M", *words, *[0] * 448))

    def lease(self, open_: bool) -> None:
        """Whether the lease is valid."""
        self._send(struct.pack("<cQQ", b"L", 1000, 1001 if open_ else 1000))

    def forget_fragments(self) -> None:
        """Forget first fragments."""
        self._send(b"C")

    def judge(self, arrivals: Sequence[Arrival]) -> list[Told]:
        """What becomes of each frame, in order."""
        batch = b"".join(_packed(arrival) for arrival in arrivals)
        self._send(struct.pack("<cII", b"J", len(arrivals), len(batch)) + batch)
        (length,) = struct.unpack("<I", self._receive(4))
        return list(_replies(self._receive(length), arrivals))

    def _send(self, command: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._complaint() from None

    def _receive(self, length: int) -> bytes:
        assert self._process.stdout is not None
        received = self._process.stdout.read(length)
        if len(received) < length:
            raise self._complaint()
        return received

    def _complaint(self) -> SanitizerError:
        self._process.wait()
        self._complaints.seek(0)
        return SanitizerError(self._complaints.read().decode(errors="replace"))


def _packed(arrival: Arrival) -> bytes:
    socket = NO_SOCKET if arrival.socket is None else arrival.socket.packed()
    return REQUEST.pack(arrival.ifindex, len(arrival.frame), not arrival.room) + socket + arrival.frame


def _replies(received: bytes, arrivals: Sequence[Arrival]) -> Iterator[Told]:
    at = 0
    for arrival in arrivals:
        verdict, reason, rule, group, bucket, size = REPLY.unpack_from(received, at)
        at += REPLY.size
        frame = received[at : at + size] if verdict != 1 else arrival.frame
        at += size
        yield Told(VERDICTS[verdict], REASONS[reason], rule, group, bucket, frame)
