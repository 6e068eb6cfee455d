# SPDX-License-Identifier: Apache-2.0
"""Writing through a mirror, beside the bare directory in the same run: writes, creates, pgbench, slow links.

`python -m bench.mirror_write` takes nine minutes, `--quick` three. Both nodes, both disks and the load share
this machine, and every case runs in turns with all others, so that what disturbs the machine disturbs them all alike.
Requests come over io_uring where the kernel has it (its switch is on during the run), or else over /dev/fuse.
Writes and creates go to tmpfs, and to ext4 on loop devices on tmpfs; pgbench and the slow links to the latter: journal
commits are real, seeks are not. tmpfs takes 4 KiB pages one by one, which makes its bare writes three times dearer than
those of ext4, at both ends. "CPU" is of the writer and both engines, and little disturbed by others.

pgbench runs twice: with the memory that PostgreSQL takes by default, where what a commit costs is what counts; and with
less than the tables need, where backends write out and read in pages all the time. Before they are measured, tables are
read once through their mounts, as those of the bare directory lie in the page cache, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.checksum import warm
from bench.mirror_places import MIB, Place, credentials, disk, loopback, place
from bench.report import publish, table
from tests.mirror.test_databases import as_postgres, postgres, postgres_programs
from tests.mirror.uring import switched_on

CASES = ["bare", "mounted alone", "strict", "barrier", "async", "strict, TLS", "strict, /dev/fuse"]
DATABASE_CASES = ["bare", "mounted alone", "strict", "barrier", "strict, /dev/fuse"]
ROUND_TRIPS_MS = [0.5, 1.0, 2.0]
CLIENTS = (1, 8)


@dataclass(frozen=True, slots=True)
class Load:
    """How many branches pgbench's bank has (15 MB each), and how many of its pages PostgreSQL keeps in memory."""

    scale: int
    shared_buffers: str


DEFAULTS = Load(10, "128MB")
SMALL = Load(5, "32MB")

Series = dict[str, dict[str, list[float]]]
Medians = dict[str, dict[str, float]]


def cpu_s(place: Place) -> float:
    """CPU time of this process and the engines so far, from the scheduler, to the nanosecond."""
    total = 0
    for process in (os.getpid(), *place.engines):
        for each in Path(f"/proc/{process}/task").glob("*/schedstat"):
            total += int(each.read_text().split()[0])
    return total / 1e9


def timed(at: Place, count: int, once: Callable[[int], None]) -> tuple[float, float]:
    """Median seconds of one call, and CPU seconds a call, of `count` calls."""
    took = []
    before = cpu_s(at)
    for number in range(count):
        start = time.perf_counter()
        once(number)
        took.append(time.perf_counter() - start)
    return statistics.median(took), (cpu_s(at) - before) / count


@contextmanager
def scratch_file(at: Place, size: int) -> Iterator[int]:
    """A file of 64 pieces of `size` that is there already: overwriting is what databases do."""
    path = at.folder / f"scratch-{size}"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        if os.fstat(fd).st_size < 64 * size:
            for number in range(64):
                os.pwrite(fd, bytes(size), number * size)
        yield fd
    finally:
        os.close(fd)


def writes(at: Place, into: dict[str, list[float]]) -> None:
    """Overwrites of 1 MiB in sequence and of 4 KiB, the latter also with fdatasync."""
    large, small = os.urandom(MIB), os.urandom(4096)
    with scratch_file(at, MIB) as fd:
        wall, cpu = timed(at, 40, lambda number: _put(fd, large, number % 64 * MIB))
    into["1 MiB GB/s"].append(MIB / wall / 1e9)
    into["CPU us"].append(cpu * 1e6)
    with scratch_file(at, 4096) as fd:
        wall, cpu = timed(at, 300, lambda number: _put(fd, small, number % 64 * 4096))
        into["4 KiB us"].append(wall * 1e6)
        into["its CPU us"].append(cpu * 1e6)
        wall, _ = timed(at, 100, lambda number: _put(fd, small, number % 64 * 4096, sync=True))
        into["4 KiB + fdatasync us"].append(wall * 1e6)
    at.settle()


