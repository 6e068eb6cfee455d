# SPDX-License-Identifier: Apache-2.0
"""A new build, a changed farm.toml, planned moves, all under load: nothing is lost where nothing moves, and nobody
answers twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from farmd.lab import netns
from farmd.lab.farm import Farm
from farmd.lab.netns import Part
from farmd.lab.plan import VIP
from tests.lab.conftest import MakeFarm
from tests.lab.numbered import has_rule, numbered, serve_echo
from tests.lab.traffic import PATIENCE_S, curl, traffic

pytestmark = [pytest.mark.root, pytest.mark.lab]

ROOT = Path(__file__).parents[2]
NODES = ["node1", "node2", "node3"]
SECOND_VIP = "10.77.0.101"


def new_build(folder: Path, change: Callable[[Path], None]) -> Path:
    """The package built anew with a changed filter, as the next release would bring it; its place for PYTHONPATH."""
    for part in ("farmd", "ebpf", "cext"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.o", "*.so", "__pycache__"))
    change(folder / "ebpf")
    subprocess.run([sys.executable, "cext/build.py"], cwd=folder, check=True, capture_output=True)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def another_program(ebpf: Path) -> None:
    """One instruction more, and nothing else."""
    edit(ebpf / "farm.bpf.c", "return judge(ctx, ACT);", 'asm volatile("r0 = 1" ::: "r0");\n\treturn judge(ctx, ACT);')


def another_layout(ebpf: Path) -> None:
    edit(ebpf / "farm_abi.h", "FARM_ABI_VERSION = ", "FARM_ABI_VERSION = 9000 + ")


def upgrade(farm: Farm, node: str, package: Path) -> None:
    """Restart the daemon of `node` from another installation; its engine is left alone."""
    farm.lab.stop(node)
    host = farm.lab.plan.host(node)
    farm.wait("the daemon has ended", lambda: Part.DAEMON not in {one.part for one in netns.processes(host.namespace)})
    home = farm.lab.plan.home(host)
    argv = [sys.executable, "-m", "farmd.daemon", "--config", str(home / "farm.toml")]
    environment = {"PYTHONPATH": str(package), "PYTHONSAFEPATH": "1"}  # the folder we are in would come first
    netns.start_detached(host.namespace, argv, log=home / "farmd.log", environment=environment)
    farm.wait(f"{node} serves", lambda: farm.serves(node), seconds=60)


def program_tag(farm: Farm, node: str) -> str:
    (link,) = json.loads(farm.lab.exec(node, ["ip", "-j", "link", "show", "eth0"]).stdout)
    return str(link["xdp"]["prog"]["tag"])


def counted(farm: Farm, node: str) -> dict[tuple[str | None, str], int]:
    found = farm.lab.api(node).counters().data["counters"]
    return {(one["rule"], one["reason"]): one["packets"] for one in found}


def test_a_new_build_is_loaded_in_place_and_no_packet_is_lost(make_farm: MakeFarm, tmp_path: Path) -> None:
    package = new_build(tmp_path, another_program)
    farm = make_farm()
    serve_echo(farm)
    old = program_tag(farm, "node1")
    view = farm.status("node1")["view"]
    with traffic(farm) as running, numbered(farm) as stream:
        before, began = running.tally(), time.time_ns()
        for node in NODES:
            counters = counted(farm, node)
            upgrade(farm, node, package)
            assert program_tag(farm, node) != old
            assert farm.status(node)["filter"][0]["reattached"]
            after = counted(farm, node)
            assert all(after[key] >= packets for key, packets in counters.items())
            assert sum(after.values()) > sum(counters.values())
            farm.lab.api(node).reload()
            time.sleep(1)
            farm.wait("it serves", lambda node=node: farm.serves(node))  # type: ignore[misc]
        ended = time.time_ns() - 200_000_000
        seen = running.observer.observation(began, ended)
        assert seen.answered == seen.syns > 0, seen
        assert running.tally().since(before).whole
        assert farm.status("node1")["view"] == view
    assert stream.sent > 1000
    assert (stream.lost(), stream.twice()) == ([], {})
    assert set(stream.by_node()) == set(NODES)


def test_a_build_with_another_layout_takes_fresh_maps_and_nobody_answers_twice(
    make_farm: MakeFarm, tmp_path: Path
) -> None:
    package = new_build(tmp_path, another_layout)
    farm = make_farm()
    serve_echo(farm)
    with traffic(farm) as running, numbered(farm) as stream:
        before = running.tally()
        upgrade(farm, "node2", package)
        assert "began with fresh maps: the last run had layout" in farm.status("node2")["filter"][0]["reason"]
        farm.wait_serving(NODES, seconds=60)
        back = time.time_ns()
        time.sleep(1)
        assert "node2" in running.answered_by(back)
        assert running.tally().since(before).lost_except("node2") == 0
    assert stream.twice() == {}
    assert set(stream.by_node()) == set(NODES)


def test_rules_and_vips_change_under_load(make_farm: MakeFarm) -> None:
    farm = make_farm()
    serve_echo(farm)
    more = f'\n[[vip]]\naddress = "{SECOND_VIP}"\n\n[[rule]]\nname = "second"\nvip = "{SECOND_VIP}"\n'
    more += 'protocol = "tcp"\nport = 80\n'
    paths = {node: farm.lab.plan.home(farm.lab.plan.host(node)) / "farm.toml" for node in NODES}
    with traffic(farm) as running, numbered(farm) as stream:
        before, began = running.tally(), time.time_ns()
        for node, path in paths.items():
            path.write_text(path.read_text() + more)
            farm.lab.api(node).reload()
            farm.wait("the rule is there", lambda node=node: has_rule(farm, node, "second"))  # type: ignore[misc]
        farm.wait("the second VIP serves", lambda: curl(farm, "client2", f"http://{SECOND_VIP}/")[1] in NODES)
        for node, path in paths.items():
            path.write_text(path.read_text().replace(more, ""))
            farm.lab.api(node).reload()
            farm.wait("the rule is gone", lambda node=node: not has_rule(farm, node, "second"))  # type: ignore[misc]
        farm.wait("all serve", lambda: all(farm.serves(node) for node in NODES))
        ended = time.time_ns() - 200_000_000
        seen = running.observer.observation(began, ended)
        assert seen.answered == seen.syns > 0, seen
        assert running.tally().since(before).whole
        assert SECOND_VIP not in farm.lab.exec("node1", ["ip", "address", "show", "lo"]).stdout
    assert (stream.lost(), stream.twice()) == ([], {})


def test_planned_moves_answer_no_datagram_twice(make_farm: MakeFarm) -> None:
    farm = make_farm()
    serve_echo(farm)
    with traffic(farm) as running, numbered(farm) as stream:
        before = running.tally()
        for _ in range(3):
            farm.lab.api("node1").drain("node2")
            farm.wait("node2 is drained", lambda: farm.buckets("node1")["node2"] == 0)
            farm.lab.api("node1").ready("node2")
            farm.wait_serving(NODES)
            farm.lab.api("node1").set_weight("node3", 10)
            farm.wait("node3 has little", lambda: farm.buckets("node1")["node3"] < 400)
            farm.lab.api("node1").set_weight("node3", 100)
            farm.wait("node3 has a third", lambda: farm.buckets("node1")["node3"] > 1300, seconds=PATIENCE_S)
        assert running.tally().since(before).whole
    assert stream.twice() == {}
    assert len(stream.lost()) < stream.sent / 20, "release comes before acquire: only what falls between is lost"


FOREIGN = """
#include <linux/bpf.h>
__attribute__((section("xdp"), used)) int somebody_elses(struct xdp_md *ctx) { (void)ctx; return XDP_PASS; }
char _license[] __attribute__((section("license"), used)) = "GPL";
"""


@pytest.mark.parametrize("mode", ["xdpgeneric", "xdpdrv"])
def test_a_foreign_program_is_named_with_the_way_out(make_farm: MakeFarm, tmp_path: Path, mode: str) -> None:
    farm = make_farm()
    home = farm.lab.plan.home(farm.lab.plan.host("node1"))
    settings = ["--config", str(home / "farm.toml")]
    farm.lab.kill("node1")
    assert farm.lab.exec("node1", [sys.executable, "-m", "farmd.daemon", *settings, "--purge"]).returncode == 0
    (tmp_path / "foreign.c").write_text(FOREIGN)
    compiler = ["clang", "-O2", "-g", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu"]
    subprocess.run([*compiler, "-c", "foreign.c", "-o", "foreign.o"], cwd=tmp_path, check=True)
    attach = ["ip", "link", "set", "dev", "eth0", mode, "obj", str(tmp_path / "foreign.o"), "sec", "xdp"]
    done = farm.lab.exec("node1", attach)
    assert done.returncode == 0, done
    (link,) = json.loads(farm.lab.exec("node1", ["ip", "-j", "link", "show", "eth0"]).stdout)
    number = link["xdp"]["prog"]["id"]
    way_out = f"ip link set dev eth0 {mode} off"

    refused = farm.lab.exec("node1", [sys.executable, "-m", "farmd.daemon", *settings])
    assert refused.returncode == 1
    assert f"somebody_elses (id {number})" in refused.stdout + refused.stderr
    assert way_out in refused.stdout + refused.stderr
    assert str(VIP) not in farm.lab.exec("node1", ["ip", "address", "show", "lo"]).stdout
    doctor = farm.lab.exec("node1", [sys.executable, "-m", "farmd.cli", "doctor", "--json", *settings])
    (finding,) = [one for one in json.loads(doctor.stdout)["data"]["findings"] if one["check"] == "foreign-xdp"]
    assert finding["level"] == "fail"
    assert f"somebody_elses (id {number}," in finding["text"]
    assert way_out in finding["fix"]

    assert farm.lab.exec("node1", way_out.split()).returncode == 0
    farm.lab.start("node1")
    farm.wait_serving(NODES, seconds=60)
