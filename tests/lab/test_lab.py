# SPDX-License-Identifier: Apache-2.0
"""The lab itself: it comes and goes whole, whatever interrupts it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from farmd.cli.main import run
from farmd.lab import netns
from farmd.lab.demo import remains
from farmd.lab.lab import Lab, make_folder
from farmd.lab.netns import Part
from farmd.lab.plan import LabPlan
from farmd.model.errors import FarmError, KernelError, NotFound, NotPermitted, Refused
from tests.lab.conftest import lab_name

pytestmark = [pytest.mark.root, pytest.mark.lab]

BUILD = """
from farmd.lab.lab import Lab
from farmd.lab.plan import LabPlan
print(1, flush=True)
Lab(LabPlan({name!r})).up()
"""
HOLD = """
from farmd.lab.lab import Lab
from farmd.lab.plan import LabPlan
with Lab(LabPlan({name!r}))._alone():
    print(1, flush=True)
    input()
"""


def parts(lab: Lab, host: str) -> set[Part]:
    return {process.part for process in netns.processes(lab.plan.host(host).namespace)}


def test_up_and_down_repeat(tmp_path: Path) -> None:
    lab = Lab(LabPlan(lab_name(), nodes=2, clients=1, witness=True, networks=2))
    try:
        lab.up()
        lab.up()
        assert Part.NGINX in parts(lab, "node1")
        assert {Part.DAEMON} <= parts(lab, "witness")
        assert Part.NGINX not in parts(lab, "witness")
        assert Lab.open(lab.plan.name).plan == lab.plan
        first = {process.pid for process in netns.processes(lab.plan.host("node1").namespace)}
        lab.up()
        assert first <= {process.pid for process in netns.processes(lab.plan.host("node1").namespace)}
    finally:
        lab.down()
    lab.down()
    assert remains(lab) == []
    with pytest.raises(NotFound):
        Lab.open(lab.plan.name)


def test_two_labs_with_equal_addresses_live_side_by_side() -> None:
    labs = [Lab(LabPlan(lab_name(), nodes=1, clients=1)) for _ in range(2)]
    try:
        for lab in labs:
            lab.up()
        labs[0].down()
        assert remains(labs[0]) == []
        assert Part.NGINX in parts(labs[1], "node1")
    finally:
        for lab in labs:
            lab.down()


def test_another_shape_under_the_same_name_is_refused() -> None:
    lab = Lab(LabPlan(lab_name(), nodes=1, clients=1))
    try:
        lab.up()
        with pytest.raises(Refused, match="another shape"):
            Lab(LabPlan(lab.plan.name, nodes=2, clients=1)).up()
    finally:
        lab.down()


def test_a_failure_on_the_way_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(LabPlan(lab_name(), nodes=2, clients=1))

    def refuse(_namespace: str, _rules: str) -> None:
        raise KernelError("switch", "no nftables today", "Try tomorrow")

    monkeypatch.setattr(netns, "nft", refuse)
    with pytest.raises(KernelError, match="no nftables today"):
        lab.up()
    assert remains(lab) == []


@pytest.mark.parametrize("after_s", [0.02, 0.06, 0.12, 0.3])
def test_down_clears_what_a_killed_builder_left(after_s: float) -> None:
    lab = Lab(LabPlan(lab_name(), nodes=3, clients=2))
    code = BUILD.format(name=lab.plan.name)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        time.sleep(after_s)
        builder.kill()
    time.sleep(0.1)  # an `ip` that it had started may still be at work
    lab.down()
    assert remains(lab) == []


@pytest.mark.parametrize("written", ["{", '{"nodes": 1}', '{"nodes": 1, "shape": "of tomorrow"}'])
def test_down_removes_a_lab_of_another_version(written: str) -> None:
    lab = Lab(LabPlan(lab_name(), nodes=1, clients=1))
    try:
        lab.up()
        (lab.plan.directory / "lab.json").write_text(written)
        assert run(["lab", "down", "--name", lab.plan.name]) == 0
        assert remains(lab) == []
    finally:
        lab.down()


def test_a_lab_may_go_while_another_comes(tmp_path: Path) -> None:
    """The last one that goes removes the folder that all share."""
    parent, over = tmp_path / "shared", threading.Event()

    def remove() -> None:
        while not over.wait(0.0002):
            with contextlib.suppress(OSError):
                parent.rmdir()

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for number in range(2000):
            folder = parent / str(number)
            make_folder(folder)
            folder.rmdir()
    finally:
        over.set()
        remover.join()


def test_only_one_builder_at_a_time() -> None:
    lab = Lab(LabPlan(lab_name(), nodes=1, clients=1))
    code = HOLD.format(name=lab.plan.name)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Refused, match="another process"):
            lab.up()
        other.kill()
    lab.down()


def test_cuts_splits_and_cables_heal() -> None:
    lab = Lab(LabPlan(lab_name(), nodes=2, clients=1, networks=2))

    def answers(source: str, target: str) -> bool:
        return lab.exec(source, ["ping", "-n", "-c1", "-W1", target]).returncode == 0

    def reaches(source: str, target: str) -> bool:
        """At last: a kernel may take seconds to see that a cable is plugged in."""
        end = time.monotonic() + 60
        while not answers(source, target):
            if time.monotonic() > end:
                return False
        return True

    try:
        lab.up()
        assert reaches("n1", "10.77.0.12")
        assert reaches("n1", "10.78.0.12")
        lab.cut("node1", "node2")
        assert [cut for cut in lab.status().cuts if cut == ("n1.0", "n2.0")]
        assert not answers("n1", "10.77.0.12")
        assert not answers("n2", "10.78.0.11"), "the answer takes the direction that is cut"
        assert reaches("c1", "10.77.0.11")
        lab.heal()
        lab.split([["node1"], ["node2", "client1", "gateway"]])
        assert not answers("n1", "10.77.0.12")
        assert not answers("n1", "10.77.0.254")
        assert reaches("c1", "10.77.0.254")
        lab.link_down("node2", network=1)
        assert next(one for one in lab.status().hosts if one.host.name == "node2").links_down == ("eth1",)
        lab.heal()
        assert reaches("n1", "10.78.0.12")
        assert reaches("n1", "10.77.0.254")
    finally:
        lab.down()


def test_a_client_runs_no_farmd_to_kill() -> None:
    lab = Lab(LabPlan(lab_name()))
    with pytest.raises(Refused, match="client"):
        lab.kill("client1")
    with pytest.raises(FarmError, match="no such host"):
        lab.kill("node9")


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotPermitted, match="root"):
        Lab(LabPlan(lab_name())).up()


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "nft" else f"/bin/{tool}")
    with pytest.raises(FarmError, match="apt-get install nftables"):
        Lab(LabPlan(lab_name())).up()


def test_a_process_is_only_signalled_in_its_namespace() -> None:
    lab = Lab(LabPlan(lab_name(), nodes=1, clients=1))
    try:
        lab.up()
        with subprocess.Popen(["sleep", "60"]) as stranger:
            seen = netns.Process(stranger.pid, Part.OTHER, stopped=False)
            assert not netns.send_signal(lab.plan.switch, seen, signal.SIGKILL)
            assert stranger.poll() is None
            stranger.kill()
    finally:
        lab.down()
