# SPDX-License-Identifier: Apache-2.0
"""A calm farm: who serves whom, and that planned changes are noticed by nobody. Nothing is broken here."""

from __future__ import annotations

import subprocess
import time
from ipaddress import IPv6Address

import pytest

from farmd.lab.farm import Farm
from farmd.lab.observer import Observer
from farmd.lab.plan import PORT_BY_ADDRESS, PORT_BY_CONNECTION, VIP, VIP6, VIRTUAL_MAC
from farmd.model.buckets import BUCKETS
from farmd.model.errors import Refused
from farmd.model.rules import Address
from tests.lab.traffic import curl, traffic

pytestmark = [pytest.mark.root, pytest.mark.lab]

CURL_TIMED_OUT = 28


def url_of(vip: Address, port: int, path: str = "/") -> str:
    host = f"[{vip}]" if isinstance(vip, IPv6Address) else str(vip)
    return f"http://{host}:{port}{path}"


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["IPv4", "IPv6"])
def test_every_client_address_has_one_node(calm_farm: Farm, vip: Address) -> None:
    servers = set()
    with Observer(calm_farm.lab.plan) as observer:
        for host in calm_farm.lab.plan.client_hosts:
            for address in (one.ip for one in host.addresses if one.version == vip.version):
                url = url_of(vip, PORT_BY_ADDRESS)
                answers = {curl(calm_farm, host.name, url, "--interface", str(address)) for _ in range(3)}
                assert len(answers) == 1, (address, answers)
                status, node = answers.pop()
                assert status == 0
                explained = calm_farm.lab.api("node1").explain(str(address), vip=str(vip), vport=PORT_BY_ADDRESS).data
                assert explained["owner"] == node
                assert explained["proof"] is not None
                assert explained["proof"]["agrees"]
                servers.add(node)
        assert servers == {"node1", "node2", "node3"}
        assert observer.observation().clean, observer.observation()


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["IPv4", "IPv6"])
def test_connections_of_one_client_are_spread_by_port(calm_farm: Farm, vip: Address) -> None:
    servers = {curl(calm_farm, "client1", url_of(vip, PORT_BY_CONNECTION))[1] for _ in range(40)}
    assert servers == {"node1", "node2", "node3"}


def test_shares_are_exact(calm_farm: Farm) -> None:
    buckets = calm_farm.buckets("node2")
    assert sum(buckets.values()) == BUCKETS
    assert max(buckets.values()) - min(buckets.values()) <= 1


@pytest.mark.parametrize(("vip", "family"), [(VIP, "-4"), (VIP6, "-6")], ids=["ARP", "ND"])
def test_one_node_tells_a_client_the_virtual_mac(calm_farm: Farm, vip: Address, family: str) -> None:
    teachers: set[bytes] = set()
    with Observer(calm_farm.lab.plan) as observer:
        for host in calm_farm.lab.plan.client_hosts:
            for address in (one.ip for one in host.addresses if one.version == vip.version):
                calm_farm.lab.exec(host.name, ["ip", family, "neigh", "flush", "to", str(vip)])
                asked = time.time_ns()
                ping = calm_farm.lab.exec(host.name, ["ping", "-n", "-c1", "-W2", "-I", str(address), str(vip)])
                assert ping.returncode == 0, ping
                assert "DUP" not in ping.stdout
                time.sleep(0.1)  # for the observer to see it, and any second answer too
                said = [said for at, said in observer.announcements if at >= asked and said.address == vip]
                assert [one.announced_mac for one in said] == [VIRTUAL_MAC], (address, said)
                teachers.update(one.source_mac for one in said)
        assert observer.observation().clean
    nodes = {calm_farm.lab.plan.node_of_mac(mac) for mac in teachers}
    assert nodes <= {"node1", "node2", "node3"}
    assert len(nodes) > 1


def test_what_is_not_for_a_vip_passes_untouched(calm_farm: Farm) -> None:
    for host in calm_farm.lab.plan.serving:
        for address in host.addresses:
            assert curl(calm_farm, "client1", url_of(address.ip, 80)) == (0, host.name)
            assert calm_farm.lab.exec("client1", ["ping", "-n", "-c1", "-W2", str(address.ip)]).returncode == 0


