# SPDX-License-Identifier: Apache-2.0
"""One thing breaks, under traffic: the farm goes on, nobody answers twice, and what heals comes back."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from farmd.lab import netns, probe
from farmd.lab.farm import Farm
from farmd.lab.lab import Lab
from farmd.lab.netns import Part
from farmd.model.errors import Refused
from tests.lab.conftest import MakeFarm
from tests.lab.traffic import PATIENCE_S, Traffic, traffic

pytestmark = [pytest.mark.root, pytest.mark.lab]

NODES = ["node1", "node2", "node3"]
STOP_BOUND_MS = 2000
"""A filter on its own stops after its lease of 500 ms; on a busy machine the observer may hear of it late."""


def survive(running: Traffic, node: str, break_it: Callable[[str], None]) -> int:
    """Break `node`; the others must take over, and only connections of `node` may be lost. The time of the fault."""
    before = running.tally()
    fault = time.time_ns()
    break_it(node)
    running.wait_recovered(node, fault)
    running.farm.wait_serving([name for name in NODES if name != node], seconds=PATIENCE_S)
    time.sleep(1)
    since = running.tally().since(before)
    assert since.lost_except(node) == 0, since
    assert since.strays == 0, since
    return fault


def come_back(running: Traffic, node: str, heal: Callable[[str], None]) -> None:
    """Heal `node`; it must serve again, and nobody may lose a connection by that."""
    time.sleep(2)  # let clients of the lost node find new homes
    before = running.tally()
    heal(node)
    running.farm.wait_serving(NODES, seconds=60)
    back = time.time_ns()
    time.sleep(1)
    assert node in running.answered_by(back)
    since = running.tally().since(before)
    assert since.lost_except(node) == 0, since
    assert since.strays == 0, since


def test_link_loss(make_farm: MakeFarm) -> None:
    farm = make_farm()
    with traffic(farm) as running:
        last = farm.last_event("node1")
        survive(running, "node3", farm.lab.link_down)
        assert farm.first_event("node1", "member.failed", after=last)
        come_back(running, "node3", farm.lab.link_up)


def test_killed_farmd_stops_its_filter(make_farm: MakeFarm) -> None:
    farm = make_farm()
    with traffic(farm) as running:
        fault = survive(running, "node1", farm.lab.kill)
        parts = {process.part for process in netns.processes(farm.lab.plan.host("node1").namespace)}
        assert parts == {Part.NGINX}
        assert 0 < probe.last_answer_ms(running.observer, "node1", fault) < STOP_BOUND_MS
        come_back(running, "node1", farm.lab.start)
        assert farm.status("node1")["filter"][0]["reattached"]


def test_frozen_farmd_stops_its_filter(make_farm: MakeFarm) -> None:
    farm = make_farm()
    with traffic(farm) as running:
        fault = survive(running, "node2", farm.lab.freeze)
        assert 0 < probe.last_answer_ms(running.observer, "node2", fault) < STOP_BOUND_MS
        come_back(running, "node2", farm.lab.thaw)


def test_frozen_engine_stops_its_filter(make_farm: MakeFarm) -> None:
    farm = make_farm()
    with traffic(farm) as running:
        fault = survive(running, "node2", lambda node: farm.lab.freeze(node, [Part.ENGINE]))
        assert 0 < probe.last_answer_ms(running.observer, "node2", fault) < STOP_BOUND_MS
        come_back(running, "node2", lambda node: farm.lab.thaw(node, [Part.ENGINE]))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda lab, node: lab.stop(node), id="stopped"),
        pytest.param(lambda lab, node: lab.kill_daemon(node), id="killed"),
    ],
)
def test_a_restart_of_the_daemon_is_noticed_by_nobody(make_farm: MakeFarm, fault: Callable[[Lab, str], None]) -> None:
    farm = make_farm()
    with traffic(farm) as running:
        before = running.tally()
        view = farm.status("node1")["view"]
        began = time.time_ns()
        engine = part_pid(farm, "node2", Part.ENGINE)
        fault(farm.lab, "node2")
        farm.wait("the daemon has ended", lambda: part_pid(farm, "node2", Part.DAEMON) is None)
        farm.lab.start("node2")
        farm.wait("node2 serves", lambda: farm.serves("node2"), seconds=PATIENCE_S)
        time.sleep(1)
        ended = time.time_ns() - 200_000_000  # what was asked just now may still be under way
        assert farm.status("node2")["filter"][0]["reattached"]
        assert part_pid(farm, "node2", Part.ENGINE) == engine
        assert farm.status("node1")["view"] == view
        seen = running.observer.observation(began, ended)
        assert seen.answered == seen.syns > 0, seen
        assert running.tally().since(before).whole


def test_a_frozen_daemon_alone_harms_nobody(make_farm: MakeFarm) -> None:
    farm = make_farm()
    with traffic(farm) as running:
        before = running.tally()
        farm.lab.freeze("node2", [Part.DAEMON])
        time.sleep(3)
        farm.lab.thaw("node2", [Part.DAEMON])
        farm.wait_serving(NODES, seconds=PATIENCE_S)
        since = running.tally().since(before)
        assert since.whole, since


def test_a_one_way_cut_settles(make_farm: MakeFarm) -> None:
    farm = make_farm()
    with traffic(farm) as running:
        farm.lab.cut("node1", "node2")
        time.sleep(5)
        settled = time.time_ns()
        time.sleep(1.5)
        seen = running.observer.observation(settled, time.time_ns() - 300_000_000)
        assert seen.answered == seen.syns > 0, seen
        farm.lab.heal()
        farm.wait_serving(NODES, seconds=60)


def test_a_minority_serves_nothing(make_farm: MakeFarm) -> None:
    farm = make_farm()
    with traffic(farm) as running:
        fault = time.time_ns()
        farm.lab.split([["client1", "node1", "node2"], ["client2", "node3"]])
        farm.wait_serving(["node1", "node2"], seconds=PATIENCE_S)
        assert probe.last_answer_ms(running.observer, "node3", fault) < STOP_BOUND_MS
        settled = time.time_ns()
        time.sleep(1.5)
        ours = {address.ip for address in farm.lab.plan.host("client1").addresses}
        answered = {one.flow.client in ours: bool(one.answers) for one in running.observer.asked(settled)}
        assert answered == {True: True, False: False}
        assert not farm.status("node3")["lease"]["valid"]
        farm.lab.heal()
        farm.wait_serving(NODES, seconds=60)


def test_without_any_majority_nobody_serves(make_farm: MakeFarm) -> None:
    farm = make_farm()
    with traffic(farm) as running:
        fault = time.time_ns()
        farm.lab.split([["client1", "client2", "node1"], ["node2"], ["node3"]])
        time.sleep(STOP_BOUND_MS / 1000 + 0.5)
        for node in NODES:
            assert probe.last_answer_ms(running.observer, node, fault) < STOP_BOUND_MS
            assert not farm.serves(node)
        farm.lab.heal()
        farm.wait_serving(NODES, seconds=60)
        healed = time.time_ns()
        time.sleep(1)
        assert running.answered_by(healed) == set(NODES)


def test_a_planned_leave_is_noticed_by_nobody_else(make_farm: MakeFarm) -> None:
    farm = make_farm()
    with traffic(farm) as running:
        before = running.tally()
        farm.lab.api("node3").leave()
        farm.wait_serving(["node1", "node2"], seconds=PATIENCE_S)
        left = time.time_ns()
        time.sleep(1)
        seen = running.observer.observation(left, time.time_ns() - 300_000_000)
        assert set(seen.by_node) == {"node1", "node2"}
        assert seen.answered == seen.syns > 0
        since = running.tally().since(before)
        assert since.lost_except("node3") == 0, since

        with pytest.raises(Refused, match="1 of 3 voters would stay"):
            farm.lab.api("node2").leave()
        assert farm.serves("node2")


def part_pid(farm: Farm, node: str, part: Part) -> int | None:
    found = netns.processes(farm.lab.plan.host(node).namespace)
    return next((process.pid for process in found if process.part is part), None)
