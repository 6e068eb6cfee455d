# SPDX-License-Identifier: Apache-2.0
"""A history: two nodes become a mirror, suffer, and must be able to serve and to agree again, several times over.

It fails with `Violation` when a promise is broken, and with `Stuck` when a healthy pair does not serve in sync.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from farmd.mirror.acks import Mode
from farmd.mirror.commands import (
    Cas,
    ClearJournal,
    Inherit,
    Persist,
    Say,
    SendCover,
    SetGate,
    StartAccepting,
    StartReceiving,
    StartResync,
)
from farmd.mirror.orders import Accept, Check, Demote, Promote, Resync, Stop
from farmd.mirror.state import Link, Phase
from farmd.mirror.zones import Kind
from tests.sim.mirror import shell
from tests.sim.mirror.disk import CELLS, Cell
from tests.sim.mirror.engine import Engine, Op
from tests.sim.mirror.ledger import Violation
from tests.sim.mirror.network import Wire
from tests.sim.mirror.world import MS, Host, World

ROUNDS = 3
STORM_STEPS = 260
SETTLE_STEPS = 6000
AIMED_STEPS = 1500
LOOK = 8
"""Steps from one look at the whole to the next."""

Condition = Callable[[], bool]
Script = Generator[Condition, None, None]
"""A fault in several acts: each begins when the condition that was yielded before it holds."""


STRUCK = (Persist, Say, SetGate, Inherit, StartAccepting, SendCover, StartReceiving, StartResync, ClearJournal, Cas)


class Stuck(AssertionError):
    """Two healthy nodes and a healthy arbiter do not come to serve in sync."""


@dataclass(slots=True)
class Outcome:
    """What one seed showed."""

    seed: int
    violation: str | None = None
    stuck: str | None = None
    served: float = 0.0
    """Share of the storm's steps in which some node could acknowledge."""
    simulated_ns: int = 0
    counts: dict[str, int] = field(default_factory=dict)


