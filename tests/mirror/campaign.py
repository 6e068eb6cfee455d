# SPDX-License-Identifier: Apache-2.0
"""Kill the primary node of a mirrored database again and again, and count the commits that the other node has.

    python -m tests.mirror.campaign --database all --kills 60 --seed 1
    python -m tests.mirror.campaign --database postgresql --kills 1000
    python -m tests.mirror.campaign --database postgresql --kills 10 --control

Each turn: clients commit and write down every acknowledgement; at a random moment the primary node ends, in one of
four ways (`KINDS`); the other is promoted, the database recovers there, and its rows are held against the ledgers.
Then the first node comes back while new clients write. Every fourth turn hands over in the planned way as well. With
`--control` fsync does not wait for the peer (`--ack async`) and cables are pulled: commits must be lost then.
Exit status 0: nothing was lost; with `--control`: something was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report import host_facts, table
from tests.mirror.nodes import TwoNodes
from tests.mirror.servers import DATABASES, Database, end_at_once
from tests.mirror.trees import differences

KINDS = ("processes", "cable", "power", "both")
"""kill -9 of all processes; the same after the cable is pulled; the same and all unsynced writes are gone; on both
nodes at once, of which the secondary comes back alone."""
_SWAP_EVERY = 4
_PEER_TIMEOUT_S = 3.0


class Lost(Exception):
    """Commits are missing, or the database is broken."""


@dataclass(slots=True)
class Tally:
    """What was done and seen with one database."""

    database: str
    kills: Counter[str] = field(default_factory=Counter)
    swaps: int = 0
    acknowledged: int = 0
    lost: int = 0
    gaps: int = 0
    promote_ms: list[float] = field(default_factory=list)
    """From the order to the first byte written in the directory."""
    recover_ms: list[float] = field(default_factory=list)
    """From then until the database answers."""
    resync_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> list[object]:
        """For the table."""
        return [
            self.database,
            sum(self.kills.values()),
            *(self.kills[kind] for kind in KINDS),
            self.swaps,
            self.acknowledged,
            self.lost,
            round(statistics.median(self.promote_ms)),
            round(max(self.promote_ms)),
            round(statistics.median(self.recover_ms)),
        ]


COLUMNS = ["database", "kills", *KINDS, "swaps", "acknowledged", "lost", "promote ms", "max", "recover ms"]


class Campaign:
    """One database on one mirror."""

    def __init__(self, database: Database, nodes: TwoNodes, dice: random.Random, kinds: tuple[str, ...]) -> None:
        self._database, self._nodes, self._dice, self._kinds = database, nodes, dice, kinds
        self._first = dice.randrange(len(kinds))
        self._primary, self._other = nodes.nodes
        self._clients: list[subprocess.Popen[bytes]] = []
        self._ledgers: dict[int, Path] = {}
        self._next = 0
        self._safe: dict[int, int] = {}
        """Per client that is over: how many rows it had when they were counted."""
        self.tally = Tally(database.name)

    def run(self, kills: int) -> Tally:
        """All of it; afterwards both copies are equal. Raises what a broken mirror or database raises."""
        began = time.monotonic()
        self._begin()
        for turn in range(kills):
            self._work()
            self._strike(kind := self._kinds[(self._first + turn) % len(self._kinds)])
            self._take_over()
            self._count()
            self._fail_back()
            self._report(f"  {turn + 1}/{kills} {kind}")
            if turn % _SWAP_EVERY == _SWAP_EVERY - 1 or turn == kills - 1:
                self._swap()
        self._end()
        self.tally.seconds = round(time.monotonic() - began, 1)
        return self.tally

    def _report(self, what: str) -> None:
        tally = self.tally
        took = f"writable {tally.promote_ms[-1]:.0f} ms, recovered {tally.recover_ms[-1]:.0f} ms later"
        text = f"{what}: {tally.acknowledged} acknowledged, {tally.lost} lost; {took}"
        print(text, file=sys.stderr, flush=True)

    def clean(self) -> None:
        """Whatever happened: nothing runs any more."""
        for client in self._clients:
            with contextlib.suppress(ProcessLookupError):
                client.kill()
            client.wait()
        self._database.crash()

    def _begin(self) -> None:
        self._primary.ctl("promote", "--accept", "first")
        self._primary.wait_in_sync()
        self._database.create(self._primary.data)
        self._database.start(self._primary.data)
        self._load()

    def _load(self) -> None:
        """New clients, and the ledgers they keep."""
        self._ledgers = {}
        for _ in range(self._database.client_count):
            self._next += 1
            ledger = self._ledgers[self._next] = self._nodes.base / f"ledger-{self._next}"
            self._clients.append(self._database.client(self._next, ledger))
        self._clients += self._database.load()

    def _work(self) -> None:
        """Until every client has commits, and then a random while."""
        end = time.monotonic() + 120
        while not all(ledger.stat().st_size for ledger in self._ledgers.values()):
            assert time.monotonic() < end, "a client commits nothing"
            time.sleep(0.02)
        time.sleep(self._dice.uniform(0.0, 2.0))

    def _strike(self, kind: str) -> None:
        """The primary's node ends."""
        self.tally.kills[kind] += 1
        if kind != "processes":
            self._nodes.cut()
            time.sleep(self._dice.uniform(0.0 if len(self._kinds) > 1 else 0.1, 0.3))
        # All at once: who is left for a moment hangs on the others, and a primary left for long goes on alone.
        pids = self._primary.pids() + self._database.pids()
        self._dice.shuffle(pids)
        end_at_once(pids)
        self._database.crash()
        if kind in ("power", "both"):
            self._primary.lose_power()
        if kind == "both":
            self._other.lose_power()
        for client in self._clients:
            client.wait(60)
        self._clients.clear()
        if kind == "both":
            self._other.power_on()
            self._other.ctl("start")

    def _take_over(self) -> None:
        self._other.wait("alone", lambda status: not status["peer"]["connected"])
        api = self._other.api()
        began = time.monotonic()
        api.order_mirror("promote", {"accept": "nothing"})
        (self._other.data / "first-byte").write_bytes(b"1")
        writable = time.monotonic()
        self._database.start(self._other.data)
        self.tally.promote_ms.append((writable - began) * 1000)
        self.tally.recover_ms.append((time.monotonic() - writable) * 1000)

    def _count(self) -> None:
        """Every acknowledged row is there, and each client's rows are 1, 2, 3 ... without a gap."""
        self._database.check()
        for number, ledger in self._ledgers.items():
            said = {int(word) for word in ledger.read_text().split() if word.isdigit()}
            rows = self._database.rows(number)
            self.tally.acknowledged += len(said)
            self.tally.lost += len(said - rows)
            self.tally.gaps += len(rows) != max(rows, default=0)
            self._safe[number] = len(rows)
            ledger.unlink()

    def _fail_back(self) -> None:
        """The killed node comes back while the application writes."""
        self._load()
        self._nodes.mend()
        if self._primary.disk is not None and not self._primary.disk.mounted:
            self._primary.power_on()
        began = time.monotonic()
        self._primary.ctl("start")
        self._other.wait_in_sync()
        self.tally.resync_ms.append((time.monotonic() - began) * 1000)
        self._primary, self._other = self._other, self._primary

    def _swap(self) -> None:
        """The planned way: the database ends, the other node takes over, the database begins there."""
        self._stop()
        self._primary.ctl("swap")
        self._other.wait("primary", lambda status: status["role"] == "primary" and status["in_sync"])
        self._primary, self._other = self._other, self._primary
        self._database.start(self._primary.data)
        self._count()
        self._load()
        self.tally.swaps += 1

    def _stop(self) -> None:
        for client in self._clients:
            client.kill()  # isql does not end by anything less
            client.wait(60)
        self._clients.clear()
        self._database.stop()

    def _end(self) -> None:
        """Rows that were there once are still there, and both copies are equal."""
        self._stop()
        self._database.start(self._primary.data)
        for number in self._dice.sample(sorted(self._safe), min(20, len(self._safe))):
            if len(self._database.rows(number)) != self._safe[number]:
                raise Lost(f"rows of client {number} were there and are not any more")
        self._database.stop()
        copies = zip(self._nodes.one.directories, self._nodes.two.directories, strict=True)
        if not self._primary.ctl("verify")["equal"] or any(differences(one, two) for one, two in copies):
            raise Lost("the copies differ")


