# SPDX-License-Identifier: Apache-2.0
"""Writing through a mirror, beside the bare directory in the same run: sequential, small files, pgbench.

`python -m bench.mirror_write` takes about a minute. Both nodes, both disks and the load share this machine. The disks
are ext4 on loop devices on tmpfs: journal commits are real, seeks are not, so that what is seen is our own cost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.report import publish, table
from tests.mirror.certificates import make_certificates
from tests.mirror.pair import Pair
from tests.mirror.test_databases import as_postgres, postgres, postgres_programs

MIB = 1 << 20
CASES = ["bare", "mounted alone", "strict", "barrier", "strict, TLS"]


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


@contextmanager
def place(case: str, disks: tuple[Path, Path]) -> Iterator[Path]:
    """The directory to write to in this case."""
    if case == "bare":
        with tempfile.TemporaryDirectory(dir=disks[0]) as folder:
            Path(folder).chmod(0o755)
            yield Path(folder)
        return
    ack = "barrier" if case == "barrier" else "strict"
    with Pair(disks[0], disks[1], ack=ack) as pair:
        if case == "strict, TLS":
            nodes = make_certificates(pair.base / "keys", "one", "two")
            pair.join((nodes["one"] | {"peer_name": "two"}, nodes["two"] | {"peer_name": "one"}))
        elif case != "mounted alone":
            pair.join()
        yield pair.mount
        pair.settle() if case != "mounted alone" else None


def sequential(folder: Path) -> float:
    """GB/s of 1 MiB writes over a file that is there already."""
    data = os.urandom(MIB)
    fd = os.open(folder / "sequential", os.O_CREAT | os.O_RDWR)
    try:
        rates = []
        for _ in range(3):
            start = time.perf_counter()
            for number in range(256):
                os.pwrite(fd, data, number * MIB)
            rates.append(256 * MIB / (time.perf_counter() - start) / 1e9)
        return max(rates[1:])
    finally:
        os.close(fd)


def writes(folder: Path) -> float:
    """Microseconds for a 4 KiB overwrite."""
    fd = os.open(folder / "small", os.O_CREAT | os.O_RDWR)
    try:
        data = os.urandom(4096)
        start = time.perf_counter()
        for number in range(2000):
            os.pwrite(fd, data, number % 64 * 4096)
        return (time.perf_counter() - start) / 2000 * 1e6
    finally:
        os.close(fd)


def creates(folder: Path) -> float:
    """Files a second: create, write 4 KiB, close."""
    data = os.urandom(4096)
    where = folder / "many"
    where.mkdir()
    start = time.perf_counter()
    for number in range(2000):
        fd = os.open(where / str(number), os.O_CREAT | os.O_WRONLY | os.O_EXCL)
        os.write(fd, data)
        os.close(fd)
    took = time.perf_counter() - start
    shutil.rmtree(where)
    return 2000 / took


def transactions(folder: Path, clients: int, seconds: int) -> float:
    """pgbench TPC-B transactions a second, fsync on."""
    data, sockets = folder / "data", Path(tempfile.mkdtemp(prefix="mirrorfs-pg-"))
    try:
        if not data.exists():
            data.mkdir(mode=0o700)
            shutil.chown(data, "postgres", "postgres")
            as_postgres(postgres_programs() / "initdb", "-D", data, "-A", "trust", "--no-instructions")
        shutil.chown(sockets, "postgres", "postgres")
        with postgres(data, sockets) as programs:
            bench = [programs / "pgbench", "-h", sockets, "postgres"]
            as_postgres(*bench, "-i", "-q", "-s", "5")
            said = as_postgres(*bench, "-c", str(clients), "-j", "1", "-T", str(seconds), "-n")
        return float(next(line for line in said.splitlines() if line.startswith("tps")).split()[2])
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def measure(rounds: int, seconds: int, cases: list[str], database: bool) -> dict[str, dict[str, float]]:
    """Medians over interleaved rounds: what disturbs the machine disturbs every case."""
    tests: dict[str, Callable[[Path], float]] = {
        "1 MiB sequential GB/s": sequential,
        "4 KiB write us": writes,
        "creates/s": creates,
    }
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="mirrorfs-") as scratch,
        disk(Path(scratch), "one", "3G") as one,
        disk(Path(scratch), "two", "3G") as two,
    ):
        Path(scratch).chmod(0o755)
        for _ in range(rounds):
            for case in cases:
                with place(case, (one, two)) as folder:
                    for name, test in tests.items():
                        found[case][name].append(test(folder))
                    for clients in (1, 8) if database and case in {"bare", "strict", "barrier"} else ():
                        found[case][f"pgbench {clients} tps"].append(transactions(folder, clients, seconds))
    return {case: {name: statistics.median(values) for name, values in of.items()} for case, of in found.items()}


def main() -> None:
    """Measure, print a table, keep JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each pgbench run")
    parser.add_argument("--no-database", action="store_true")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="bare is always measured")
    arguments = parser.parse_args()
    cases = [case for case in CASES if case == "bare" or case in arguments.cases]
    medians = measure(arguments.rounds, arguments.seconds, cases, not arguments.no_database)
    columns = list(medians["bare"])
    rows = [[case, *(round(medians[case].get(name, 0), 2) or "-" for name in columns)] for case in cases]
    print(table(["case", *columns], rows))
    print(publish("mirror-write", {"rounds": arguments.rounds, "medians": medians}))


if __name__ == "__main__":
    main()
