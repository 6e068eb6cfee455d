# SPDX-License-Identifier: Apache-2.0
"""The checksum engine beside rsync: the same trees, the same link, turn by turn in one run.

    sudo .venv/bin/python -m bench.checksum [--big-mb 4096] [--files 200000] [--rounds 3] [--folder DIR]

Smaller, for a look: `--big-mb 512 --files 20000`. The full form needs 25 GB of disk and 16 GB of memory, and less than
ten minutes; all is read once before it is measured. Two namespaces are joined by a veth pair with a token bucket of
10 Gb/s in each direction. The source is served in one, the target pulls in the other; rsync pulls from its own daemon.
`engine` is the time inside of the engine, as a daemon that runs anyway has it, `command` the whole command with
Python's start. Both programs get the same changes; rsync writes nothing through to the disk, ours ends with `syncfs`.
Trees and namespaces are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.link import SOURCE, SOURCE_IP, TARGET, inside, link, see_rsync
from bench.report import publish, table

BLOCK = 65536
PER_FOLDER = 100
GOALS = {"big file": 6.0, "quick pass": 2.5, "contents pass": 2.0}
"""How many times faster than rsync."""


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of one turn: of the whole command, inside of the engine (rsync: the same), and of CPU on both ends."""

    command_s: float
    engine_s: float
    cpu_s: float