def _put(fd: int, data: bytes, offset: int, sync: bool = False) -> None:
    os.pwrite(fd, data, offset)
    if sync:
        os.fdatasync(fd)


def creates(at: Place, into: dict[str, list[float]]) -> None:
    """Small files a second: create, write 4 KiB, close; then unlinked."""
    data, where = os.urandom(4096), at.folder / "many"
    where.mkdir()

    def once(number: int) -> None:
        fd = os.open(where / str(number), os.O_CREAT | os.O_WRONLY | os.O_EXCL)
        os.write(fd, data)
        os.close(fd)

    wall, _ = timed(at, 300, once)
    into["creates/s"].append(1 / wall)
    shutil.rmtree(where)
    at.settle()


@contextmanager
def both_disks(base: Path, kind: str) -> Iterator[tuple[Path, Path]]:
    """A directory for each node, on tmpfs or ext4."""
    if kind == "ext4":
        with disk(base, "one", "2G") as one, disk(base, "two", "2G") as two:
            yield one, two
        return
    for name in ("one", "two"):
        (base / name).mkdir()
    yield base / "one", base / "two"


def file_system(kind: str, cases: list[str], rounds: int) -> Medians:
    """Writes and creates on tmpfs or ext4, beside bare loopback."""
    found: Series = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="mirrorfs-") as scratch, ExitStack() as stack:
        base = Path(scratch)
        disks = stack.enter_context(both_disks(base, kind))
        keys = credentials(base / "keys")
        places = {case: stack.enter_context(place(case, disks)) for case in cases}
        kinds = {"loopback TCP": None, "loopback TLS": keys}
        bare = {name: stack.enter_context(loopback(of)) for name, of in kinds.items()}
        for _ in range(rounds):
            for case, at in places.items():
                writes(at, found[case])
                creates(at, found[case])
            for name, copy in bare.items():
                found[name]["1 MiB GB/s"].append(copy(40))
    return medians(found)


class Database:
    """A PostgreSQL cluster with pgbench's tables, in `folder`/data."""

    def __init__(self, folder: Path, sockets: Path, load: Load) -> None:
        self._data, self._sockets, self._load = folder / "data", sockets, load
        self._sockets.mkdir()
        shutil.chown(self._sockets, "postgres", "postgres")

    def make(self) -> None:
        """Fill an empty folder."""
        self._data.mkdir(mode=0o700)
        shutil.chown(self._data, "postgres", "postgres")
        initdb = postgres_programs() / "initdb"
        as_postgres(initdb, "-D", self._data, "-A", "trust", "--no-instructions", "--no-sync")
        with postgres(self._data, self._sockets, self._load.shared_buffers):
            self._pgbench("-i", "-q", "-s", str(self._load.scale))

    def warm(self) -> None:
        """Into the page cache of the mount; what is below it is there already, as the bare directory is."""
        warm(*filter(Path.is_file, self._data.rglob("*")))

    def _pgbench(self, *options: str) -> str:
        return as_postgres(postgres_programs() / "pgbench", "-h", self._sockets, *options, "postgres")

    def run(self, seconds: int, clients: tuple[int, ...], into: dict[str, list[float]]) -> None:
        """TPC-B with fsync on."""
        with postgres(self._data, self._sockets, self._load.shared_buffers):
            for count in clients:
                said = self._pgbench("-c", str(count), "-j", "1", "-T", str(seconds), "-n")
                tps = next(line for line in said.splitlines() if line.startswith("tps")).split()[2]
                into[f"pgbench {count} tps"].append(float(tps))


