# SPDX-License-Identifier: Apache-2.0
"""One database on one mirror whose primary is killed again and again: a part of `tests.mirror.campaign`.

`python -m tests.mirror.killing --database NAME --kills N --seed S` is one such part; it prints a JSON object a turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

from farmd.model.errors import FarmError, Refused
from tests.mirror.nodes import MirrorNode, TwoNodes
from tests.mirror.power import VolatileDisk
from tests.mirror.servers import DATABASES, Database, end_at_once

KINDS = {
    "mirrord": "the primary's mirrord; the database lives on for a moment",
    "engine": "the primary's data path; the database lives on for a moment",
    "farmd": "both of them; the database lives on for a moment",
    "receiver": "the secondary's confined worker, and a moment later the primary's node, half of them by power",
    "processes": "all processes of the primary's node",
    "cable": "the cable is pulled, then as `processes`",
    "power": "the cable is pulled, then as `processes`, and all unsynced writes are gone",
    "blackout": "as `power` on both nodes at once, of which the secondary comes back alone",
}
CONTROL_KINDS = ("cable",)
_SWAP_EVERY = 8
_PEER_TIMEOUT_S = 3.0
_WORK_S = 1.0
"""A turn's kill comes up to this much after each client has committed. Clients also write while the node comes back."""


class Lost(Exception):
    """Commits are missing, or the database is broken, or the copies differ."""