def measured(words: list[str]) -> tuple[float, float, str]:
    """Run it; its seconds, its CPU seconds and its output. Raises CalledProcessError."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    since = time.monotonic()
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    took = time.monotonic() - since
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


class Place:
    """Where a bench works: a source, a target for each of the two programs, and the means to run them."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.threads = threads
        self.source, self.ours, self.theirs = (folder / name for name in ("source", "ours", "theirs"))
        for path in (self.source, self.ours, self.theirs):
            path.mkdir(parents=True)

    def sync(self, *words: str) -> Took:
        """Ours, on this machine over a socket pair: one process for each end."""
        command = [sys.executable, "-m", "farmd.mirror.checksum", "sync", str(self.source), str(self.ours), "--json"]
        command += ["--threads", str(self.threads), "--record", str(self.folder / "record"), *words]
        seconds, cpu, said = measured(command)
        return Took(seconds, float(json.loads(said)["seconds"]), cpu)

    def rsync(self, *words: str) -> Took:
        """Its own way to run on one machine: three processes and a socket pair."""
        seconds, cpu, _ = measured(["rsync", "-a", "--delete", *words, f"{self.source}/", f"{self.theirs}/"])
        return Took(seconds, seconds, cpu)

    def sync_over_link(self) -> Took:
        """Ours, from one namespace to the other."""
        base = [sys.executable, "-m", "farmd.mirror.checksum"]
        serve = [*base, "serve", str(self.source), "--listen", f"{SOURCE_IP}:7800", "--threads", str(self.threads)]
        server = subprocess.Popen(inside(SOURCE, serve), stderr=subprocess.PIPE)
        assert server.stderr is not None
        server.stderr.readline()  # it listens
        pull = [*base, "sync", f"tcp://{SOURCE_IP}:7800", str(self.ours), "--json", "--threads", str(self.threads)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds, _, said = measured(inside(TARGET, pull))
        server.wait(30)
        server.stderr.close()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Took(seconds, float(json.loads(said)["seconds"]), cpu)

    def rsync_over_link(self) -> Took:
        """`rsync --inplace` from its daemon; the daemon's own CPU is not in its figure."""
        pull = ["rsync", "-a", "--inplace", "--no-whole-file", f"rsync://{SOURCE_IP}/source/", f"{self.theirs}/"]
        seconds, cpu, _ = measured(inside(TARGET, pull))
        return Took(seconds, seconds, cpu)

    def check(self) -> None:
        """Both targets must equal the source, or no figure counts."""
        for target in (self.ours, self.theirs):
            subprocess.run(["diff", "-rq", "--no-dereference", str(self.source), str(target)], check=True)


def make_big(path: Path, megabytes: int) -> None:
    """A file of random bytes."""
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(random.randbytes(1 << 20))


def change_blocks(path: Path, chance: random.Random) -> None:
    """One block of a hundred gets other bytes; the next second, so that rsync's quick check can see it."""
    blocks = path.stat().st_size // BLOCK
    with path.open("r+b") as file:
        for block in chance.sample(range(blocks), blocks // 100):
            file.seek(block * BLOCK)
            file.write(chance.randbytes(BLOCK))
    time.sleep(1.1)
    path.touch()


def make_small(root: Path, files: int) -> None:
    """Files of 200 to 17,200 bytes, a hundred to a directory."""
    chance, data = random.Random(1), random.randbytes(1 << 20)
    for number in range(files):
        folder = root / f"d{number // PER_FOLDER // 50}" / f"s{number // PER_FOLDER % 50}"
        if number % PER_FOLDER == 0:
            folder.mkdir(parents=True)
        size, start = chance.randrange(200, 17_200), chance.randrange(1 << 19)
        (folder / f"file{number}").write_bytes(data[start : start + size])


def change_small(root: Path, files: int, chance: random.Random) -> None:
    """One file of a thousand, in a second of its own."""
    time.sleep(1.1)
    for number in chance.sample(range(files), max(1, files // 1000)):
        path = root / f"d{number // PER_FOLDER // 50}" / f"s{number // PER_FOLDER % 50}" / f"file{number}"
        path.write_bytes(chance.randbytes(path.stat().st_size))
    time.sleep(1.1)


def duel(
    rounds: int, change: Callable[[], None], ours: Callable[[], Took], theirs: Callable[[], Took]
) -> dict[str, Any]:
    """Turn by turn, the order changing; medians, and how many times faster we were."""
    first: list[Took] = []
    second: list[Took] = []
    for number in range(rounds):
        change()
        os.sync()
        turns = [(first, ours), (second, theirs)]
        for kept, run in turns if number % 2 == 0 else reversed(turns):
            kept.append(run())

    def middle(values: list[Took], name: str) -> float:
        value: float = statistics.median(getattr(one, name) for one in values)
        return round(value, 3)

    found = {name: middle(first, name) for name in ("engine_s", "command_s", "cpu_s")}
    them = {"rsync_s": middle(second, "command_s"), "rsync_cpu_s": middle(second, "cpu_s")}
    best = min(one.command_s for one in second) / min(one.engine_s for one in first)
    return {
        **found,
        **them,
        "times_faster": round(them["rsync_s"] / found["engine_s"], 2),
        "times_faster_best": round(best, 2),
        "times_faster_command": round(them["rsync_s"] / found["command_s"], 2),
    }


def missed_changes(folder: Path, tries: int) -> dict[str, int]:
    """A change of the same size within the second of the last sync: how often each quick check misses it."""
    place = Place(folder, 1)
    missed = {"ours": 0, "rsync": 0}
    for number in range(tries):
        time.sleep(1.05 - time.time() % 1)  # early in a second, so that all of it happens in one
        (place.source / "f").write_bytes(b"%08d" % number)
        place.rsync()
        (place.source / "f").write_bytes(b"%08d" % (number + tries))
        place.rsync()
        place.sync("--quick")
        missed["rsync"] += (place.theirs / "f").read_bytes() != (place.source / "f").read_bytes()
        (place.source / "f").write_bytes(b"%08d" % (number + 2 * tries))
        place.sync("--quick")
        missed["ours"] += (place.ours / "f").read_bytes() != (place.source / "f").read_bytes()
    return missed


def warm(*paths: Path) -> None:
    """Into the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass


def hash_speed(path: Path, rounds: int, *, mapped: bool) -> float:
    """GB/s of one core's time: reading a warm file and hashing its blocks."""
    from farmd._checksum import lib

    size = min(path.stat().st_size, 1 << 30)
    with path.open("rb") as file:
        spent = [int(lib.checksum_measure_hash(file.fileno(), size, mapped)) for _ in range(rounds + 1)]
    gb_s: float = size / min(spent[1:])
    return round(gb_s, 2)


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    chance = random.Random(arguments.seed)
    figures: dict[str, Any] = {}
    big = Place(folder / "big", arguments.threads)
    make_big(big.source / "big", arguments.big_mb)
    figures["hash_gb_s_per_core"] = hash_speed(big.source / "big", arguments.rounds, mapped=False)
    figures["hash_gb_s_per_core_mapped"] = hash_speed(big.source / "big", arguments.rounds, mapped=True)
    for target in (big.ours, big.theirs):
        shutil.copy2(big.source / "big", target / "big")
    with link(10, big.source, folder):

        def change() -> None:
            change_blocks(big.source / "big", chance)
            warm(*(folder / "big" for folder in (big.source, big.ours, big.theirs)))

        figures["big file"] = duel(arguments.rounds, change, big.sync_over_link, big.rsync_over_link)
    big.check()
    shutil.rmtree(big.folder)

    small = Place(folder / "small", arguments.threads)
    make_small(small.source, arguments.files)
    for target in (small.ours, small.theirs):
        subprocess.run(["cp", "-a", f"{small.source}/.", str(target)], check=True)
    time.sleep(1.1)
    small.sync()
    small.rsync()

    def change_few() -> None:
        change_small(small.source, arguments.files, chance)

    figures["quick pass"] = duel(arguments.rounds, change_few, lambda: small.sync("--quick"), small.rsync)
    figures["contents pass"] = duel(arguments.rounds, change_few, small.sync, lambda: small.rsync("--checksum"))
    small.check()
    shutil.rmtree(small.folder)
    figures["missed changes"] = {**missed_changes(folder / "missed", arguments.tries), "tries": arguments.tries}
    return figures


def main() -> int:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--big-mb", type=int, default=4096)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="on the file system to measure")
    arguments = parser.parse_args()
    see_rsync()
    with tempfile.TemporaryDirectory(prefix="checksum-bench-", dir=arguments.folder) as folder:
        figures = run(Path(folder), arguments)
    columns = ("engine_s", "command_s", "rsync_s", "times_faster", "times_faster_command")
    rows = [
        [name, *(figures[name][each] for each in columns), goal, figures[name]["cpu_s"], figures[name]["rsync_cpu_s"]]
        for name, goal in GOALS.items()
    ]
    headers = ["", "engine s", "command s", "rsync s", "times faster", "as commands", "goal", "CPU s", "rsync CPU s"]
    print(table(headers, rows))
    mapped = figures["hash_gb_s_per_core_mapped"]
    print(f"hashing a warm file: {figures['hash_gb_s_per_core']} GB/s of a core (goal 8); by mmap {mapped}")
    missed = figures["missed changes"]
    print(f"changes missed within one second, of {missed['tries']}: ours {missed['ours']}, rsync {missed['rsync']}")
    print(publish("checksum", {"sizes": vars(arguments) | {"folder": str(arguments.folder or "")}, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
