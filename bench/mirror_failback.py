# SPDX-License-Identifier: Apache-2.0
"""Failback from the log of dirty zones beside rsync: the same changes, the same link, turn by turn in one run.

    sudo .venv/bin/python -m bench.mirror_failback [--files 10000,200000] [--big-mb 4096] [--rounds 5] [--folder DIR]

With `--files 10000,200000,1000000` the largest tree, three times, takes 12 GB, and most of the run goes into making,
comparing and removing it; each figure is told at once. Two namespaces are joined by a veth pair with a token bucket of
10 or 1 Gb/s in each direction; data path and target are processes of this machine whose sockets are in these
namespaces. `failback` is from the order to the attached stream, `held` the part of it in which changes wait, `durable`
the sync of the target's file system behind it, which the core wants before it says "up to date". `wire` is what the
changed blocks alone take on the link. rsync pulls from its daemon in the source's namespace. `peak` is the most memory
that the primary's data path or this process, which is the target, ever had.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.link import SOURCE, SOURCE_IP, TARGET, TARGET_IP, inside, link, see_rsync
from bench.report import publish, table
from farmd.mirror.durable import sync_file_system
from tests.mirror.logpair import LogPair

BLOCK = 65_536
PER_FOLDER = 100
CHANGED = 200
_NEWNET = 0x40000000


def socket_in(namespace: str) -> socket.socket:
    """A TCP socket that lives in a network namespace, whoever uses it."""
    made: list[socket.socket] = []

    def make() -> None:
        with open(f"/run/netns/{namespace}") as entry:
            if ctypes.CDLL(None, use_errno=True).setns(entry.fileno(), _NEWNET):
                raise OSError(ctypes.get_errno(), namespace)
        made.append(socket.socket())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def connect_over_link() -> tuple[socket.socket, socket.socket]:
    """A connection from the source's namespace to the target's."""
    with socket_in(TARGET) as server:
        server.bind((TARGET_IP, 0))
        server.listen(1)
        client = socket_in(SOURCE)
        client.connect(server.getsockname())
        accepted, _ = server.accept()
    for end in (client, accepted):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, accepted


def small_files(root: Path, count: int) -> None:
    """`count` files of about 2 KB, a hundred to a directory."""
    for number in range(count):
        if number % PER_FOLDER == 0:
            folder = root / f"d{number // PER_FOLDER}"
            folder.mkdir()
        (folder / f"f{number}").write_bytes(random.randbytes(1500 + number % 1000))


def change_files(root: Path, count: int, chance: random.Random, *, fsync: bool) -> int:
    """Other bytes in 200 files, in place; the size stays."""
    for number in chance.sample(range(count), CHANGED):
        fd = os.open(root / f"d{number // PER_FOLDER}" / f"f{number}", os.O_WRONLY)
        os.pwrite(fd, chance.randbytes(64), 700)
        if fsync:
            os.fsync(fd)
        os.close(fd)
    return CHANGED * 2000


def change_blocks(path: Path, chance: random.Random) -> int:
    """Other bytes in one block of a hundred; how many bytes these blocks are."""
    blocks = path.stat().st_size // BLOCK
    some = chance.sample(range(blocks), blocks // 100)
    with path.open("r+b") as file:
        for block in some:
            file.seek(block * BLOCK)
            file.write(chance.randbytes(BLOCK))
    return len(some) * BLOCK


def pull(theirs: Path) -> float:
    """Seconds of rsync for the same."""
    words = ["rsync", "-a", "--inplace", "--no-whole-file", f"rsync://{SOURCE_IP}/source/", f"{theirs}/"]
    since = time.monotonic()
    subprocess.run(inside(TARGET, words), check=True)
    return time.monotonic() - since


def peak_mb(pair: LogPair) -> float:
    """The most memory that a process of the mirror had: the primary's data path, or this one, which is the target."""
    processes = ("self", str(pair.primary.process.pid))
    texts = [Path(f"/proc/{each}/status").read_text() for each in processes]
    return round(max(int(text.partition("VmHWM:")[2].split()[0]) for text in texts) / 1024, 1)