@dataclass(slots=True)
class Tally:
    """What was done and seen with one database."""

    database: str
    kills: Counter[str] = field(default_factory=Counter)
    swaps: int = 0
    refused: int = 0
    """Promotions of a secondary that were refused, rightly; the primary came back then."""
    acknowledged: int = 0
    lost: int = 0
    gaps: int = 0
    promote_ms: list[float] = field(default_factory=list)
    """From the order to the first byte written in the directory."""
    recover_ms: list[float] = field(default_factory=list)
    """From then until the database answers."""
    resync_ms: list[float] = field(default_factory=list)
    phase_s: dict[str, float] = field(default_factory=dict)
    """Where the time went."""

    def add(self, other: Tally) -> None:
        """Another part's."""
        for name in ("swaps", "refused", "acknowledged", "lost", "gaps"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.kills.update(other.kills)
        for phase, spent_s in other.phase_s.items():
            self.phase_s[phase] = self.phase_s.get(phase, 0.0) + spent_s
        for name in ("promote_ms", "recover_ms", "resync_ms"):
            getattr(self, name).extend(getattr(other, name))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def of(cls, data: dict[str, Any]) -> Tally:
        """What `as_dict` made of one."""
        return cls(**data | {"kills": Counter(data["kills"])})


class Killing:
    """One database on one mirror."""

    def __init__(self, database: Database, nodes: TwoNodes, dice: random.Random, kinds: tuple[str, ...]) -> None:
        self._database, self._nodes, self._dice, self._kinds = database, nodes, dice, kinds
        self._primary, self._other = nodes.nodes
        self._clients: list[subprocess.Popen[bytes]] = []
        self._ledgers: dict[int, Path] = {}
        self._next = 0
        self._deck: list[str] = []
        self._safe: dict[int, int] = {}
        """Per client that is over: how many rows it had when they were counted."""
        self.kind = ""
        """How the last kill was done."""
        self.tally = Tally(database.name)

    def run(self, kills: int, is_time_over: Callable[[], bool], tell: Callable[[Killing], None]) -> None:
        """All of it; afterwards both copies are equal. Raises what a broken mirror or database raises."""
        with self._phase("begin"):
            self._begin()
        for turn in range(1, kills + 1):
            if not self._deck:
                self._deck = self._dice.sample(self._kinds, len(self._kinds))
            self.kind = self._deck.pop()
            self._turn(self.kind)
            tell(self)
            if turn % _SWAP_EVERY == 0:
                with self._phase("swap"):
                    self._swap()
            if is_time_over():
                break
        with self._phase("end"):
            self._swap()
            self._end()
        self.kind = "copies equal"

    def _turn(self, kind: str) -> None:
        with self._phase("work"):
            self._work()
        with self._phase("strike"):
            self._strike(kind)
        self._take_over()
        with self._phase("count"):
            self._count()
        with self._phase("fail back"):
            self._fail_back()
        self.tally.kills[kind] += 1

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        spent = self.tally.phase_s
        spent[name] = spent.get(name, 0.0) + time.monotonic() - began

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
        time.sleep(self._dice.uniform(0.0, _WORK_S))

    # ---- the kill ----

    def _strike(self, kind: str) -> None:
        """What `KINDS` says of it; afterwards no client and no database runs."""
        if kind in ("mirrord", "engine", "farmd"):
            self._strike_part(kind)
        else:
            self._strike_node(kind)
        for client in self._clients:
            client.wait(60)
        self._clients.clear()
        if kind == "blackout":
            self._other.power_on()
            self._other.start()

    def _strike_part(self, kind: str) -> None:
        """Only a part of the primary; clients get errors, and the database what it makes of it."""
        main, *others = self._primary.pids()
        engine = self._primary.engine_pid()
        end_at_once({"mirrord": [main], "engine": [engine], "farmd": [main, *others]}[kind])
        time.sleep(self._dice.uniform(0.0, 0.3))
        self._database.crash()
        if kind == "engine":
            self._primary.wait("told of it", lambda status: status["role"] != "primary")

    def _strike_node(self, kind: str) -> None:
        """All of the primary; all at once: who is left for a moment hangs on the others, and a primary that is left for
        long goes on alone.
        """
        has_power = kind not in ("power", "blackout")
        if kind == "receiver":
            has_power = self._dice.random() < 0.5
            end_at_once(self._other.pids()[1:])
            time.sleep(self._dice.uniform(0.0, 0.3))
        elif kind != "processes":
            self._nodes.cut()
            time.sleep(self._dice.uniform(0.0 if len(self._kinds) > 1 else 0.1, 0.3))
        pids = self._primary.pids() + self._database.pids()
        self._dice.shuffle(pids)
        end_at_once(pids)
        self._database.crash()
        if not has_power:
            self._primary.lose_power()
        if kind == "blackout":
            self._other.lose_power()

    # ---- afterwards ----

    def _take_over(self) -> None:
        """By the other node; if that one has to refuse, since the primary went on alone, by the primary itself."""
        with self._phase("notice"):
            if self.kind != "engine":
                self._other.wait("alone", lambda status: not status["peer"]["connected"])
        with self._phase("promote"):
            if not self._promote(self._other):
                assert self.kind == "receiver", f"the promotion is refused after {self.kind}"
                self.tally.refused += 1
                self._come_back(self._primary)
                assert self._promote(self._primary), "neither node can be promoted"
                self._primary, self._other = self._other, self._primary
        with self._phase("recover"):
            began = time.monotonic()
            self._database.start(self._other.data)
            self.tally.recover_ms.append(round((time.monotonic() - began) * 1000, 1))

    def _promote(self, node: MirrorNode) -> bool:
        """Until the directory takes a byte; False if it is refused."""
        began = time.monotonic()
        try:
            node.api().order_mirror("promote", {"accept": "nothing"})
        except Refused:
            return False
        (node.data / "first-byte").write_bytes(b"1")
        self.tally.promote_ms.append(round((time.monotonic() - began) * 1000, 1))
        return True

    def _count(self) -> None:
        """Every acknowledged row is there, and each client's rows are 1, 2, 3 ... without a gap."""
        self._database.check()
        wrong = []
        for number, ledger in self._ledgers.items():
            said = {int(word) for word in ledger.read_text().split() if word.isdigit()}
            rows = self._database.rows(number)
            self.tally.acknowledged += len(said)
            self.tally.lost += len(said - rows)
            has_gap = len(rows) != max(rows, default=0)
            self.tally.gaps += has_gap
            self._safe[number] = len(rows)
            if said - rows or has_gap:
                wrong.append(f"client {number}: {len(said)} acknowledged, lost {sorted(said - rows)}, gap: {has_gap}")
            else:
                ledger.unlink()
        if wrong and len(self._kinds) > 1:
            raise Lost("; ".join(wrong))

    def _fail_back(self) -> None:
        """The killed node comes back while the application writes."""
        self._load()
        self._nodes.mend()
        began = time.monotonic()
        self._come_back(self._primary)
        self._other.wait_in_sync()
        self.tally.resync_ms.append(round((time.monotonic() - began) * 1000, 1))
        self._primary, self._other = self._other, self._primary

    def _come_back(self, node: MirrorNode) -> None:
        if node.disk is not None and not node.disk.mounted:
            node.power_on()
        if not node.pids():
            node.start()

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
        if not self._primary.ctl("verify")["equal"] or self._nodes.differences():
            raise Lost("the copies differ")


# ---- one part ----


def run(
    database: str,
    kills: int,
    seed: int,
    control: bool = False,
    is_time_over: Callable[[], bool] = lambda: False,
    tell: Callable[[Killing], None] = lambda killing: None,
) -> Tally:
    """A part on a mirror of its own. Raises Lost unless `control`, and keeps what there is then (see `_keep`)."""
    kinds = CONTROL_KINDS if control else tuple(KINDS)
    options = ("--ack", "async") if control else ()
    tag = f"c{os.getpid() % 100_000}"
    disks, second = {1: "1G", 2: "1G"}, DATABASES[database].second
    with TwoNodes(
        tag, *options, disks=disks, disk=VolatileDisk, second=second, peer_timeout_s=_PEER_TIMEOUT_S
    ) as nodes:
        scratch = nodes.base / "scratch"
        scratch.mkdir()
        server = DATABASES[database](scratch)
        server.wal_of = {node.data: node.wal for node in nodes.nodes}
        killing = Killing(server, nodes, random.Random(f"{seed} {database}"), kinds)
        try:
            killing.run(kills, is_time_over, tell)
        except KeyboardInterrupt:
            killing.kind = "interrupted"
        except BaseException as error:
            _keep(killing, nodes, error)
            raise
        finally:
            killing.clean()
        tell(killing)
    return killing.tally


def _keep(killing: Killing, nodes: TwoNodes, error: BaseException) -> None:
    """For whoever looks at a failure: both disks, ledgers, the database's log, and this in one file."""
    tally = killing.tally
    words = [f"{tally.database}, kill {tally.kills.total() + 1}, {killing.kind}", *traceback.format_exception(error)]
    for node in nodes.nodes:
        words.append(f"---- node {node.number}: processes {node.pids()}")
        with contextlib.suppress(FarmError, OSError):
            words.append(json.dumps(node.api().mirror().data, indent=2))
        with contextlib.suppress(OSError):
            words.append(node.log(1 << 20))
    (nodes.base / "failure.txt").write_text("\n".join(words))
    error.add_note(f"kept in {nodes.base}")


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal's handler: as Ctrl-C."""
    raise KeyboardInterrupt


def main() -> int:
    """A JSON object a turn on standard output: {"kind", "tally"}; the last kind is "copies equal" or "interrupted",
    or it has "failed" and why.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=list(DATABASES), required=True)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--control", action="store_true")
    parser.add_argument(
        "--until", type=float, default=float("inf"), help="no turn begins after it (seconds since 1970)"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    last: dict[str, Any] = {}

    def tell(killing: Killing) -> None:
        last.update(kind=killing.kind, tally=killing.tally.as_dict())
        print(json.dumps(last), flush=True)

    def is_time_over() -> bool:
        return bool(time.time() > arguments.until)

    try:
        run(arguments.database, arguments.kills, arguments.seed, arguments.control, is_time_over, tell)
    except BaseException as error:
        text = "".join(traceback.format_exception(error)[-3:])
        print(json.dumps(last | {"failed": text}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