@contextmanager
def databases(load: Load, wanted: dict[str, tuple[str, float]]) -> Iterator[dict[str, tuple[Place, Database]]]:
    """For each name (case, added round trip in ms): a place and a cluster in it, all there at the same time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="mirrorfs-") as scratch, ExitStack() as stack:
        base = Path(scratch)
        base.chmod(0o755)
        seed = base / "seed"
        seed.mkdir(mode=0o755)
        Database(seed, base / "sockets", load).make()
        disks = (stack.enter_context(disk(base, "one", "4G")), stack.enter_context(disk(base, "two", "4G")))
        made = {}
        for number, (name, (case, round_trip_ms)) in enumerate(wanted.items()):
            at = stack.enter_context(place(case, disks, round_trip_ms, seed))
            database = Database(at.folder, base / f"sockets-{number}", load)
            database.warm()
            made[name] = (at, database)
        yield made


def transactions(load: Load, cases: list[str], rounds: int, seconds: int) -> Medians:
    """pgbench in each case, in turns."""
    found: Series = defaultdict(lambda: defaultdict(list))
    with databases(load, {case: (case, 0.0) for case in cases}) as made:
        for _ in range(rounds):
            for case, (_, database) in made.items():
                database.run(seconds, CLIENTS, found[case])
    return medians(found)


def slow_links(rounds: int, seconds: int) -> Medians:
    """strict and barrier with round trips added, writes and pgbench."""
    found: Series = defaultdict(lambda: defaultdict(list))
    wanted = {f"{case}, +{ms} ms": (case, ms) for ms in ROUND_TRIPS_MS for case in ("strict", "barrier")}
    with databases(DEFAULTS, {"bare": ("bare", 0.0)} | wanted) as made:
        for _ in range(rounds):
            for name, (at, database) in made.items():
                writes(at, found[name])
                database.run(seconds, CLIENTS, found[name])
    return medians(found)


def medians(found: Series) -> Medians:
    """One figure of each series; of pgbench also the share of the bare directory, turn by turn: both had one moment."""
    figures = {case: {name: statistics.median(values) for name, values in of.items()} for case, of in found.items()}
    for case, of in found.items():
        for name in [name for name in of if name.endswith("tps")]:
            turns = zip(of[name], found["bare"][name], strict=True)
            figures[case][share_of(name)] = statistics.median(mine / bare for mine, bare in turns)
    return figures


def share_of(name: str) -> str:
    """The column beside that of transactions a second."""
    return f"{name.removesuffix(' tps')} / bare"


def show(title: str, figures: Medians) -> None:
    """A table."""
    columns = list(figures["bare"])
    rows = []
    for case, of in figures.items():
        cells = [round(of[name], 2 if of[name] < 100 else 0) if name in of else "-" for name in columns]
        rows.append([case, *cells])
    print(f"\n{title}\n{table(['case', *columns], rows)}", flush=True)


def say_shares(found: Medians) -> None:
    """What of the bare network's throughput a strict write of 1 MiB has."""
    rate = {case: of["1 MiB GB/s"] for case, of in found.items()}
    plain, tls = rate["strict"] / rate["loopback TCP"], rate["strict, TLS"] / rate["loopback TLS"]
    print(f"strict 1 MiB: {rate['strict']:.2f} GB/s, {plain:.2f} of bare loopback TCP;", end=" ")
    print(f"with TLS {rate['strict, TLS']:.2f} GB/s, {tls:.2f} of loopback TLS")


def measure(quick: bool, only: str | None, uring: bool) -> None:
    """The parts that are wanted; `uring`: the kernel has FUSE over io_uring."""
    figures: dict[str, Medians] = {}
    if only in {None, "writes"}:
        for kind in ("tmpfs", "ext4"):
            found = figures[f"writes, {kind}"] = file_system(kind, CASES, 3 if quick else 15)
            show(f"writes and creates on {kind} (medians)", found)
            say_shares(found)
    if only in {None, "pgbench"}:
        for name, load in {"pgbench": DEFAULTS, "pgbench, little memory": SMALL}.items():
            figures[name] = transactions(load, DATABASE_CASES, 1 if quick else 5, 2 if quick else 3)
            title = f"{name}: TPC-B of scale {load.scale}, {load.shared_buffers} of buffers, ext4 (medians)"
            show(title, figures[name])
    if only in {None, "links"}:
        figures["links"] = slow_links(1 if quick else 2, 2 if quick else 3)
        show("round trips added (medians; ext4)", figures["links"])
    print(publish("mirror-write", {"quick": quick, "io_uring": uring, "medians": figures}))


def main() -> None:
    """Measure, print tables, keep JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: a try, not a figure")
    parser.add_argument("--only", choices=["writes", "pgbench", "links"], help="one of the three parts")
    arguments = parser.parse_args()
    with switched_on() as uring:
        measure(arguments.quick, arguments.only, uring)


if __name__ == "__main__":
    main()
