# SPDX-License-Identifier: Apache-2.0
"""How long clients of a node go without an answer when its link dies.

    python -m bench.takeover [--kills 30] [--timing default,fast] [--load]

Each kill pulls a node's cable in a farm of three. Takeover is the time from just before the cable is pulled until every
sampled bucket of that node has been answered by another one, as an observer on the switch's client ports sees it; each
bucket is probed every 20 ms. Detection is when a survivor says `member.failed`. Each farm loses each node once, then a
new one is built, because a node that comes and goes is kept out longer every time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bench.report import publish, spread, table
from farmd.lab import probe
from farmd.lab.farm import Farm, event_ns
from farmd.lab.lab import Lab
from farmd.lab.load import Load
from farmd.lab.observer import Observer
from farmd.lab.packets import Flow
from farmd.lab.plan import LabPlan
from farmd.lab.probe import Prober
from farmd.model.errors import FarmError, TimedOut

RATE = 1000
SAMPLED = 20
"""Buckets of the victim that are probed, so each of them every 20 ms."""
AIMS = {"default": (600, 800), "fast": (350, 450)}
"""p50 and p99 in milliseconds that the project set itself."""
_WARM_UP_S = 1.2
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One link loss. Milliseconds after the fault."""

    victim: str
    detection_ms: float
    first_ms: float
    takeover_ms: float
    sampled: int


@dataclass(frozen=True, slots=True)
class Campaign:
    """All kills under one timing, and what the observer saw in all."""

    timing: str
    kills: list[Kill]
    syns: int
    doubles: int
    lost_frames: int


def main() -> int:
    """Run the bench; 0 if nothing was answered twice and the aims were met."""
    parser = argparse.ArgumentParser(description="Takeover time after link loss")
    parser.add_argument("--kills", type=int, default=30, help="for each timing")
    parser.add_argument("--timing", default="default,fast", help="comma-separated")
    parser.add_argument("--load", action="store_true", help="with wrk running at the VIP all the time")
    arguments = parser.parse_args()
    campaigns = [campaign(timing, arguments.kills, load=arguments.load) for timing in arguments.timing.split(",")]
    rows = [row for one in campaigns for row in _rows(one)]
    headers = ("timing", "figure", "kills", "p50 ms", "p99 ms", "max ms", "aim p50/p99", "doubles", "SYNs")
    print(table(headers, rows))
    name = "takeover-load" if arguments.load else "takeover"
    print(f"written to {publish(name, {'load': arguments.load, 'campaigns': [_data(one) for one in campaigns]})}")
    return 0 if all(_met(one) for one in campaigns) else 1


def campaign(timing: str, kills: int, *, load: bool) -> Campaign:
    """Kill links until there are `kills` measurements."""
    done: list[Kill] = []
    syns = doubles = lost = 0
    while len(done) < kills:
        lab = Lab(LabPlan(f"b{os.getpid() % 10**6}", timing=timing))
        try:
            lab.up()
            farm = Farm(lab)
            nodes = [host.name for host in lab.plan.serving]
            farm.wait_serving(nodes, seconds=60)
            random.shuffle(nodes)
            for victim in nodes[: kills - len(done)]:
                with Observer(lab.plan) as observer, _loaded(lab.plan, load):
                    done.append(kill(farm, observer, victim))
                    seen = observer.observation()
                syns, doubles, lost = syns + seen.syns, doubles + seen.doubles, lost + seen.lost_frames
                print(f"{timing} {len(done):3}: {done[-1]}", file=sys.stderr)
        finally:
            lab.down()
    return Campaign(timing, done, syns, doubles, lost)


def kill(farm: Farm, observer: Observer, victim: str) -> Kill:
    """Pull a cable, measure, plug it in, wait until the farm is whole."""
    plan = farm.lab.plan
    survivors = [host.name for host in plan.serving if host.name != victim]
    last = farm.last_event(survivors[0])
    with Prober(plan, sample(farm, observer, victim), RATE):
        time.sleep(_WARM_UP_S + random.random() * 0.2)  # the fault must not be in step with heartbeats
        fault = time.time_ns()
        farm.lab.link_down(victim)
        taken = _wait_taken(observer, victim, fault)
        time.sleep(0.5)
    farm.wait_serving(survivors)
    found = farm.first_event(survivors[0], "member.failed", after=last)
    farm.lab.link_up(victim)
    farm.wait_serving([host.name for host in plan.serving], seconds=120)
    if taken.first_ms is None or taken.all_ms is None:
        raise TimedOut(victim, f"{taken.silent} of its buckets were not taken over", "Read the nodes' logs")
    detection = (event_ns(found) - fault) / 1e6
    return Kill(victim, round(detection, 1), round(taken.first_ms, 1), round(taken.all_ms, 1), taken.sampled)


def sample(farm: Farm, observer: Observer, victim: str) -> list[Flow]:
    """Flows that `victim` serves now, each a bucket of its own with near certainty."""
    plan = farm.lab.plan
    mac = plan.host(victim).links[0].mac
    began = time.time_ns()
    with Prober(plan, probe.flows_of(plan, 6), RATE):
        time.sleep(0.5)
    time.sleep(0.1)
    flows = [flow for flow, owner in probe.owners(observer.asked(began)).items() if owner == mac]
    if len(flows) < SAMPLED:
        raise FarmError(victim, f"it answered only {len(flows)} probes", "Is the farm balanced?")
    return random.sample(flows, SAMPLED)


def _wait_taken(observer: Observer, victim: str, fault_ns: int) -> probe.Takeover:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        taken = probe.takeover_of(observer, victim, fault_ns)
        if taken.all_ms is not None or time.monotonic() > deadline:
            return taken
        time.sleep(0.05)


@contextlib.contextmanager
def _loaded(plan: LabPlan, load: bool) -> Iterator[None]:
    if not load:
        yield
        return
    with Load(plan):
        yield


def _rows(one: Campaign) -> list[tuple[object, ...]]:
    aim = "{}/{}".format(*AIMS[one.timing])
    rows: list[tuple[object, ...]] = []
    for name, series in _series(one).items():
        figures = spread(series)
        aimed = aim if name == "takeover" else ""
        row = (
            one.timing,
            name,
            len(series),
            figures["p50"],
            figures["p99"],
            figures["max"],
            aimed,
            one.doubles,
            one.syns,
        )
        rows.append(row)
    return rows


def _series(one: Campaign) -> dict[str, list[float]]:
    return {
        "detection": [kill.detection_ms for kill in one.kills],
        "first answer": [kill.first_ms for kill in one.kills],
        "takeover": [kill.takeover_ms for kill in one.kills],
    }


def _data(one: Campaign) -> dict[str, Any]:
    summary = {name: spread(series) for name, series in _series(one).items()}
    return {**asdict(one), "summary_ms": summary, "aim_ms": AIMS[one.timing], "met": _met(one)}


def _met(one: Campaign) -> bool:
    figures = spread(_series(one)["takeover"])
    p50, p99 = AIMS[one.timing]
    return figures["p50"] <= p50 and figures["p99"] <= p99 and not one.doubles and not one.lost_frames


if __name__ == "__main__":
    sys.exit(main())