class History:
    """One seed."""

    def __init__(self, seed: int) -> None:
        mode = (Mode.STRICT, Mode.STRICT, Mode.BARRIER)[seed % 3]
        share = (0.3, 0.05)[seed // 3 % 2]
        self.world = World(seed, mode, real_files=seed % 16 == 0, sync_share=share, operator=seed % 5 == 4)
        self.random = self.world.random
        self.hosts = list(self.world.hosts.values())
        self.faulty = 0.0
        self.served = self.steps = 0
        self.script: Script | None = None
        self._begins: Condition = lambda: True

    # ---- one step ----

    def step(self) -> None:
        """One small thing happens."""
        world, rng = self.world, self.random
        if self.script is not None:
            self._play()
        if self.faulty and rng.random() < self.faulty:
            self._fault()
        world.last = None
        # One number decides who, what and how long: drawing is a good part of a step's price.
        number = rng.random() * 2
        draw = number % 1
        host = self.hosts[number < 1]
        engine = host.engine
        world.now_ns += int((number * 64 % 1) * 6 * MS)
        if draw < 0.10:
            world.connect()
            world.arbitrate()
            world.time_out(host)
        elif engine is not None and not self._shell(host, draw):
            self._data_path(host, engine, draw)

    def _counted_step(self) -> None:
        self.step()
        self.steps += 1
        if self.steps % LOOK == 0:
            self.served += LOOK * self.world.serving()

    def _shell(self, host: Host, draw: float) -> bool:
        """Commands, events and frames; False if nothing waited."""
        if draw < 0.30:
            return shell.act(host) or shell.think(host)
        if draw < 0.38:
            return shell.think(host) or shell.act(host)
        return draw < 0.60 and self.world.deliver(host)

    def _data_path(self, host: Host, engine: Engine, draw: float) -> None:
        if draw < 0.68 and engine.batches:
            engine.step_journal()
        elif draw < 0.76 and engine.forwarding and not engine.reported:
            engine.step_resync()
        elif draw < 0.79 and engine.verifying is not None:
            engine.step_verify()
        elif 0.79 <= draw < 0.80:
            engine.step_background()
        elif draw >= 0.5 and engine.accepting:
            self._application(host)

    def _application(self, host: Host) -> None:
        engine, rng = host.engine, self.random
        assert engine is not None
        if engine.ops and rng.random() < 0.7:
            engine.step_op(rng.choice(engine.ops))
        elif self.world.busy:
            engine.submit(self._operation())

    def _operation(self) -> Op:
        """A write of a block or two neighbours, a change of names, or a sync of a file or the directory."""
        rng = self.random
        sync = rng.random() < self.world.sync_share
        cell: Cell = rng.choice(CELLS)
        file = tuple(each for each in CELLS if each[0].handle == cell[0].handle)
        if sync:
            return Op(file, True)
        if cell[0].kind is Kind.DATA and rng.random() < 0.3:
            at = CELLS.index(cell)
            return Op(CELLS[at : at + 2], False)
        return Op((cell,), False)

    # ---- scripts ----

    def play(self, script: Script) -> None:
        """Let a script happen beside everything else."""
        self.script, self._begins = script, lambda: True

    def _play(self) -> None:
        if self.script is not None and self._begins():
            try:
                self._begins = next(self.script)
            except StopIteration:
                self.script = None

    # ---- faults ----

    def _fault(self) -> None:
        world, rng = self.world, self.random
        host = rng.choice(self.hosts)
        draw = rng.random()
        if draw < 0.18:
            world.crash(host, power=rng.random() < 0.7)
        elif draw < 0.22:
            for each in self.hosts:
                world.crash(each, power=True)
        elif draw < 0.42:
            world.power_on(host)
        elif draw < 0.50:
            world.cut = True
            for each in self.hosts:
                world.break_off(each.me)
        elif draw < 0.56:
            world.break_off(host.me)
        elif draw < 0.61:
            world.break_off(host.me, (rng.choice((Wire.CONTROL, Wire.STREAM)),))
        elif draw < 0.69:
            world.cut = False
        elif draw < 0.77:
            world.notice(host)
        elif draw < 0.82:
            host.arbiter = not host.arbiter
        elif draw < 0.87:
            host.stalled = not host.stalled
        elif draw < 0.96:
            self._some_order(host)
        elif self.script is None:
            self.play(self._strike())
        if not self._anybody_serves():
            world.order(rng.choice(self.hosts), Promote())

    def _strike(self) -> Script:
        """Something breaks exactly behind a command of some kind."""
        world, rng = self.world, self.random
        kind = rng.choice(STRUCK)
        yield lambda: world.last is not None and type(world.last[1]) is kind
        assert world.last is not None
        host = world.last[0]
        draw = rng.random()
        if draw < 0.5:
            world.crash(host, power=rng.random() < 0.5)
        elif draw < 0.6:
            for each in self.hosts:
                world.crash(each, power=True)
        elif draw < 0.8:
            host.stalled = True
        else:
            world.break_off(world.other(host).me, keep=0.0)

    def _some_order(self, host: Host) -> None:
        rng = self.random
        check = Check(repair=rng.random() < 0.5)
        orders = (Promote(), Promote(), Demote(), Demote(True), Demote(True), Resync(), Stop(), check)
        self.world.order(host, rng.choice(orders))

    def _anybody_serves(self) -> bool:
        one, two = self.hosts
        return one.serves or two.serves

    # ---- chapters ----

    def form(self) -> None:
        """The administrator creates the mirror with the files of one node."""
        for host in self.hosts:
            self.world.power_on(host)
        first = self.hosts[0]
        self.run(lambda: first.phase is Phase.WAITING, "did not start")
        self.world.order(first, Promote(Accept.FIRST))
        self.settle()

    def storm(self) -> None:
        """Trouble for a while."""
        self.faulty = self.random.choice((0.015, 0.04, 0.08))
        self.world.busy = True
        for _ in range(STORM_STEPS):
            self._counted_step()
        self.faulty = 0.0
        self.script = None

    def aim(self, script: Script) -> None:
        """One fault that aims at one safeguard, in otherwise fair weather, which it needs to get to its end."""
        self.world.busy = True
        self.play(script)
        for _ in range(AIMED_STEPS):
            self._counted_step()
            if self.script is None:
                break
        self.script = None

    def settle(self) -> None:
        """All is well again: somebody can serve, the copies become equal, and no operation hangs."""
        world = self.world
        world.cut = world.lazy = world.hold_late = world.hold_readings = False
        for host in self.hosts:
            host.arbiter, host.stalled, host.slow = True, False, False
            world.power_on(host)
        asked = self.random.sample(self.hosts, 2)
        self.run(lambda: self._in_sync() or self._promote(asked), "no node in sync")
        world.busy = False
        # An order that was still under way may have ended the tenure once more.
        self.run(lambda: (self._in_sync() or self._promote(asked)) and self._quiet(), "operations hang")
        for host in self.hosts:
            assert host.engine is not None
            host.engine.tracker.check()
        one, two = self.hosts
        if one.disk.content != two.disk.content:
            raise Violation("the copies differ although they are in sync")

    def _promote(self, asked: list[Host]) -> bool:
        """Ask one node after the other, as long as nobody serves. If none can be started, this never ends."""
        if self._anybody_serves() or any(self._busy(host) for host in self.hosts):
            return False
        host = asked[0]
        if host.answers or self.world.unwise(host):
            asked.reverse()
            host.answers.clear()
            host = asked[0]
        self.world.order(host, Promote())
        return False

    def _busy(self, host: Host) -> bool:
        return bool(host.commands or host.inbox) or host.phase in {
            Phase.STARTING, Phase.CLAIMING, Phase.RESIGNING, Phase.STOPPED
        }  # fmt: skip

    def _in_sync(self) -> bool:
        for host in self.hosts:
            # An order to stop may still have been under way.
            self.world.power_on(host)
        return self.roles() is not None

    def roles(self) -> tuple[Host, Host] | None:
        """Primary and secondary of a pair in sync."""
        for first, second in (self.hosts, self.hosts[::-1]):
            if first.core is not None and first.phase is Phase.PRIMARY and second.phase is Phase.SECONDARY:
                return (first, second) if first.core.link is Link.SYNCED else None
        return None

    def _quiet(self) -> bool:
        session = self.world.session
        if session is None or not session.whole or not session.empty:
            return False
        return not any(
            host.commands or host.inbox or host.engine is None or host.engine.ops or host.engine.verifying
            for host in self.hosts
        )

    def run(self, until: Condition, failure: str) -> None:
        """Let things happen until `until` holds."""
        for count in range(SETTLE_STEPS):
            if count % LOOK == 0 and until():
                return
            self.step()
        if not self._anybody_serves():
            failure = "no node can be started"
        raise Stuck(f"{failure}: {[str(host.phase) for host in self.hosts]}")


def ride(seed: int, *, aimed: bool = False, stale_copies: bool = False) -> Outcome:
    """One seed from creation to its last settling; `aimed`: faults that aim at a safeguard instead of storms."""
    from tests.sim.mirror.aims import draw_aim

    history = History(seed)
    history.world.stale_copies = stale_copies
    outcome = Outcome(seed)
    try:
        history.form()
        for _ in range(ROUNDS):
            if aimed:
                history.aim(draw_aim(history))
            else:
                history.storm()
            history.settle()
    except Stuck as problem:
        outcome.stuck = str(problem)
    except AssertionError as problem:
        outcome.violation = f"{type(problem).__name__}: {problem}"
    outcome.served = history.served / max(history.steps, 1)
    outcome.simulated_ns = history.world.now_ns
    outcome.counts = dict(history.world.counts)
    return outcome
