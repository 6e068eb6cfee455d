# SPDX-License-Identifier: Apache-2.0
"""A history: two nodes become a mirror, suffer, and must be able to serve and to agree again, several times over.

It fails with `Violation` when a promise is broken, and with `Stuck` when a healthy pair does not serve in sync.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from farmd.mirror.acks import Mode
from farmd.mirror.orders import Accept, Demote, Promote, Resync, Stop
from farmd.mirror.state import Link, Phase
from farmd.mirror.zones import Kind
from tests.sim.mirror.disk import CELLS, Cell
from tests.sim.mirror.engine import Engine, Op
from tests.sim.mirror.ledger import Violation
from tests.sim.mirror.world import MS, Host, World

ROUNDS = 3
STORM_STEPS = 260
SETTLE_STEPS = 6000
AIMED_STEPS = 1500


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
        self.world = World(seed, mode, real_files=seed % 16 == 0, sync_share=(0.3, 0.05)[seed // 3 % 2])
        self.random = self.world.random
        self.hosts = list(self.world.hosts.values())
        self.faulty = 0.0
        self.served = self.steps = 0
        self.plan: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        """What happens next as soon as it can: faults that aim at one safeguard, which chance seldom finds."""

    # ---- one step ----

    def step(self) -> None:
        """One small thing happens."""
        world, rng = self.world, self.random
        world.now_ns += rng.randrange(6 * MS)
        if rng.random() < self.faulty:
            self._fault()
        if self.plan and self.plan[0][0]():
            self.plan.popleft()[1]()
        host = self.hosts[rng.random() < 0.5]
        engine = host.engine
        draw = rng.random()
        if draw < 0.10:
            world.connect()
            world.arbitrate()
            world.time_out(host)
        elif engine is not None and not self._shell(host, draw):
            self._data_path(host, engine, draw)

    def _shell(self, host: Host, draw: float) -> bool:
        """Commands, events and frames; False if nothing waited."""
        world = self.world
        if draw < 0.30:
            return world.act(host) or world.think(host)
        if draw < 0.38:
            return world.think(host) or world.act(host)
        return draw < 0.60 and world.deliver(host)

    def _data_path(self, host: Host, engine: Engine, draw: float) -> None:
        if draw < 0.68 and engine.batches:
            engine.step_journal()
        elif draw < 0.76 and engine.forwarding and not engine.reported:
            engine.step_resync()
        elif draw < 0.77:
            engine.flush_both()
        elif engine.accepting:
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

    # ---- faults ----

    def _fault(self) -> None:
        world, rng = self.world, self.random
        host = rng.choice(self.hosts)
        draw = rng.random()
        if draw < 0.20:
            world.crash(host, power=rng.random() < 0.7)
        elif draw < 0.24:
            for each in self.hosts:
                world.crash(each, power=True)
        elif draw < 0.44:
            world.power_on(host)
        elif draw < 0.54:
            world.cut = True
            for each in self.hosts:
                world.break_off(each.me)
        elif draw < 0.60:
            world.break_off(host.me)
        elif draw < 0.70:
            world.cut = False
        elif draw < 0.80:
            world.notice(host)
        elif draw < 0.86:
            host.arbiter = not host.arbiter
        elif draw < 0.96:
            self._some_order(host)
        elif not self.plan:
            rng.choice((self._relay, self._break_at_the_switch, self._break_a_beginning))()
        if not self._anybody_serves():
            world.order(rng.choice(self.hosts), Promote())

    # Faults that aim at one safeguard each.

    def _roles(self) -> tuple[Host, Host] | None:
        """The primary and the other node, if there is a primary."""
        first = next((host for host in self.hosts if host.engine is not None and host.engine.accepting), None)
        return (first, self.world.other(first)) if first is not None else None

    def _relay(self) -> None:
        """The primary's processes die, the other node takes over, brings it back, and loses power (rule 4)."""
        roles, world = self._roles(), self.world
        if roles is None or self._phase(roles[1]) is not Phase.SECONDARY:
            return
        first, second = roles

        def take_over() -> None:
            world.crash(first, power=False)
            world.notice(second)
            world.order(second, Promote())

        def come_back() -> None:
            world.cut = False
            world.power_on(first)

        def lose_power() -> None:
            world.crash(second, power=True)
            world.order(first, Promote())

        # Some writes first, so that the other node has zones that it did not flush.
        self.plan.append((self._later(0.02), take_over))
        self.plan.append((lambda: second.engine is not None and second.engine.accepting, come_back))
        self.plan.append((lambda: self._phase(first) is Phase.SECONDARY, lose_power))

    def _break_at_the_switch(self) -> None:
        """The stream breaks about when DONE is sent, and the primary dies after its peer is up to date (rule 6)."""
        world, rng = self.world, self.random

        def break_off() -> None:
            roles = self._roles()
            if roles is not None and rng.random() < 0.7:
                world.break_off(roles[1].me)

        def die() -> None:
            roles = self._roles()
            if roles is not None:
                world.crash(roles[0], power=rng.random() < 0.5)
                world.order(roles[1], Promote())

        self.plan.append((lambda: self._link() is Link.CLOSING, lambda: None))
        self.plan.append((self._later(0.3), break_off))
        self.plan.append((self._later(0.1), die))

    def _break_a_beginning(self) -> None:
        """The stream breaks when a resync has just begun (rules 5 and 6)."""
        world = self.world

        def break_off() -> None:
            for host in self.hosts:
                world.break_off(host.me)

        self.plan.append((lambda: any(self._phase(host) is Phase.TARGET for host in self.hosts), lambda: None))
        self.plan.append((self._later(0.15), break_off))

    def _power_cut(self) -> None:
        """Both lose power just after the target is up to date, and it is the target that serves next (rule 6)."""
        world = self.world
        roles = self._roles()
        if roles is None:
            return
        first, second = roles

        def cut() -> None:
            for host in self.hosts:
                world.crash(host, power=True)
            world.power_on(second)

        world.notice(second)
        self.plan.append((lambda: self._phase(second) is Phase.TARGET, lambda: None))
        self.plan.append((lambda: first.core is not None and first.core.link is Link.SYNCED, cut))
        self.plan.append((lambda: self._phase(second) is Phase.WAITING, lambda: world.order(second, Promote())))
        self.plan.append((lambda: second.engine is not None and second.engine.accepting, lambda: None))

    def _later(self, chance: float) -> Callable[[], bool]:
        return lambda: self.random.random() < chance

    def _phase(self, host: Host) -> Phase:
        return host.core.phase if host.core is not None else Phase.STOPPED

    def _link(self) -> Link | None:
        roles = self._roles()
        return roles[0].core.link if roles is not None and roles[0].core is not None else None

    def _some_order(self, host: Host) -> None:
        order = self.random.choice((Promote(), Promote(), Demote(), Demote(True), Demote(True), Resync(), Stop()))
        self.world.order(host, order)

    def _anybody_serves(self) -> bool:
        return any(host.engine is not None and host.engine.accepting for host in self.hosts)

    # ---- chapters ----

    def form(self) -> None:
        """The administrator creates the mirror with the files of one node."""
        for host in self.hosts:
            self.world.power_on(host)
        first = self.hosts[0]
        self.run(lambda: first.core is not None and first.core.phase is Phase.WAITING, "did not start")
        self.world.order(first, Promote(Accept.FIRST))
        self.settle()

    def storm(self) -> None:
        """Trouble for a while."""
        self.faulty = self.random.choice((0.015, 0.04, 0.08))
        self.world.busy = True
        for _ in range(STORM_STEPS):
            self.step()
            self.steps += 1
            self.served += self.world.serving()
        self.faulty = 0.0
        self.plan.clear()

    def aim(self) -> None:
        """One fault that aims at one safeguard, in otherwise fair weather, which it needs to get to its end."""
        self.world.busy = True
        rng = self.random
        rng.choice((self._relay, self._break_at_the_switch, self._break_a_beginning, self._power_cut))()
        if rng.random() < 0.5:
            self.world.notice(self.hosts[0])
        for _ in range(AIMED_STEPS):
            self.step()
            self.steps += 1
            self.served += self.world.serving()
            if not self.plan:
                break
        self.plan.clear()

    def settle(self) -> None:
        """All is well again: somebody can serve, the copies become equal, and no operation hangs."""
        world = self.world
        world.cut = False
        for host in self.hosts:
            host.arbiter = True
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
        if host.answers:
            asked.reverse()
            host.answers.clear()
            host = asked[0]
        self.world.order(host, Promote())
        return False

    def _busy(self, host: Host) -> bool:
        core = host.core
        return core is None or bool(host.commands or host.inbox) or core.phase in {
            Phase.STARTING, Phase.CLAIMING, Phase.RESIGNING, Phase.STOPPED
        }  # fmt: skip

    def _in_sync(self) -> bool:
        phases = set()
        for host in self.hosts:
            # An order to stop may still have been under way.
            self.world.power_on(host)
        for host in self.hosts:
            assert host.core is not None
            if host.core.phase is Phase.PRIMARY and host.core.link is not Link.SYNCED:
                return False
            phases.add(host.core.phase)
        return phases == {Phase.PRIMARY, Phase.SECONDARY}

    def _quiet(self) -> bool:
        session = self.world.session
        if session is None or not all(session.arrives.values()):
            return False
        return not any(
            host.commands or host.inbox or host.engine is None or host.engine.ops for host in self.hosts
        ) and not any(session.queues.values())

    def run(self, until: object, failure: str) -> None:
        """Let things happen until `until` holds."""
        for _ in range(SETTLE_STEPS):
            if until():  # type: ignore[operator]
                return
            self.step()
        if not self._anybody_serves():
            failure = "no node can be started"
        phases = [host.core.phase if host.core else "down" for host in self.hosts]
        raise Stuck(f"{failure}: {phases}")


def ride(seed: int, *, aimed: bool = False, stale_copies: bool = False) -> Outcome:
    """One seed from creation to its last settling; `aimed`: faults that aim at a safeguard instead of storms."""
    history = History(seed)
    history.world.stale_copies = stale_copies
    outcome = Outcome(seed)
    try:
        history.form()
        for _ in range(ROUNDS):
            (history.aim if aimed else history.storm)()
            history.settle()
    except Stuck as problem:
        outcome.stuck = str(problem)
    except AssertionError as problem:
        outcome.violation = f"{type(problem).__name__}: {problem}"
    outcome.served = history.served / max(history.steps, 1)
    outcome.simulated_ns = history.world.now_ns
    outcome.counts = dict(history.world.counts)
    return outcome
