# SPDX-License-Identifier: Apache-2.0
"""Deliveries `multicast` and `directed`: the farm serves, moves and survives there as it does with flooding."""

from __future__ import annotations

import json
import time
from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest

from farmd.lab import netns
from farmd.lab.farm import Farm
from farmd.lab.netns import Part
from farmd.lab.observer import Observer
from farmd.lab.plan import PORT_BY_ADDRESS, PORT_BY_CONNECTION, VIP, VIP6
from farmd.model.buckets import BUCKETS
from farmd.model.config import AttachMode, Delivery
from farmd.model.rules import Address
from tests.lab.conftest import MakeFarm
from tests.lab.test_faults import NODES, come_back, part_pid, survive
from tests.lab.traffic import PATIENCE_S, curl, traffic

pytestmark = [pytest.mark.root, pytest.mark.lab]

SHAPES: dict[str, dict[str, Any]] = {
    "multicast": {"delivery": Delivery.MULTICAST},
    "directed": {"delivery": Delivery.DIRECTED},
    "directed, native": {"delivery": Delivery.DIRECTED, "attach_mode": AttachMode.NATIVE},
}


@pytest.fixture(params=list(SHAPES))
def farm(request: pytest.FixtureRequest, make_farm: MakeFarm) -> Farm:
    return make_farm(**SHAPES[request.param])


@pytest.fixture
def directed(make_farm: MakeFarm) -> Farm:
    return make_farm(delivery=Delivery.DIRECTED)


def counted(farm: Farm, node: str, reason: str) -> int:
    counters = farm.lab.api(node).counters().data["counters"]
    return sum(one["packets"] for one in counters if one["reason"] == reason)


def url_of(vip: Address, port: int) -> str:
    return f"http://{f'[{vip}]' if isinstance(vip, IPv6Address) else vip}:{port}/"


def neighbour(farm: Farm, client: str, vip: Address) -> str | None:
    """Which node a client's kernel believes `vip` to be at."""
    words = farm.lab.exec(client, ["ip", "neigh", "show", "to", str(vip)]).stdout.split()
    if "lladdr" not in words:
        return None
    return farm.lab.plan.node_of_mac(bytes.fromhex(words[words.index("lladdr") + 1].replace(":", "")))


def make_neighbour(farm: Farm, client: str, vip: Address, node: str) -> None:
    """Let a client's kernel believe that `vip` is at `node`, until it finds out."""
    mac = farm.lab.plan.host(node).links[0].mac_text
    done = farm.lab.exec(client, ["ip", "neigh", "replace", str(vip), "lladdr", mac, "dev", "eth0", "nud", "reachable"])
    assert done.returncode == 0, done


def test_the_farm_serves(farm: Farm) -> None:
    plan = farm.lab.plan
    assert farm.status("node1")["delivery"] == plan.delivery
    mode = AttachMode.GENERIC if plan.attach_mode is AttachMode.AUTO else plan.attach_mode
    assert [one["mode"] for one in farm.status("node1")["filter"]] == [mode]
    for vip in (VIP, VIP6):
        servers = set()
        with Observer(plan) as observer:
            for host in plan.client_hosts:
                for address in (one.ip for one in host.addresses if one.version == vip.version):
                    url = url_of(vip, PORT_BY_ADDRESS)
                    answers = {curl(farm, host.name, url, "--interface", str(address)) for _ in range(2)}
                    explained = farm.lab.api("node1").explain(str(address), vip=str(vip), vport=PORT_BY_ADDRESS).data
                    assert answers == {(0, explained["owner"])}
                    assert explained["proof"] is not None
                    assert explained["proof"]["agrees"], explained
                    servers.add(explained["owner"])
            assert servers == set(NODES)
            assert {curl(farm, "client1", url_of(vip, PORT_BY_CONNECTION))[1] for _ in range(30)} == set(NODES)
            assert observer.observation().clean, observer.observation()
    if plan.delivery is Delivery.DIRECTED:
        assert sum(counted(farm, node, "sent-to-owner") for node in NODES) > 0
        for node in NODES:
            assert counted(farm, node, "drop-hop-limit") == counted(farm, node, "drop-mac-unknown") == 0


