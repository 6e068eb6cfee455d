# SPDX-License-Identifier: Apache-2.0
"""Both ends of a run in this process, over a socket pair; or through a proxy that may spoil what passes."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from farmd.mirror.checksum import Mode, Options, Outcome, Run
from farmd.model.errors import FarmError

LONG = bool(os.environ.get("FARMD_CHECKSUM_LONG"))
"""`make mirror` sets it: more seeds, more kills, a fuzzer. Otherwise each property is shown once, in seconds."""


def run(source: Path, target: Path, options: Options | None = None, record: Path | None = None) -> Outcome:
    """One whole run; the target's options count. Raises what the target raises."""
    ends = options or Options(target)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return run_over(source, target, ends, record, ours, theirs)


def run_over(
    source: Path, target: Path, options: Options, record: Path | None, ours: socket.socket, theirs: socket.socket
) -> Outcome:
    """The same, over two connected sockets."""

    def named(end: str) -> Path | None:
        return record.with_name(f"{record.name}.{end}") if record else None

    def serve() -> None:
        try:
            giving.source(theirs.fileno(), theirs.fileno())
        except FarmError as error:
            failures.append(error)

    failures: list[FarmError] = []
    giving = Run(replace(options, root=source, record=named("source")))
    taking = Run(replace(options, root=target, record=named("target")))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        progress = taking.target(ours.fileno(), ours.fileno())
        found = tuple(taking.findings())
    finally:
        ours.shutdown(socket.SHUT_WR)
        thread.join()
        taking.close()
        giving.close()
    assert failures == []
    return Outcome(options.mode, progress, found, 1.0, options.probe_bytes)


def verify(source: Path, target: Path) -> set[tuple[str, bytes]]:
    """What our own comparison finds."""
    outcome = run(source, target, Options(target, mode=Mode.VERIFY))
    return {(one.kind.name, one.path) for one in outcome.findings}


@contextmanager
def proxied(spoil: Callable[[int, bytes], bytes]) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Target's and source's sockets; what the source sends passes `spoil(offset, data)`."""
    ours, left = socket.socketpair()
    right, theirs = socket.socketpair()

    def forward(reading: socket.socket, writing: socket.socket, change: Callable[[int, bytes], bytes]) -> None:
        offset = 0
        try:
            while data := reading.recv(65536):
                writing.sendall(change(offset, data))
                offset += len(data)
            writing.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one end has given up: the other hears it as a closed connection

    threads = [
        threading.Thread(target=forward, args=(right, left, spoil)),
        threading.Thread(target=forward, args=(left, right, lambda _offset, data: data)),
    ]
    for thread in threads:
        thread.start()
    try:
        with ours, theirs:
            yield ours, theirs
    finally:
        for one in (left, right):
            one.shutdown(socket.SHUT_RDWR) if one.fileno() >= 0 else None
        for thread in threads:
            thread.join()
        left.close()
        right.close()


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A small ext4 of its own."""
    image, mount = folder / "image", folder / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-I", "256", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop,discard", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
        image.unlink()
