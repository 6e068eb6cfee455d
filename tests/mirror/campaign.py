# SPDX-License-Identifier: Apache-2.0
"""Kill the primary node of a mirrored database again and again, and count the commits that the other node has.

    python -m tests.mirror.campaign --database all --kills 1000 --jobs 4 --minutes 75 --out campaign.json
    python -m tests.mirror.campaign --database postgresql --kills 60 --seed 1
    python -m tests.mirror.campaign --database sqlite --kills 10 --control

Each turn: clients commit and write down every acknowledgement; at a random moment something of the primary node ends,
in one of eight ways (`tests.mirror.killing.KINDS`); the other node is promoted, the database recovers there, checks
itself, and its rows are held against the ledgers. Then the first node comes back while new clients write. At times it
is handed over in the planned way as well. With `--control` fsync does not wait for the peer (`--ack async`) and
cables are pulled: commits must be lost then.

The kills are shared among parts, each on a mirror of its own in a box of its own (`tests.mirror.box`); `--jobs` of them
run at once. Turns are mostly waiting, so twice as many as there are cores is about right. A part's seed is made
of `--seed` and its number; what a kill meets depends on the machine's timing as well. A part that fails ends, and keeps
its disks, ledgers and logs below TMPDIR (/var/tmp without one); the others go on.

Exit status 0: all kills were done and nothing was lost; with `--control`: something was. 1 else; 2: the time was over.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import queue
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report import host_facts, spread, table
from tests.mirror.box import boxed
from tests.mirror.killing import KINDS, Tally, interrupt
from tests.mirror.servers import DATABASES

_PART_KILLS = 50
"""At most, on one mirror: a database grows, and another one is created in seconds."""
_GRACE_S = 300.0
"""What a part may take after its time to end its turn and to compare both copies."""
COLUMNS = ["database", "kills", "swaps", "refused", "acknowledged", "lost", "promote ms", "max", "recover ms"]


@dataclass(slots=True)
class Part:
    """A share of the kills, and what became of it."""

    number: int
    database: str
    kills: int
    seed: int
    tally: Tally = field(init=False)
    kind: str = ""
    failed: str = ""
    process: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.tally = Tally(self.database)

    def run(self, control: bool, until: float, tell: queue.Queue[Part]) -> None:
        """In a box of its own, until it has ended; `tell` gets it after each turn."""
        words = [sys.executable, "-m", "tests.mirror.killing", "--database", self.database]
        words += ["--kills", str(self.kills), "--seed", str(self.seed), *(["--control"] if control else [])]
        words += ["--until", str(until)] if math.isfinite(until) else []
        command = boxed(words)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            self.process = process
            assert process.stdout is not None
            timer = threading.Timer(max(0.0, until - time.time()) + _GRACE_S, process.kill)
            if math.isfinite(until):
                timer.start()
            ended = False
            for line in process.stdout:
                said = json.loads(line)
                ended = said.get("kind") in ("copies equal", "interrupted")
                self.failed = said.get("failed", "")
                if "tally" in said:
                    self.tally, self.kind = Tally.of(said["tally"]), said["kind"]
                tell.put(self)
            timer.cancel()
        if not ended and not self.failed:
            self.failed = f"it ended without a word, status {process.returncode}"
            tell.put(self)


def parts(databases: list[str], kills: int, seed: int, jobs: int) -> list[Part]:
    """Shares of about equal size, the databases in turn, so that different ones run beside each other."""
    shares: list[list[tuple[str, int]]] = []
    for place, database in enumerate(databases):
        wanted = kills // len(databases) + (place < kills % len(databases))
        count = max(math.ceil(wanted / _PART_KILLS), math.ceil(jobs / len(databases)) if wanted >= jobs else 1)
        shares.append([(database, wanted // count + (n < wanted % count)) for n in range(count)])
    mixed = [share for row in itertools.zip_longest(*shares) for share in row if share is not None and share[1]]
    dice = random.Random(seed)
    return [Part(number, name, share, dice.randrange(1, 1 << 32)) for number, (name, share) in enumerate(mixed, 1)]


class Campaign:
    """All parts, `jobs` at once."""

    def __init__(self, all_parts: list[Part], jobs: int, control: bool, until: float) -> None:
        self.parts, self._jobs, self._control, self._until = all_parts, jobs, control, until
        self._left = queue.SimpleQueue[Part]()
        self._news: queue.Queue[Part] = queue.Queue()
        self._began = time.monotonic()
        self._is_stopped = False

    def run(self) -> None:
        """Until every part has ended, time is over, or it is interrupted; then the parts that run clean up and end."""
        for part in self.parts:
            self._left.put(part)
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._jobs)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) or not self._news.empty():
                self._tell()
        except KeyboardInterrupt:
            self._is_stopped = True
            for part in self.parts:
                if part.process is not None and part.process.poll() is None:
                    os.killpg(part.process.pid, signal.SIGTERM)
            for thread in threads:
                thread.join(60)

    def _work(self) -> None:
        while not self._is_stopped and time.time() < self._until:
            try:
                part = self._left.get_nowait()
            except queue.Empty:
                return
            part.run(self._control, self._until, self._news)

    def _tell(self) -> None:
        try:
            part = self._news.get(timeout=0.5)
        except queue.Empty:
            return
        done, wanted = sum(each.tally.kills.total() for each in self.parts), sum(each.kills for each in self.parts)
        lost = sum(each.tally.lost for each in self.parts)
        spent_s = time.monotonic() - self._began
        left_s = spent_s * (wanted - done) / done if done else 0.0
        what = f"{_clock(spent_s)}, {_clock(left_s)} to go: {done}/{wanted} kills, {lost} lost; "
        what += f"{part.database} {part.number}"
        if part.failed:
            what += f" FAILED (seed {part.seed}):\n{part.failed}"
        elif part.kind in KINDS:
            tally = part.tally
            what += f" {tally.kills.total()}/{part.kills} {part.kind}: {tally.acknowledged} acknowledged, writable "
            what += f"{tally.promote_ms[-1]:.0f} ms, recovered {tally.recover_ms[-1]:.0f} ms later"
        else:
            what += f": {part.kind}"
        print(what, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def row(tally: Tally) -> list[object]:
    """For the table."""
    promote, recover = tally.promote_ms or [0.0], tally.recover_ms or [0.0]
    counts = [tally.kills.total(), tally.swaps, tally.refused, tally.acknowledged, tally.lost]
    return [
        tally.database,
        *counts,
        round(statistics.median(promote)),
        round(max(promote)),
        round(statistics.median(recover)),
    ]


def merged(all_parts: list[Part]) -> list[Tally]:
    """One tally a database."""
    tallies = {part.database: Tally(part.database) for part in all_parts}
    for part in all_parts:
        tallies[part.database].add(part.tally)
    return list(tallies.values())


def as_json(campaign: Campaign, arguments: argparse.Namespace, seed: int, minutes: float) -> dict[str, Any]:
    """Everything that was seen, with the command that does it again."""
    tallies = merged(campaign.parts)
    command = " ".join(["python", "-m", "tests.mirror.campaign", *sys.argv[1:]])
    if not arguments.seed:
        command += f" --seed {seed}"
    rows = [
        dict(zip(COLUMNS, row(tally), strict=True))
        | {"kinds": dict(tally.kills), "gaps": tally.gaps}
        | {name: spread(getattr(tally, name)) for name in ("promote_ms", "recover_ms", "resync_ms") if tally.promote_ms}
        | {"phase_s": {name: round(value, 1) for name, value in tally.phase_s.items()}}
        for tally in tallies
    ]
    return {
        "command": command,
        "host": host_facts(),
        "seed": seed,
        "jobs": arguments.jobs,
        "minutes": round(minutes, 1),
        "kinds": KINDS,
        "kills": sum(tally.kills.total() for tally in tallies),
        "acknowledged": sum(tally.acknowledged for tally in tallies),
        "lost": sum(tally.lost for tally in tallies),
        "failures": [
            {"database": part.database, "part": part.number, "seed": part.seed, "error": part.failed}
            for part in campaign.parts
            if part.failed
        ],
        "databases": rows,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=[*DATABASES, "all"], default="all")
    parser.add_argument("--kills", type=int, default=8, help="over all databases, shared among them")
    parser.add_argument("--seed", type=int, default=0, help="0: a random one, which is printed")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="mirrors at once")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no kill begins later than that")
    parser.add_argument("--control", action="store_true", help="fsync does not wait: commits must be lost")
    parser.add_argument("--out", type=Path, help="JSON as well")
    return parser.parse_args()


def main() -> int:
    """Run, print a table, keep JSON."""
    arguments = _arguments()
    seed = arguments.seed or random.SystemRandom().randrange(1, 1 << 32)
    names = list(DATABASES) if arguments.database == "all" else [arguments.database]
    began = time.time()
    shares = parts(names, arguments.kills, seed, arguments.jobs)
    campaign = Campaign(shares, arguments.jobs, arguments.control, began + 60 * arguments.minutes)
    print(f"{arguments.kills} kills in {len(shares)} parts, seed {seed}", file=sys.stderr, flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs behind it with SIGINT ignored
        signal.signal(number, interrupt)
    campaign.run()
    result = as_json(campaign, arguments, seed, (time.time() - began) / 60)
    tallies = merged(shares)
    print(table(COLUMNS, [row(tally) for tally in tallies]))
    kinds = sum((tally.kills for tally in tallies), Counter[str]())
    print(table(list(KINDS), [[kinds[kind] for kind in KINDS]]))
    print(f"seed {seed}, {result['minutes']} minutes, {len(result['failures'])} failures")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    if result["failures"] or bool(result["lost"]) != arguments.control:
        return 1
    return 0 if result["kills"] >= arguments.kills else 2


if __name__ == "__main__":
    sys.exit(main())
