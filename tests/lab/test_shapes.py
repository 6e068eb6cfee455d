# SPDX-License-Identifier: Apache-2.0
"""Farms of other shapes: a second network, two nodes with a witness, two nodes that put availability first."""

from __future__ import annotations

import time

import pytest

from farmd.lab.farm import Farm
from farmd.model.config import Profile
from tests.lab.conftest import MakeFarm
from tests.lab.traffic import PATIENCE_S, traffic

pytestmark = [pytest.mark.root, pytest.mark.lab]

NODES = ["node1", "node2", "node3"]


def test_the_loss_of_the_second_network_is_noticed_by_nobody(make_farm: MakeFarm) -> None:
    farm = make_farm(networks=2)
    with traffic(farm) as running:
        before, view = running.tally(), farm.status("node1")["view"]
        for node in NODES:
            farm.lab.link_down(node, network=1)
        time.sleep(3)
        assert farm.status("node1")["view"] == view
        farm.lab.heal()
        time.sleep(1)
        farm.wait_serving(NODES, seconds=PATIENCE_S)
        assert farm.status("node1")["view"] == view
        since = running.tally().since(before)
        assert since.whole, since


def test_a_node_that_lost_its_service_network_hands_over(make_farm: MakeFarm) -> None:
    """Its heartbeats go on by the second network, but no client reaches it."""
    farm = make_farm(networks=2)
    with traffic(farm) as running:
        before, fault = running.tally(), time.time_ns()
        farm.lab.link_down("node3")
        running.wait_recovered("node3", fault)
        assert farm.lab.api("node1").status().data["members"][2]["state"] == "unfit"
        assert running.tally().since(before).lost_except("node3") == 0
        farm.lab.link_up("node3")
        farm.wait_serving(NODES, seconds=60)


def test_two_nodes_and_a_witness_survive_a_node(make_farm: MakeFarm) -> None:
    farm = make_farm(nodes=2, witness=True)
    roles = {one["name"]: one["role"] for one in farm.status("node1")["members"]}
    assert roles["witness"] == "witness"
    with traffic(farm) as running:
        before, fault = running.tally(), time.time_ns()
        farm.lab.link_down("node1")
        running.wait_recovered("node1", fault)
        farm.wait_serving(["node2"], seconds=PATIENCE_S)
        assert farm.status("node2")["exclusive"]
        assert running.tally().since(before).lost_except("node1") == 0
        farm.lab.link_up("node1")
        farm.wait_serving(["node1", "node2"], seconds=60)


def test_two_nodes_and_a_witness_survive_the_witness(make_farm: MakeFarm) -> None:
    farm = make_farm(nodes=2, witness=True)
    with traffic(farm) as running:
        before = running.tally()
        farm.lab.kill("witness")
        time.sleep(3)
        farm.wait_serving(["node1", "node2"], seconds=PATIENCE_S)
        since = running.tally().since(before)
        assert since.whole, since
        farm.lab.start("witness")
        farm.wait("the witness is back", lambda: state_of(farm, "witness") == "up", seconds=60)


def test_an_available_farm_of_two_survives_its_peer(make_farm: MakeFarm) -> None:
    farm = make_farm(nodes=2, profile=Profile.AVAILABLE)
    assert farm.status("node1")["exclusive"]
    with traffic(farm) as running:
        fault = time.time_ns()
        farm.lab.link_down("node1")
        running.wait_recovered("node1", fault)
        farm.wait_serving(["node2"], seconds=PATIENCE_S)
        status = farm.status("node2")
        assert not status["exclusive"]
        assert any("exclusive=false" in problem["text"] for problem in status["problems"])
        farm.lab.link_up("node1")
        farm.wait_serving(["node1", "node2"], seconds=60)
        farm.wait("both prove it again", lambda: farm.status("node2")["exclusive"], seconds=PATIENCE_S)


def test_an_available_node_that_lost_its_gateway_stays_dark(make_farm: MakeFarm) -> None:
    farm = make_farm(nodes=2, profile=Profile.AVAILABLE)
    with traffic(farm) as running:
        farm.lab.split([["client1", "client2", "gateway", "node2"], ["node1"]])
        farm.wait_serving(["node2"], seconds=PATIENCE_S)
        time.sleep(2)
        assert not farm.serves("node1")
        farm.lab.heal()
        farm.wait_serving(["node1", "node2"], seconds=60)
        assert running.tally().open > 0


def state_of(farm: Farm, member: str) -> str:
    return next(one["state"] for one in farm.status("node1")["members"] if one["name"] == member)
