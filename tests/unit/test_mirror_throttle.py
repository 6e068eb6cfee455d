# SPDX-License-Identifier: Apache-2.0
"""The throttle's shell: counters of the data path in, rates out; and what a promotion tells of its time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from farmd.mirror import commands as do
from farmd.mirror.config import Pace
from farmd.mirror.orders import Demote, Promote
from farmd.mirrord import throttle
from farmd.mirrord.throttle import Throttle
from farmd.mirrord.took import Took
from farmd.model.errors import Refused
from farmd.model.mirrorfile import Directory, MirrorConfig

FLOOR = Pace().floor_bytes_s


@dataclass
class Work:
    """A resync that notes what it was told."""

    gives_way: bool = True
    ceiling_bytes_s: int = 0
    rates: list[int] = field(default_factory=list)

    async def pace(self, rate_bytes_s: int) -> None:
        self.rates.append(rate_bytes_s)


@dataclass
class Node:
    """A data path that says what writes take; each look sees a little more, so that somebody writes."""

    work: Work = field(default_factory=Work)
    write_us: int = 1000
    looks: int = 0
    writes: bool = True
    goal: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def stats(self) -> dict[str, Any]:
        self.looks += 1
        if self.looks >= self.goal:
            self.reached.set()
        return {"write_us": self.write_us + (self.looks % 2 if self.writes else 0), "sync_us": 0}


def _config(slowdown: float = 2.0) -> MirrorConfig:
    return MirrorConfig("m", "ab" * 16, 1, (Directory("/srv"),), "h:1", "h:2", slowdown=slowdown)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "TICK_S", 0.0)
    monkeypatch.setattr(throttle, "IDLE_S", 0.0)


async def _until(node: Node, looks: int) -> None:
    node.goal = node.looks + looks
    node.reached.clear()
    await node.reached.wait()


def test_a_resync_gives_way_and_goes_on_when_nobody_writes() -> None:
    async def run() -> None:
        node = Node(Work(gives_way=False))
        governor = Throttle(_config(), node.stats, node.work)
        task = asyncio.create_task(governor.run())
        await _until(node, 5)
        assert (node.work.rates, governor.shown()) == ([], None)

        node.work.gives_way, node.write_us = True, 9000
        await _until(node, 10)
        assert min(node.work.rates) == FLOOR
        shown = governor.shown()
        assert shown is not None
        assert "times as long" in shown["why"]

        node.writes = False
        await _until(node, 20)
        assert node.work.rates[-1] == 0, "it is limited though nobody writes"

        node.work.ceiling_bytes_s = 5 << 20
        await _until(node, 3)
        assert node.work.rates[-1] == 5 << 20

        node.work.gives_way = False
        told = await _settled(node)
        await _until(node, 5)
        assert (len(node.work.rates), governor.shown()) == (told, None)
        task.cancel()

    asyncio.run(run())


async def _settled(node: Node) -> int:
    await _until(node, 2)
    return len(node.work.rates)


def test_it_can_be_switched_off() -> None:
    node = Node()
    asyncio.run(Throttle(_config(0), node.stats, node.work).run())
    assert (node.looks, node.work.rates) == (0, [])


def test_a_promotion_tells_where_its_time_went() -> None:
    idle = Took()
    with idle.part(do.StartAccepting):
        pass  # no promotion is under way
    idle.begin(Demote())
    idle.end(Demote(), None)
    assert idle.last is None

    took = Took()
    order = Promote()
    took.begin(order)
    for command in (do.Persist, do.Persist, do.StartAccepting, do.Say):
        with took.part(command):
            pass
    took.end(order, None)
    assert took.last is not None
    assert set(took.last) == {"total", "record", "mount"}

    told = took.last
    took.begin(order)
    took.end(order, Refused("promote", "this copy is stale", "Promote the other"))
    assert took.last == told