def test_planned_changes_reset_nothing(farm: Farm) -> None:
    """One after another, so that some buckets have moved twice while connections of every owner live on."""
    with traffic(farm, connections=120) as running:
        before = running.tally()
        farm.lab.api("node1").drain("node2")
        farm.wait("node2 is drained", lambda: farm.buckets("node1")["node2"] == 0)
        drained = time.time_ns()
        time.sleep(1)
        assert running.answered_by(drained) == {"node1", "node3"}
        assert running.tally().open_by_node["node2"] == before.open_by_node["node2"] > 0
        farm.lab.api("node2").set_weight("node1", 20)
        farm.wait("node1 has a sixth", lambda: farm.buckets("node3")["node1"] <= BUCKETS // 6 + 1)
        time.sleep(1)
        farm.lab.api("node3").ready("node2")
        farm.lab.api("node2").set_weight("node1", 100)
        farm.wait("all share alike", lambda: min(farm.buckets("node3").values()) >= BUCKETS // 3)
        farm.lab.api("node1").drain("node3")
        farm.wait("node3 is drained", lambda: farm.buckets("node1")["node3"] == 0)
        time.sleep(1)
        after = running.tally().since(before)
        assert after.whole, after
        assert after.requests > 500
        if farm.lab.plan.delivery is Delivery.DIRECTED:
            assert sum(counted(farm, node, "sent-to-previous") for node in NODES) > 0
        farm.lab.api("node1").ready("node3")
        farm.wait_serving(NODES)
        time.sleep(1)
        assert running.tally().since(before).whole


def test_link_loss(farm: Farm) -> None:
    with traffic(farm) as running:
        survive(running, "node3", farm.lab.link_down)
        come_back(running, "node3", farm.lab.link_up)


def test_a_killed_daemon_under_load_is_noticed_by_nobody(farm: Farm) -> None:
    with traffic(farm) as running:
        before, view = running.tally(), farm.status("node1")["view"]
        began = time.time_ns()
        farm.lab.kill_daemon("node2")
        farm.wait("the daemon has ended", lambda: part_pid(farm, "node2", Part.DAEMON) is None)
        farm.lab.start("node2")
        farm.wait("node2 serves", lambda: farm.serves("node2"), seconds=PATIENCE_S)
        time.sleep(1)
        ended = time.time_ns() - 200_000_000
        assert farm.status("node1")["view"] == view
        seen = running.observer.observation(began, ended)
        assert seen.answered == seen.syns > 0, seen
        assert running.tally().since(before).whole


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["ARP", "ND"])
def test_neighbours_of_a_dead_node_learn_a_living_one(directed: Farm, vip: Address) -> None:
    farm = directed
    make_neighbour(farm, "client1", vip, "node2")
    assert curl(farm, "client1", url_of(vip, PORT_BY_CONNECTION))[0] == 0
    assert neighbour(farm, "client1", vip) == "node2"
    before = counted(farm, "node1", "arp-announced")
    farm.lab.link_down("node2")
    farm.wait("client1 knows node3", lambda: neighbour(farm, "client1", vip) == "node3", seconds=PATIENCE_S)
    assert curl(farm, "client1", url_of(vip, PORT_BY_CONNECTION))[0] == 0
    farm.wait("node1 heard node3's announcement", lambda: counted(farm, "node1", "arp-announced") > before)
    assert counted(farm, "node1", "arp-claim") == 0


def prober(farm: Farm, vip: Address) -> Address:
    """Whom client1 asks as. A probe without a packet to send comes from its link-local address, in IPv6."""
    scope = "global" if vip.version == 4 else "link"
    command = ["ip", "-j", f"-{vip.version}", "addr", "show", "dev", "eth0", "scope", scope]
    shown = json.loads(farm.lab.exec("client1", command).stdout)
    return ip_address(next(info["local"] for one in shown for info in one.get("addr_info", ()) if "local" in info))


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["ARP", "ND"])
def test_a_neighbour_that_asks_one_node_is_told_by_the_owner(directed: Farm, vip: Address) -> None:
    """Linux asks the node that it knows, and no other, whether the VIP is still there."""
    farm = directed
    source = prober(farm, vip)
    owner = farm.lab.api("node1").explain(str(source)).data["owner"]
    stranger = next(node for node in NODES if node != owner)
    mac = farm.lab.plan.host(stranger).links[0].mac_text
    probe = ["ip", "neigh", "replace", str(vip), "lladdr", mac, "dev", "eth0", "nud", "probe"]

    def knows_the_owner() -> bool:
        if neighbour(farm, "client1", vip) is None:  # nobody answered in time; nothing but the probe makes it ask
            assert farm.lab.exec("client1", probe).returncode == 0
        return neighbour(farm, "client1", vip) == owner

    farm.wait("client1 knows the owner", knows_the_owner, seconds=PATIENCE_S)
    assert counted(farm, stranger, "sent-to-owner") > 0


def test_a_node_without_a_lease_sends_on_and_serves_nothing(directed: Farm) -> None:
    farm = directed
    for vip in (VIP, VIP6):
        make_neighbour(farm, "client1", vip, "node1")
    with Observer(farm.lab.plan) as observer:
        farm.lab.kill("node1")
        farm.wait_serving(["node2", "node3"], seconds=PATIENCE_S)
        time.sleep(2.5)  # past the announcements
        for vip in (VIP, VIP6):
            make_neighbour(farm, "client1", vip, "node1")
            killed = time.time_ns()
            served = [curl(farm, "client1", url_of(vip, PORT_BY_CONNECTION), "-m", "1")[1] for _ in range(20)]
            make_neighbour(farm, "client1", vip, "node1")
            assert set(served) - {""} == {"node2", "node3"}
            assert set(observer.observation(killed).by_node) <= {"node2", "node3"}
        assert observer.observation().clean, observer.observation()


def test_the_switch_floods_no_unknown_unicast(directed: Farm) -> None:
    plan = directed.lab.plan
    shown = netns.tool(netns.enter(plan.switch, ["bridge", "-d", "link"]), subject=plan.switch)
    assert shown.count(" flood off ") == len(plan.hosts), shown
