# SPDX-License-Identifier: Apache-2.0
"""Delivery external: HAProxy in front asks the health URLs and believes them; farmd filters nothing."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from farmd.dataplane.kernel import xdp_presence
from farmd.lab import netns
from farmd.lab.farm import Farm
from farmd.lab.netns import Part
from farmd.lab.plan import PORT_BY_ADDRESS, PORT_BY_CONNECTION, VIP, VIP6
from farmd.model.config import Delivery
from farmd.model.rules import Address
from farmd.net import interfaces
from tests.lab.balanced import health, requests, used_by_balancer
from tests.lab.conftest import MakeFarm
from tests.lab.traffic import PATIENCE_S, curl

pytestmark = [pytest.mark.root, pytest.mark.lab]

NODES = {"node1", "node2", "node3"}


@pytest.fixture
def balanced(make_farm: MakeFarm) -> Farm:
    """Three nodes behind HAProxy, all of them in use."""
    farm = make_farm(delivery=Delivery.EXTERNAL)
    wait_used(farm, NODES)
    return farm


def wait_used(farm: Farm, nodes: set[str]) -> None:
    farm.wait(f"HAProxy uses {sorted(nodes)}", lambda: used_by_balancer(farm) == nodes, seconds=PATIENCE_S)


def test_traffic_reaches_every_node_without_a_filter(balanced: Farm) -> None:
    for vip in (VIP, VIP6):
        host = f"[{vip}]" if vip.version == 6 else str(vip)
        answers = [curl(balanced, "client1", f"http://{host}:{PORT_BY_CONNECTION}/") for _ in range(9)]
        assert {status for status, _ in answers} == {0}
        assert {node for _, node in answers} == NODES
    for node in NODES:
        assert health(balanced, node) == (200, f"{node} takes new clients")
        assert health(balanced, node, f"/health/rule/{VIP}:80/tcp") == (200, f"{node} takes new clients")
        assert health(balanced, node, "/health/rule/no-such-rule")[0] == 404
        namespace = balanced.lab.plan.host(node).namespace
        (eth0,) = netns.in_namespace(namespace, lambda: interfaces.facts(["eth0"]))
        assert not netns.in_namespace(namespace, lambda eth0=eth0: xdp_presence(eth0.ifindex)).any  # type: ignore[misc]
        assert str(VIP) not in balanced.lab.exec(node, ["ip", "address"]).stdout
        assert not (balanced.lab.plan.pins / node).exists()
    status = balanced.status("node1")
    assert (status["delivery"], status["filter"]) == ("external", [])
    explained = balanced.lab.api("node1").explain("10.77.0.201", vip=str(VIP), vport=80).data
    assert (explained["owner"], explained["proof"]) == (None, None)
    assert "a load balancer outside decides" in explained["why"]


@pytest.mark.parametrize(("vip", "port"), [(VIP, PORT_BY_CONNECTION), (VIP6, PORT_BY_ADDRESS)], ids=["v4", "v6"])
def test_a_drained_node_gets_no_new_client_and_no_request_fails(balanced: Farm, vip: Address, port: int) -> None:
    with requests(balanced, vip, port) as seen:
        balanced.wait("somebody answers", lambda: bool(seen.nodes(0)), seconds=PATIENCE_S)
        drained = sorted(seen.nodes(0))[0]
        balanced.lab.api("node1").drain(drained)
        wait_used(balanced, NODES - {drained})
        assert health(balanced, drained) == (503, f"{drained} is drained")
        out = time.monotonic()
        time.sleep(1)
        assert drained not in seen.nodes(out)
        balanced.lab.api("node1").ready(drained)
        wait_used(balanced, NODES)
        back = time.monotonic()
        balanced.wait("it answers again", lambda: drained in seen.nodes(back), seconds=PATIENCE_S)
    assert len(seen.made) > 50
    assert seen.failed() == 0


def test_a_drain_waits_for_the_last_connection(balanced: Farm) -> None:
    url = f"http://{VIP}:{PORT_BY_CONNECTION}/stream"
    argv = balanced.lab.command("client1", ["curl", "-sS", "-o", "/dev/null", url])
    streams = [subprocess.Popen(argv) for _ in NODES]
    try:
        balanced.wait("node2 holds one", lambda: balanced.connections("node2")["node2"] == 1)
        balanced.lab.api("node1").drain("node2")
        wait_used(balanced, NODES - {"node2"})

        def state() -> str:
            return next(one["state"] for one in balanced.status("node1")["members"] if one["name"] == "node2")

        time.sleep(2)
        assert state() == "draining"
        assert [stream.poll() for stream in streams] == [None] * len(streams)
        for stream in streams:
            stream.terminate()
        balanced.wait("node2 is drained", lambda: state() == "drained")
    finally:
        for stream in streams:
            stream.kill()
            stream.wait()


@pytest.mark.parametrize(
    ("harm", "heal", "why"),
    [
        pytest.param(lambda lab: lab.kill("node2"), lambda lab: lab.start("node2"), "refused", id="farmd-killed"),
        pytest.param(
            lambda lab: lab.freeze("node2", [Part.ENGINE]),
            lambda lab: lab.thaw("node2", [Part.ENGINE]),
            "the membership engine on node2 does not answer",
            id="engine-frozen",
        ),
        pytest.param(
            lambda lab: [
                lab.cut(*pair) for other in ("node1", "node3") for pair in ((other, "node2"), ("node2", other))
            ],
            lambda lab: lab.heal(),
            "node2 has no lease",
            id="no-quorum",
        ),
    ],
)
def test_a_node_that_cannot_prove_its_right_is_out(
    balanced: Farm, harm: Callable[[object], None], heal: Callable[[object], None], why: str
) -> None:
    with requests(balanced, VIP, PORT_BY_CONNECTION) as seen:
        harm(balanced.lab)
        wait_used(balanced, {"node1", "node3"})
        status, text = health(balanced, "node2")
        assert status in (0, 503)
        assert why in text
        out = time.monotonic()
        time.sleep(1)
        assert seen.nodes(out) == {"node1", "node3"}
        heal(balanced.lab)
        wait_used(balanced, NODES)
    assert len(seen.made) > 50
    assert seen.failed() == 0  # its nginx served what came meanwhile


def nginx_of(namespace: str) -> list[netns.Process]:
    return [process for process in netns.processes(namespace) if process.part is Part.NGINX]


def test_a_service_that_ended_takes_its_node_out(balanced: Farm) -> None:
    namespace = balanced.lab.plan.host("node3").namespace
    with requests(balanced, VIP, PORT_BY_CONNECTION) as seen:
        for process in nginx_of(namespace):
            netns.send_signal(namespace, process, signal.SIGKILL)
        balanced.wait("nginx is gone", lambda: not nginx_of(namespace), seconds=PATIENCE_S)
        gone = time.monotonic()  # what it was answering when it was killed is lost: no farm can bring that back
        wait_used(balanced, {"node1", "node2"})
        assert health(balanced, "node3") == (503, "rule web4-80: nothing on node3 listens on tcp port 80")
        balanced.lab.start("node3")
        wait_used(balanced, NODES)
    assert len(seen.since(gone)) > 10
    assert seen.failed(gone) == 0  # HAProxy tries another node when a connection is refused


def test_a_lost_link_takes_its_node_out(balanced: Farm) -> None:
    with requests(balanced, VIP, PORT_BY_CONNECTION) as seen:
        balanced.lab.link_down("node1")
        wait_used(balanced, {"node2", "node3"})
        out = time.monotonic()
        balanced.wait("the others answer", lambda: seen.nodes(out) == {"node2", "node3"}, seconds=PATIENCE_S)
        assert seen.failed(out) == 0
        balanced.lab.link_up("node1")
        wait_used(balanced, NODES)
        back = time.monotonic()
        balanced.wait("it answers again", lambda: "node1" in seen.nodes(back), seconds=PATIENCE_S)
    assert seen.failed(out) == 0


def test_a_reload_is_noticed_by_no_health_check(balanced: Farm) -> None:
    answers, end = [], threading.Event()

    def ask() -> None:
        while not end.is_set():
            answers.append(health(balanced, "node2", timeout_s=60))  # who asks in between waits for the new program
            end.wait(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(3):
            last = balanced.last_event("node2")
            balanced.lab.api("node2").reload()
            balanced.wait("it is back", lambda last=last: has_taken_over(balanced, "node2", last))  # type: ignore[misc]
    finally:
        end.set()
        thread.join()
    assert len(answers) >= 3
    assert set(answers) == {(200, "node2 takes new clients")}


def test_changing_to_a_filter_and_back(balanced: Farm) -> None:
    """Node by node is not meant to work in between; each node on its own must end up clean."""
    path = balanced.lab.plan.home(balanced.lab.plan.host("node1")) / "farm.toml"
    external = path.read_text()
    path.write_text(external.replace('delivery = "external"', 'delivery = "flood"'))
    balanced.lab.api("node1").reload()
    balanced.wait("the filter is on", lambda: bool(balanced.status("node1")["filter"]))
    assert f"{VIP}/32" in balanced.lab.exec("node1", ["ip", "address", "show", "lo"]).stdout
    path.write_text(external)
    balanced.lab.api("node1").reload()
    balanced.wait("the filter is off", lambda: not balanced.status("node1")["filter"])
    assert f"{VIP}/32" not in balanced.lab.exec("node1", ["ip", "address", "show", "lo"]).stdout
    assert "xdp" not in balanced.lab.exec("node1", ["ip", "link", "show", "eth0"]).stdout
    balanced.wait("it is healthy again", lambda: health(balanced, "node1")[0] == 200, seconds=PATIENCE_S)


def has_taken_over(farm: Farm, node: str, after: int) -> bool:
    return bool(farm.first_event(node, "engine.found", after=after))