def test_a_vip_port_without_a_rule_is_silent(calm_farm: Farm) -> None:
    assert curl(calm_farm, "client1", url_of(VIP, 8080), "-m", "1")[0] == CURL_TIMED_OUT
    counted = calm_farm.lab.api("node1").counters().data["counters"]
    assert any(one["rule"] is None and one["verdict"] == "drop" and one["packets"] > 0 for one in counted)


def test_the_filter_says_how_it_is_attached(calm_farm: Farm) -> None:
    attached = calm_farm.status("node1")["filter"]
    assert [(one["interface"], one["mode"]) for one in attached] == [("eth0", "generic")]
    assert attached[0]["reason"]


def test_drain_and_return_reset_nothing(calm_farm: Farm) -> None:
    nodes = [host.name for host in calm_farm.lab.plan.serving]
    with traffic(calm_farm, connections=120) as running, streaming(calm_farm) as stream:
        before = running.tally()
        calm_farm.lab.api("node1").drain("node2")
        calm_farm.wait("node2 is drained", lambda: calm_farm.buckets("node1")["node2"] == 0)
        drained = time.time_ns()
        time.sleep(1.5)
        assert running.answered_by(drained) == {"node1", "node3"}
        during = running.tally()
        assert during.open_by_node["node2"] == before.open_by_node["node2"] > 0
        members = {one["name"]: one for one in calm_farm.status("node1")["members"]}
        assert members["node2"]["state"] == "draining"
        assert members["node2"]["held_connections"] is not None
        kept = during.open_by_node["node2"] + on_node(calm_farm, stream, "node2")
        calm_farm.wait("the count is exact", lambda: calm_farm.connections("node1")["node2"] == kept)
        calm_farm.lab.api("node3").ready("node2")
        calm_farm.wait_serving(nodes)
        time.sleep(1.5)
        after = running.tally().since(before)
        assert after.whole, after
        assert after.requests > 500
        assert stream.poll() is None


def test_re_weight_resets_nothing(calm_farm: Farm) -> None:
    with traffic(calm_farm, connections=120) as running:
        before = running.tally()
        calm_farm.lab.api("node2").set_weight("node1", 50)
        calm_farm.wait("node1 has a fifth", lambda: abs(calm_farm.buckets("node3")["node1"] - BUCKETS // 5) <= 1)
        time.sleep(1.5)
        calm_farm.lab.api("node2").set_weight("node1", 100)
        calm_farm.wait("node1 has a third", lambda: calm_farm.buckets("node3")["node1"] >= BUCKETS // 3)
        time.sleep(1.5)
        after = running.tally().since(before)
        assert after.whole, after


def test_the_last_serving_node_is_not_drained(calm_farm: Farm) -> None:
    api = calm_farm.lab.api("node1")
    try:
        for node in ("node1", "node2"):
            api.drain(node)
            calm_farm.wait(f"{node} is drained", lambda node=node: calm_farm.buckets("node1")[node] == 0)  # type: ignore[misc]
        with pytest.raises(Refused):
            api.drain("node3")
    finally:
        for node in ("node1", "node2"):
            api.ready(node)
        calm_farm.wait_serving(["node1", "node2", "node3"])


class streaming:  # noqa: N801 - used as a context manager
    """A download of `/stream` that drips for as long as it is open."""

    def __init__(self, farm: Farm) -> None:
        argv = ["curl", "-sS", "-o", "/dev/null", url_of(VIP, PORT_BY_CONNECTION, "/stream")]
        self._argv = farm.lab.command("client1", argv)

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(self._argv)
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def on_node(farm: Farm, stream: subprocess.Popen[bytes], node: str) -> int:
    """1 if `stream` is served by `node`, else 0."""
    done = farm.lab.exec(node, ["ss", "-Htn", "state", "established", f"( sport = :{PORT_BY_CONNECTION} )"])
    local = farm.lab.exec("client1", ["ss", "-Htnp", "state", "established"])
    ports = {line.split()[2] for line in local.stdout.splitlines() if f"pid={stream.pid}," in line}
    return int(any(line.split()[3] in ports for line in done.stdout.splitlines()))
