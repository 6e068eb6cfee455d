# SPDX-License-Identifier: Apache-2.0
"""A fault storm: a farm forms, suffers for a while, and must heal by itself afterwards.

Every seed draws its own farm, its own network and its own list of faults. The run fails with `Violation` when two nodes
accept one bucket, and with `Stuck` when the farm is not whole again some time after the last fault.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from farmd.membership.requests import Drain, Leave, Ready, SetWeight
from farmd.model.nodes import NodeId
from tests.sim.world import MS, SECOND, SIM_FAST, SIM_TIMING, Farm, World

CALM_NS = 1500 * MS
STORM_NS = 5 * SECOND
HEAL_NS = 8 * SECOND
"""After the last fault a farm is whole within this: restart wait, takeover, longest hold-down."""
SAMPLE_NS = 100 * MS


class Stuck(AssertionError):
    """The farm did not heal."""


@dataclass(slots=True)
class Outcome:
    """What one seed showed. Availability is the mean share of buckets served."""

    seed: int
    farm: Farm
    violation: str | None = None
    stuck: str | None = None
    formed: bool = False
    calm: float = 0.0
    storm: float = 0.0
    healed_ns: int = 0
    simulated_ns: int = 0
    views: int = 0


def draw_farm(seed: int, *, wire: bool | None = None) -> Farm:
    """The farm of a seed; one seed in sixteen runs over the real wire."""
    rng = random.Random(f"farm {seed}")
    nodes, witness = rng.choice(
        ((2, True), (3, False), (3, False), (3, False), (4, False), (4, True), (5, False), (7, False), (2, False))
    )
    return Farm(
        nodes=nodes,
        witness=witness,
        groups=rng.choice((1, 1, 1, 2)),
        timing=rng.choice((SIM_TIMING, SIM_FAST)),
        clock_ppm=rng.choice((0, 500, 9_900, 9_900)),
        wire=seed % 16 == 0 if wire is None else wire,
    )


class Storm:
    """Draws faults and lets them happen."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random
        self._names = sorted(world.everyone)
        self._pace_ns = self._random.choice((100, 200, 400)) * MS

    def begin(self) -> None:
        """Set the background of bad weather and schedule the faults."""
        world, rng = self._world, self._random
        network = world.network
        network.loss = rng.choice((0.0, 0.02, 0.1, 0.3))
        network.duplication = rng.choice((0.0, 0.1))
        network.delay_ns = (MS // 10, rng.choice((1, 5, 40)) * MS)
        network.late = rng.choice((0.0, 0.05, 0.2))
        network.late_ns = rng.choice((100, 800, 2000)) * MS
        world.mid_stall = rng.choice((0.0, 0.0, 0.002, 0.01))
        world.drop_backlog = rng.random() < 0.5
        at_ns = world.now_ns
        while at_ns < CALM_NS + STORM_NS:
            at_ns += int(rng.expovariate(1 / self._pace_ns))
            world.at(at_ns, self._fault)

    def end(self) -> None:
        """Fair weather again; everybody is switched on."""
        world = self._world
        world.network.cut.clear()
        world.network = replace(world.network, loss=0.0, duplication=0.0, delay_ns=(MS // 10, MS), late=0.0, cut=set())
        world.mid_stall = 0.0
        for name in self._names:
            world.boot(name)

    def undo_requests(self) -> None:
        """Take every node back from draining, give it its weight, and let clients reach it."""
        world = self._world
        for name in sorted(world.nodes):
            world.request(name, Ready(name))
            world.request(name, SetWeight(name, 100, None))
            world.service(name, True)

    def _fault(self) -> None:
        rng = self._random
        if self._world.now_ns >= CALM_NS + STORM_NS:
            return
        faults = {
            self._partition: 10,
            self._one_way: 12,
            self._heal: 22,
            self._stall: 16,
            self._crash: 14,
            self._power: 6,
            self._ask: 10,
            self._leave: 2,
            self._service: 4,
            self._last_supporter: 4,
            self._miss_a_view: 4,
            self._kill_a_proposer: 4,
        }
        rng.choices(list(faults), list(faults.values()))[0]()

    def _one(self) -> NodeId:
        return self._random.choice(self._names)

    def _partition(self) -> None:
        rng, cut = self._random, self._world.network.cut
        side = {name for name in self._names if rng.random() < 0.5}
        cut |= {(a, b) for a in self._names for b in self._names if (a in side) != (b in side)}

    def _one_way(self) -> None:
        rng, cut = self._random, self._world.network.cut
        name = self._one()
        others = [other for other in self._names if other != name]
        some = rng.sample(others, rng.randint(1, len(others)))
        cut |= {(name, other) for other in some} if rng.random() < 0.5 else {(other, name) for other in some}

    def _heal(self) -> None:
        self._world.network.cut.clear()

    def _service(self) -> None:
        self._world.service(self._one(), self._random.random() < 0.5)

    def _stall(self) -> None:
        self._world.stall(self._one(), self._random.choice((100, 300, 600, 1200, 3000)) * MS)

    def _crash(self) -> None:
        self._stop(self._world.crash)

    def _power(self) -> None:
        self._stop(self._world.power_off)

    def _stop(self, how: object) -> None:
        world = self._world
        name = self._one()
        how(name)  # type: ignore[operator]
        world.at(world.now_ns + self._random.choice((5, 100, 300, 700, 2500)) * MS, world.boot, name)

    def _ask(self) -> None:
        world, rng = self._world, self._random
        node = rng.choice(sorted(world.nodes))
        request = rng.choice((Drain(node), Ready(node), Ready(node), SetWeight(node, rng.choice((10, 50, 200)), None)))
        world.request(self._one(), request)

    # Faults that aim at one safeguard each; by chance alone they would take thousands of seeds.

    def _last_supporter(self) -> None:
        """One node lives by one voter's promise, and that voter forgets it by a crash (rule 7)."""
        world, rng = self._world, self._random
        node, voter = rng.sample(self._names, 2)
        world.network.cut |= {(node, other) for other in self._names if other not in (node, voter)}
        world.network.cut |= {(other, node) for other in self._names if other not in (node, voter)}
        world.at(world.now_ns + rng.randrange(300, 1200) * MS, self._forget, node, voter)

    def _forget(self, node: NodeId, voter: NodeId) -> None:
        world = self._world
        if world.now_ns >= CALM_NS + STORM_NS:
            return
        world.network.cut |= {(node, voter), (voter, node)}
        world.crash(voter)
        world.at(world.now_ns + self._random.choice((1, 5, 50)) * MS, world.boot, voter)

    def _miss_a_view(self) -> None:
        """One node is away while buckets move, and back before its lease ends."""
        world, rng = self._world, self._random
        name = self._one()
        world.network.cut |= {(name, other) for other in self._names} | {(other, name) for other in self._names}
        self._ask()
        world.at(world.now_ns + rng.randrange(20, 600) * MS, self._heal)

    def _kill_a_proposer(self) -> None:
        """Crash some node just after it was asked for a change, perhaps before everybody has heard of its view."""
        world, rng = self._world, self._random
        name = self._one()
        node = rng.choice(sorted(world.nodes))
        world.request(name, rng.choice((Drain(node), Ready(node))))
        for other in rng.sample(self._names, rng.randrange(len(self._names))):
            world.network.cut.add((name, other))
        world.at(world.now_ns + rng.randrange(5 * MS), world.crash, name)
        world.at(world.now_ns + rng.choice((6, 20, 100)) * MS, world.boot, name)
        world.at(world.now_ns + rng.randrange(20, 800) * MS, self._heal)

    def _leave(self) -> None:
        world = self._world
        name = self._one()
        world.request(name, Leave())
        world.at(world.now_ns + 2 * SECOND, world.boot, name)


def ride(seed: int, farm: Farm | None = None) -> Outcome:
    """One seed from formation to healing."""
    farm = farm or draw_farm(seed)
    outcome = Outcome(seed, farm)
    world = World(seed, farm)
    try:
        _ride(world, outcome)
    except Stuck as problem:
        outcome.stuck = str(problem)
    except AssertionError as problem:
        outcome.violation = f"{type(problem).__name__}: {problem}"
    outcome.simulated_ns = world.now_ns
    return outcome


def _ride(world: World, outcome: Outcome) -> None:
    rng = world.random
    for name in sorted(world.everyone):
        world.at(rng.randrange(300 * MS), world.boot, name)
    outcome.calm = _sample(world, CALM_NS, after_ns=CALM_NS - 300 * MS)
    outcome.formed = world.served() == 1.0
    if not outcome.formed:
        raise Stuck("the farm did not form")
    storm = Storm(world)
    storm.begin()
    outcome.storm = _sample(world, CALM_NS + STORM_NS)
    storm.end()
    _heal(world, storm, outcome)
    outcome.views = max(host.node.status(0).view.epoch for host in world.hosts.values() if host.node is not None)


def _heal(world: World, storm: Storm, outcome: Outcome) -> None:
    began_ns = world.now_ns
    asked_ns = began_ns
    storm.undo_requests()
    while world.now_ns < began_ns + HEAL_NS:
        world.run(world.now_ns + SAMPLE_NS)
        for name in sorted(world.everyone):
            world.boot(name)
        if world.now_ns - asked_ns >= 2 * SECOND:
            asked_ns = world.now_ns
            storm.undo_requests()
        if world.whole():
            outcome.healed_ns = world.now_ns - began_ns
            return
    raise Stuck(f"not whole {HEAL_NS // SECOND} s after the last fault")


def _sample(world: World, until_ns: int, after_ns: int = 0) -> float:
    total, count = 0.0, 0
    while world.now_ns < until_ns:
        world.run(min(until_ns, world.now_ns + SAMPLE_NS))
        if world.now_ns > after_ns:
            total += world.served()
            count += 1
    return total / max(count, 1)