def run(database: str, kills: int, seed: int, control: bool = False) -> Tally:
    """One campaign on a mirror of its own. Raises Lost unless `control`."""
    kinds = ("cable",) if control else KINDS
    options = ("--ack", "async") if control else ()
    tag = f"c{os.getpid() % 100_000}"
    second, disks = DATABASES[database].second, {1: "1G", 2: "1G"}
    with TwoNodes(tag, *options, disks=disks, second=second, peer_timeout_s=_PEER_TIMEOUT_S) as nodes:
        scratch = nodes.base / "scratch"
        scratch.mkdir()
        server = DATABASES[database](scratch)
        server.wal_of = {node.data: node.wal for node in nodes.nodes}
        campaign = Campaign(server, nodes, random.Random(f"{seed} {database}"), kinds)
        try:
            tally = campaign.run(kills)
        finally:
            campaign.clean()
        if not control and (tally.lost or tally.gaps):
            raise Lost(f"seed {seed}: {tally}")
    return tally


def main() -> int:
    """Run, print a table, keep JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=[*DATABASES, "all"], default="all")
    parser.add_argument("--kills", type=int, default=8, help="over all databases, shared among them")
    parser.add_argument("--seed", type=int, default=0, help="0: a random one, which is printed")
    parser.add_argument("--control", action="store_true", help="fsync does not wait: commits must be lost")
    parser.add_argument("--out", type=Path, help="JSON as well")
    arguments = parser.parse_args()
    seed = arguments.seed or random.SystemRandom().randrange(1, 1 << 32)
    names = list(DATABASES) if arguments.database == "all" else [arguments.database]
    tallies: list[Tally] = []
    for place, name in enumerate(names):
        share = arguments.kills // len(names) + (place < arguments.kills % len(names))
        print(f"{name}: {share} kills, seed {seed}", file=sys.stderr, flush=True)
        tallies.append(run(name, share, seed, arguments.control))
        print(table(COLUMNS, [tallies[-1].row()]), file=sys.stderr, flush=True)
    print(table(COLUMNS, [tally.row() for tally in tallies]))
    lost = sum(tally.lost for tally in tallies)
    if arguments.out:
        command = " ".join(["python", "-m", "tests.mirror.campaign", *sys.argv[1:]])
        data: dict[str, Any] = {"command": command, "host": host_facts(), "seed": seed, "lost": lost}
        rows = [dict(zip(COLUMNS, tally.row(), strict=True)) | {"seconds": tally.seconds} for tally in tallies]
        arguments.out.write_text(json.dumps(data | {"databases": rows}, indent=2) + "\n")
    return int((lost == 0) if arguments.control else lost != 0)


if __name__ == "__main__":
    sys.exit(main())
