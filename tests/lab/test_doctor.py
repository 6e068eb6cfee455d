# SPDX-License-Identifier: Apache-2.0
"""The doctor on real nodes: nothing to mend on a good one, and each thing that is broken is found and named."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from farmd.lab import netns
from farmd.lab.farm import Farm
from farmd.lab.lab import Lab
from farmd.lab.plan import VIP, VIP6, VIRTUAL_MAC, LabPlan
from tests.lab.conftest import MakeFarm, lab_name

pytestmark = [pytest.mark.root, pytest.mark.lab]

Findings = dict[str, list[dict[str, str]]]


def command(lab: Lab, node: str, *arguments: str) -> list[str]:
    config = lab.plan.home(lab.plan.host(node)) / "farm.toml"
    return lab.command(
        node, [sys.executable, "-m", "farmd.cli", "doctor", "--json", "--config", str(config), *arguments]
    )


def read(output: str) -> Findings:
    found: Findings = {}
    for finding in json.loads(output)["data"]["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return found


def doctor(lab: Lab, node: str) -> tuple[int, Findings]:
    done = subprocess.run(command(lab, node), capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout, done.stderr
    return done.returncode, read(done.stdout)


def failed(findings: Findings) -> dict[str, str]:
    return {check: each["text"] for check, found in findings.items() for each in found if each["level"] == "fail"}


@contextmanager
def changed(lab: Lab, host: str, do: str, undo: str) -> Iterator[None]:
    def run(line: str) -> None:
        done = lab.exec(host, line.split())
        assert done.returncode == 0, done.stderr

    run(do)
    try:
        yield
    finally:
        run(undo)


@contextmanager
def setting(lab: Lab, host: str, name: str, value: str) -> Iterator[None]:
    path = Path("/proc/sys/net", name)
    namespace = lab.plan.host(host).namespace
    before = netns.in_namespace(namespace, path.read_text)
    netns.write_sysctls(namespace, {f"net/{name}": value})
    try:
        yield
    finally:
        netns.write_sysctls(namespace, {f"net/{name}": before})


def test_a_good_node_has_nothing_to_mend(calm_farm: Farm) -> None:
    code, findings = doctor(calm_farm.lab, "node1")

    assert failed(findings) == {}
    assert code == 0
    assert "is held by this node's engine" in findings["port"][0]["text"]
    assert [each["text"] for each in findings["peer"]] == ["node2 is up", "node3 is up"]
    assert "carries the farm's filter" in findings["foreign-xdp"][0]["text"]
    assert "generic, because a veth" in findings["attach-mode"][0]["text"]
    assert f"{VIRTUAL_MAC.hex(':')} is in its filter" in findings["virtual-mac"][0]["text"]
    assert {each["text"] for each in findings["vip-conflict"]} == {
        f"nobody else announces {VIP}",
        f"nobody else announces {VIP6}",
    }


def test_the_text_for_people_names_the_fix(calm_farm: Farm) -> None:
    lab = calm_farm.lab
    words = [word for word in command(lab, "node1") if word != "--json"]
    with setting(lab, "node1", "ipv4/conf/eth0/arp_ignore", "0"):
        netns.write_sysctls(lab.plan.host("node1").namespace, {"net/ipv4/conf/all/arp_ignore": "0"})
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    netns.write_sysctls(lab.plan.host("node1").namespace, {"net/ipv4/conf/all/arp_ignore": "1"})

    assert done.returncode == 3
    assert "FAIL  arp-ignore" in done.stdout
    assert "-> Set net.ipv4.conf.eth0.arp_ignore=1" in done.stdout
    assert done.stderr.startswith("farmctl: node1: 1 check failed.")


def test_a_strict_reverse_path_is_a_warning(calm_farm: Farm) -> None:
    with setting(calm_farm.lab, "node2", "ipv4/conf/eth0/rp_filter", "1"):
        code, findings = doctor(calm_farm.lab, "node2")

    assert code == 0
    assert findings["rp-filter"][0]["level"] == "warn"


def test_a_virtual_mac_that_the_nic_does_not_take(calm_farm: Farm) -> None:
    entry = f"{VIRTUAL_MAC.hex(':')} dev eth0 self"
    undo = f"bridge fdb add {entry} permanent"
    with changed(calm_farm.lab, "node1", f"bridge fdb del {entry}", undo):
        code, findings = doctor(calm_farm.lab, "node1")

    assert code == 3
    assert failed(findings).keys() == {"virtual-mac"}
    assert undo in findings["virtual-mac"][0]["fix"], "the fix is what mends it"


@pytest.mark.parametrize(
    ("vip", "add"), [(str(VIP), f"{VIP}/24 dev eth0"), (str(VIP6), f"{VIP6}/64 dev eth0 nodad")], ids=["v4", "v6"]
)
def test_a_stranger_with_the_vip_is_named(calm_farm: Farm, vip: str, add: str) -> None:
    lab = calm_farm.lab
    with changed(lab, "client1", f"ip addr add {add}", f"ip addr del {add.removesuffix(' nodad')}"):
        code, findings = doctor(lab, "node1")

    assert code == 3
    stranger = lab.plan.host("client1").links[0].mac_text
    assert failed(findings) == {"vip-conflict": f"{vip} is also announced by {stranger}, which is not this farm"}


def test_a_vip_in_the_wrong_place(calm_farm: Farm) -> None:
    add = f"{VIP}/32 dev eth0"
    with changed(calm_farm.lab, "node3", f"ip addr add {add}", f"ip addr del {add}"):
        code, findings = doctor(calm_farm.lab, "node3")

    assert code == 3
    assert failed(findings)["vip-place"].startswith(f"{VIP} is configured on eth0")


def flood_test(lab: Lab, nodes: tuple[str, str]) -> dict[str, tuple[int, Findings]]:
    running = {
        node: subprocess.Popen(
            command(lab, node, "--flood-test", "--for", "6"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for node in nodes
    }
    found = {}
    for node, process in running.items():
        with process:
            output, complaints = process.communicate(timeout=60)
        assert output, complaints
        found[node] = process.returncode, read(output)
    return found


def test_a_switch_that_floods_passes_the_flooding_test(calm_farm: Farm) -> None:
    found = flood_test(calm_farm.lab, ("node1", "node2"))

    for node, other in (("node1", "node2"), ("node2", "node1")):
        code, findings = found[node]
        texts = {each["text"]: each["level"] for each in findings["flooding"]}
        assert texts[f"eth0: frames to the virtual MAC arrive from and at {other}"] == "ok"
        assert texts["eth0: nothing was heard of node3"] == "warn"
        assert code == 0


def test_a_port_that_does_not_flood_fails_it_on_both_sides(calm_farm: Farm) -> None:
    lab = calm_farm.lab
    port = lab.plan.host("node2").links[0].port

    def flood(state: str) -> None:
        argv = netns.enter(lab.plan.switch, ["bridge", "link", "set", "dev", port, "flood", state])
        netns.tool(argv, subject=port)

    flood("off")
    try:
        found = flood_test(lab, ("node1", "node2"))
    finally:
        flood("on")

    assert found["node1"][0] == found["node2"][0] == 3
    assert failed(found["node1"][1]) == {
        "flooding": "eth0: node2 gets our broadcasts, but not our frames to the virtual MAC"
    }
    assert failed(found["node2"][1]) == {
        "flooding": "eth0: broadcasts of node1 arrive, its frames to the virtual MAC do not"
    }


def test_peers_that_fail_are_told_apart(make_farm: MakeFarm) -> None:
    farm = make_farm(nodes=3, clients=1)
    farm.lab.kill("node2")
    farm.lab.kill("node3")
    farm.lab.link_down("node3")
    farm.wait("node1 misses both", lambda: states(farm) == {"node1": "up", "node2": "failed", "node3": "failed"})

    code, findings = doctor(farm.lab, "node1")
    assert code == 3
    assert [each["text"] for each in findings["peer"]] == [
        "node2 is failed although its addresses answer",
        "node3 does not answer at 10.77.0.13",
    ]
    code, findings = doctor(farm.lab, "node2")
    assert code == 3, "the daemon here is down, and the doctor works all the same"
    assert [each["level"] for each in findings["peer"]] == ["ok", "fail"]
    assert findings["port"][0]["text"].endswith("is free")


def states(farm: Farm) -> dict[str, str]:
    return {member["name"]: member["state"] for member in farm.status("node1")["members"]}


@pytest.fixture
def fresh_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A lab whose farmd has never been started: what the doctor meets before the first start."""
    lab = Lab(LabPlan(lab_name(), nodes=2, clients=1))
    monkeypatch.setattr(Lab, "_start_missing", lambda *_: None)
    lab.up()
    yield lab
    lab.down()


