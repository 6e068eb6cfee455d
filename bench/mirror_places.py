# SPDX-License-Identifier: Apache-2.0
"""Where `bench.mirror_write` writes to: disks, mirrored directories, a link that is slow to answer, bare loopback.

`python -m bench.mirror_places --relay` is the slow link: netem is missing in many a kernel (so in the one this was
written on), and the relay delays the same way on all of them.
"""

from __future__ import annotations

import argparse
import select
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path

from farmd.mirror import tlscontext
from tests.mirror.certificates import make_certificates
from tests.mirror.pair import Pair, connected

MIB = 1 << 20
Ends = tuple[socket.socket, socket.socket]
Credentials = tuple[dict[str, str], dict[str, str]]


@dataclass(frozen=True)
class Place:
    """A directory to write to, and the engines (process ids) that work for it."""

    folder: Path
    engines: tuple[int, ...] = ()
    settle: Callable[[], None] = field(default=lambda: None)


@contextmanager
def disk(folder: Path, name: str, size: str) -> Iterator[Path]:
    """An ext4 of its own on a loop device."""
    image, point = folder / f"{name}.img", folder / name
    point.mkdir()
    subprocess.run(["truncate", "-s", size, image], check=True)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=False)


def credentials(folder: Path) -> Credentials:
    """Certificates for both ends of a mirror's stream."""
    nodes = make_certificates(folder, "one", "two")
    return nodes["one"] | {"peer_name": "two"}, nodes["two"] | {"peer_name": "one"}


@contextmanager
def place(case: str, disks: tuple[Path, Path], round_trip_ms: float = 0, seed: Path | None = None) -> Iterator[Place]:
    """The directory of one case: bare, mounted alone, strict, barrier, async, or one with `, TLS` or `, /dev/fuse`.

    `seed` is in it, at both ends, before it is mounted.
    """
    name = f"{case}-{round_trip_ms}".replace(", ", "-").replace("/", "").replace(" ", "-")
    ours, theirs = (each / name for each in disks)
    for each in (ours, theirs):
        each.mkdir(mode=0o755)
    if case == "bare":
        plant(seed, ours)
        yield Place(ours)
        return
    ack = case.split(",")[0] if case != "mounted alone" else "strict"
    unmounted = Pair(ours, theirs, ack=ack, uring=not case.endswith("/dev/fuse"))
    plant(seed, unmounted.backing)
    plant(seed, unmounted.copy)
    with unmounted as pair, ExitStack() as link:
        ends = link.enter_context(delayed(round_trip_ms / 2000)) if round_trip_ms else None
        if case != "mounted alone":
            pair.join(credentials(pair.base / "keys") if case.endswith("TLS") else None, ends)
        engines = (pair.primary.process.pid, pair.secondary.process.pid)
        yield Place(pair.mount, engines, pair.settle if case != "mounted alone" else lambda: None)


def plant(seed: Path | None, folder: Path) -> None:
    """Copy what `seed` has into `folder`."""
    if seed is not None:
        subprocess.run(["cp", "-a", f"{seed}/.", folder], check=True)


@contextmanager
def delayed(one_way_s: float) -> Iterator[Ends]:
    """Two connected sockets with a relay between them that holds every byte back."""
    (near, a), (b, far) = connected(), connected()
    with a, b:
        command = [sys.executable, "-m", "bench.mirror_places", "--relay", str(a.fileno()), str(b.fileno())]
        relay = subprocess.Popen([*command, str(one_way_s)], pass_fds=[a.fileno(), b.fileno()])
    try:
        yield near, far
    finally:
        for each in (near, far):
            each.close()
        relay.kill()
        relay.wait()


def relay(ends: Ends, one_way_s: float) -> None:
    """Hold each direction's bytes back for `one_way_s`; until one side closes."""
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    for end in ends:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], left)[0]:
            data = end.recv(MIB)
            if not data:
                return
            waiting.append((time.monotonic() + one_way_s, other[end], data))
        while waiting and waiting[0][0] <= time.monotonic():
            _, to, data = waiting.popleft()
            to.sendall(data)


def sink(end: socket.socket, server: ssl.SSLContext | None) -> None:
    """The far end of `loopback`: a byte back for each MiB."""
    if server is not None:
        end = server.wrap_socket(end, server_side=True)
    # An anonymous mapping begins on a page: copies to what malloc gives may be several times slower (bulk.h).
    with end, mmap(-1, MIB) as pages, memoryview(pages) as room:
        while True:
            have = 0
            while have < MIB:
                got = end.recv_into(room[have:])
                if not got:
                    return
                have += got
            end.sendall(b"x")


@contextmanager
def loopback(keys: Credentials | None) -> Iterator[Callable[[int], float]]:
    """Bare loopback between two processes: a function that writes so many MiB and returns their median GB/s.

    A byte comes back for each MiB, so this is what the network alone would allow a strict write. Both sockets are set
    as the mirror sets its own (transport.c). With `keys` under TLS 1.3, as Python's ssl does it: a system call for each
    record, AES-256-GCM (4 % slower than the mirror's AES-128-GCM where this was written).
    """
    near, far = connected()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with far:
        command = [sys.executable, "-m", "bench.mirror_places", "--sink", str(far.fileno())]
        if keys is not None:
            command += [keys[1][name] for name in _FILES]
        process = subprocess.Popen(command, pass_fds=[far.fileno()])
    if keys is not None:
        near = tlscontext.client(*(keys[0][name] for name in _FILES)).wrap_socket(near, server_hostname="two")
    data = bytes(MIB)

    def write(count: int) -> float:
        took = []
        for _ in range(count):
            start = time.perf_counter()
            near.sendall(data)
            near.recv(1)
            took.append(time.perf_counter() - start)
        return MIB / statistics.median(took) / 1e9

    try:
        with near:
            yield write
    finally:
        process.wait()


_FILES = ("certificate", "key", "authority")


def main() -> None:
    """Be the relay between two inherited sockets, or the far end of bare loopback."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--relay", nargs=3, metavar=("FD", "FD", "SECONDS"))
    what.add_argument("--sink", nargs="+", metavar=("FD", "FILES"), help="the files are for TLS")
    arguments = parser.parse_args()
    if arguments.relay:
        first, second, seconds = arguments.relay
        relay((socket.socket(fileno=int(first)), socket.socket(fileno=int(second))), float(seconds))
        return
    fd, *files = arguments.sink
    sink(socket.socket(fileno=int(fd)), tlscontext.server(*files) if files else None)


if __name__ == "__main__":
    main()