def duel(pair: LogPair, theirs: Path, rounds: int, change: Callable[[], int]) -> dict[str, Any]:
    """The same changes to both, in turn; medians in seconds."""
    series: dict[str, list[float]] = {"failback_s": [], "held_s": [], "durable_s": [], "rsync_s": []}
    changed = 0
    copy = os.open(pair.copy, os.O_RDONLY)
    try:
        for _ in range(rounds):
            pair.settled()
            pair.part()
            time.sleep(1.1)  # else rsync's quick check would miss some
            changed = change()
            came = pair.fail_back()
            since = time.monotonic()
            sync_file_system(copy)
            series["durable_s"].append(time.monotonic() - since)
            series["failback_s"].append(came["seconds"])
            series["held_s"].append(came["held_s"])
            series["rsync_s"].append(pull(theirs))
    finally:
        os.close(copy)
    medians: dict[str, Any] = {name: round(statistics.median(values), 4) for name, values in series.items()}
    print(f"  {medians}", file=sys.stderr, flush=True)  # trees are then compared and removed, which takes long
    return medians | {"bytes": changed, "peak_mb": peak_mb(pair)}


def compare(pair: LogPair, theirs: Path) -> None:
    """All three trees must be equal, or no figure counts."""
    words = ["diff", "-rq", "--no-dereference", str(pair.backing)]
    running = [subprocess.Popen([*words, str(target)]) for target in (pair.copy, theirs)]
    states = [one.wait() for one in running]
    if any(states):
        raise SystemExit("the trees differ")


@contextmanager
def prepared(folder: Path, gbit: int, fill: Callable[[Path], None]) -> Iterator[tuple[LogPair, Path]]:
    """A tree on both nodes, and a third copy for rsync; attached, so that the log begins empty."""
    pair = LogPair(folder=folder, connect=connect_over_link)
    theirs = pair.pair.base / "theirs"
    theirs.mkdir()
    fill(pair.backing)
    for target in (pair.copy, theirs):
        subprocess.run(["cp", "-a", f"{pair.backing}/.", str(target)], check=True)
    os.sync()
    with pair, link(gbit, pair.backing, folder):
        pair.fail_back()
        yield pair, theirs
        pair.settle()
        compare(pair, theirs)


def run(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases."""
    chance = random.Random(arguments.seed)
    cases = []
    for count in [int(word) for word in arguments.files.split(",") if word]:
        with prepared(folder, 10, lambda root, count=count: small_files(root, count)) as (pair, theirs):  # type: ignore[misc]
            for fsync in (False, True):
                name = f"{CHANGED} of {count} files" + (", fsync each" if fsync else "")

                def change(fsync: bool = fsync, count: int = count, root: Path = pair.mount) -> int:
                    return change_files(root, count, chance, fsync=fsync)

                cases.append({"case": name, "gbit": 10} | duel(pair, theirs, arguments.rounds, change))
    for gbit in (10, 1) if arguments.big_mb else ():

        def big(root: Path) -> None:
            with (root / "big").open("wb") as file:
                for _ in range(arguments.big_mb):
                    file.write(random.randbytes(1 << 20))

        with prepared(folder, gbit, big) as (pair, theirs):
            name = f"1 % of {arguments.big_mb} MiB"
            found = duel(pair, theirs, arguments.rounds, lambda path=pair.mount / "big": change_blocks(path, chance))  # type: ignore[misc]
            cases.append({"case": name, "gbit": gbit} | found)
    return cases


def main() -> int:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", default="10000,200000")
    parser.add_argument("--big-mb", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the file system to measure")
    arguments = parser.parse_args()
    see_rsync()
    with tempfile.TemporaryDirectory(prefix="failback-bench-", dir=arguments.folder) as folder:
        cases = run(Path(folder), arguments)
    rows = []
    for one in cases:
        times = [one[name] for name in ("failback_s", "held_s", "durable_s", "rsync_s")]
        faster, wire_s = round(times[3] / times[0], 1), round(one["bytes"] * 8 / one["gbit"] / 1e9, 4)
        rows.append([one["case"], f"{one['gbit']} Gb/s", *times, faster, wire_s, one["peak_mb"]])
    print(
        table(["", "link", "failback s", "held s", "durable s", "rsync s", "times faster", "wire s", "peak MB"], rows)
    )
    print(publish("mirror-failback", {"sizes": vars(arguments) | {"folder": str(arguments.folder)}, "cases": cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