def test_before_the_first_start_nothing_is_wrong_that_farmd_would_set(fresh_node: Lab) -> None:
    code, findings = doctor(fresh_node, "node1")

    assert failed(findings) == {}
    assert code == 0
    assert findings["arp-ignore"][0]["text"].endswith("farmd sets 1 when it starts")
    assert findings["port"][0]["text"].endswith("is free")
    assert findings["peer"][0]["text"].startswith("node2 answers")


def test_a_foreign_program_a_taken_port_and_an_open_key_are_found(fresh_node: Lab, tmp_path: Path) -> None:
    lab, node = fresh_node, fresh_node.plan.host("node1")
    program = foreign_program(tmp_path)
    (lab.plan.home(node) / "farm.key").chmod(0o644)
    bind: Callable[[], socket.socket] = partial(taken_port, str(node.addresses[0].ip))
    with (
        changed(lab, "node1", f"ip link set dev eth0 xdpgeneric obj {program} sec xdp", "ip link set dev eth0 xdp off"),
        netns.in_namespace(node.namespace, bind),
    ):
        code, findings = doctor(lab, "node1")

    assert code == 3
    wrong = failed(findings)
    assert wrong.keys() == {"foreign-xdp", "port", "key-file"}
    assert "another XDP program: somebody_elses (id " in wrong["foreign-xdp"]
    assert "generic)" in wrong["foreign-xdp"]
    assert f"is held by {Path(sys.executable).name}" in wrong["port"]
    assert "mode 0644" in wrong["key-file"]


def taken_port(address: str) -> socket.socket:
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind((address, 4804))
    return taken


def foreign_program(folder: Path) -> Path:
    source, target = folder / "foreign.c", folder / "foreign.o"
    source.write_text('__attribute__((section("xdp"), used)) int somebody_elses(void *ctx) { return 2; }\n')
    subprocess.run(["clang", "-O2", "-g", "-target", "bpf", "-c", str(source), "-o", str(target)], check=True)
    return target


def test_a_broken_farm_toml_is_told_as_check_config_tells_it(tmp_path: Path) -> None:
    (tmp_path / "farm.toml").write_text("[farm]\n")
    done: Any = subprocess.run(
        [sys.executable, "-m", "farmd.cli", "doctor", "--config", str(tmp_path / "farm.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9
