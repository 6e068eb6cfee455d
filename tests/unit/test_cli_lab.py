# SPDX-License-Identifier: Apache-2.0
"""`farmctl lab` and `demo`: every verb reaches the lab with the right arguments. The lab has its own tests."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from farmd.cli.main import run
from farmd.lab import demo
from farmd.lab import lab as lab_module
from farmd.lab.lab import HostStatus, Lab, LabStatus
from farmd.lab.netns import Part, Process
from farmd.lab.plan import LabPlan
from farmd.model.config import Profile
from farmd.model.errors import NotFound, NotPermitted


class FakeLab:
    """Takes any call that the real Lab has, with the real signature, and writes it down."""

    calls: list[tuple[Any, ...]]

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan

    @classmethod
    def open(cls, name: str) -> FakeLab:
        if name == "none":
            raise NotFound("lab none", "there is no such lab on this machine", "Run `farmctl lab up`")
        return cls(LabPlan(name=name))

    def __getattr__(self, name: str) -> Any:
        signature = inspect.signature(getattr(Lab, name))

        def call(*arguments: Any) -> None:
            signature.bind(self, *arguments)
            FakeLab.calls.append((name, self.plan.name, *(a for a in arguments if not callable(a))))

        return call

    def status(self) -> LabStatus:
        node, _, _, client, _ = self.plan.hosts
        running = (Process(41, Part.DAEMON, True), Process(42, Part.NGINX, False))
        hosts = (HostStatus(node, True, running, ("eth0",)), HostStatus(client, True, (), ()))
        return LabStatus(self.plan, hosts, (("n1.0", "n2.0"),))

    def command(self, host: str, argv: list[str]) -> list[str]:
        return ["enter", host, *argv]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    FakeLab.calls = []
    monkeypatch.setattr(lab_module, "Lab", FakeLab)
    return FakeLab.calls


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["down"], ("down", "lab")),
        (["down", "--name", "none"], ("down", "none")),
        (["kill", "n1"], ("kill", "lab", "n1")),
        (["kill", "n1", "--daemon"], ("kill_daemon", "lab", "n1")),
        (["stop", "n1"], ("stop", "lab", "n1")),
        (["freeze", "n1", "--name", "two"], ("freeze", "two", "n1")),
        (["thaw", "n1"], ("thaw", "lab", "n1")),
        (["start", "n1"], ("start", "lab", "n1")),
        (["cut", "n1", "n2"], ("cut", "lab", "n1", "n2")),
        (["split", "n1,n2", "n3"], ("split", "lab", [["n1", "n2"], ["n3"]])),
        (["link-down", "n1"], ("link_down", "lab", "n1", 0)),
        (["link-up", "n1", "--network", "1"], ("link_up", "lab", "n1", 1)),
        (["heal"], ("heal", "lab")),
    ],
)
def test_every_fault_is_a_verb(
    calls: list[tuple[Any, ...]],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    call: tuple[Any, ...],
) -> None:
    assert run(["lab", *arguments]) == 0
    assert calls == [call]
    assert capsys.readouterr().out.count("\n") == 1
    assert run(["lab", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == {"name": call[1], "change": arguments[0]}


def test_up_makes_the_plan_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = []

    def up(self: Lab, progress: Callable[[str], None]) -> None:
        plans.append(self.plan)
        progress("farmd on node1")

    monkeypatch.setattr(Lab, "up", up)

    shape = ["--nodes", "2", "--clients", "1", "--networks", "2", "--witness", "--profile", "available"]
    assert run(["lab", "up", *shape, "--timing", "fast"]) == 0

    assert plans == [LabPlan(nodes=2, clients=1, networks=2, witness=True, profile=Profile.AVAILABLE, timing="fast")]
    output = capsys.readouterr()
    assert output.err == "farmd on node1\n"
    assert output.out.endswith("node1/api.sock status --wait\n")
    assert run(["lab", "up", "--timing", "slow"]) == 2


def test_status_of_the_lab(calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "status"]) == 0
    assert capsys.readouterr().out == (
        """\
HOST     KIND    ADDRESS      RUNS
node1    node    10.77.0.11   daemon (stopped), nginx, eth0 down
client1  client  10.77.0.201  idle
cut: n1.0 -> n2.0
"""
    )
    assert run(["lab", "status", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["cuts"] == [["n1.0", "n2.0"]]
    assert data["hosts"][0]["processes"][0] == {"pid": 41, "part": "daemon", "stopped": True}


def test_exec_hands_everything_after_the_host_to_the_command(
    calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(os, "execvp", lambda file, argv: started.append((file, argv)))

    assert run(["lab", "exec", "--name", "two", "n1", "farmctl", "status", "--watch", "--json"]) == 0

    assert started == [("enter", ["enter", "n1", "farmctl", "status", "--watch", "--json"])]


def test_a_lab_that_is_not_there_is_4(calls: list[tuple[Any, ...]]) -> None:
    assert run(["lab", "kill", "n1", "--name", "none"]) == 4


def test_the_demo_is_told_how_to_speak_and_its_code_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = []

    def broken_promise(json_output: bool) -> int:
        spoken.append(json_output)
        return 1

    monkeypatch.setattr(demo, "run", broken_promise)

    assert run(["demo"]) == 1
    assert run(["demo", "--json"]) == 1
    assert spoken == [False, True]


def test_without_root_the_demo_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(json_output: bool) -> int:
        raise NotPermitted("lab", "network namespaces need root", "Run the same command with sudo")

    monkeypatch.setattr(demo, "run", refuse)
    assert run(["demo"]) == 5
