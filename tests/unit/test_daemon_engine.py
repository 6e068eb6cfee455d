# SPDX-License-Identifier: Apache-2.0
"""The engine's shell around the core: what a suspend does to the filter. A farm of one node, on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from farmd.daemon import engine as engine_room
from farmd.daemon.engine import Engine
from farmd.daemon.transport import Transport
from farmd.membership.keys import KeyRing
from farmd.model.buckets import ALL_BUCKETS
from farmd.model.config import FarmConfig
from farmd.model.planes import CLOSED, Planes
from tests.unit import farms

pytestmark = pytest.mark.timeout(60)


class Filter:
    """The maps as a filter would read them, and whether the lease was ever closed since `watch()`."""

    def __init__(self) -> None:
        self.planes: dict[int, Planes] = {}
        self.deadline_ns = 0
        self.closings = 0

    def write(self, group: int, planes: Planes) -> None:
        self.planes[group] = planes

    def renew(self, deadline_boot_ns: int) -> None:
        self.closings += deadline_boot_ns == 0
        self.deadline_ns = deadline_boot_ns

    def accepts_everything(self) -> bool:
        return self.deadline_ns > 0 and all(planes.own == ALL_BUCKETS for planes in self.planes.values())


def alone(folder: Path) -> FarmConfig:
    farm = farms.config(folder)
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    me = replace(farm.me, addresses=(ip_address("127.0.0.1"),))
    return replace(farm, me=me, members=(me,), voters=frozenset({me.id}), port=port, interfaces=())


@asynccontextmanager
async def running(config: FarmConfig, filter_: Filter) -> AsyncIterator[None]:
    engine = Engine(config, KeyRing.new(), filter_, Transport(config))
    task = asyncio.create_task(engine.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> bool:
    for _ in range(int(timeout_s * 100)):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.mark.parametrize("slept_ms", [60, 400])
def test_a_node_that_slept_for_less_than_a_lease_serves_on(
    slept_ms: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept_ns = 0
    monkeypatch.setattr(engine_room, "go_realtime", tuple)
    monkeypatch.setattr(engine_room, "service_interfaces", lambda _: ())
    monkeypatch.setattr(engine_room, "suspended_ns", lambda: slept_ns)
    filter_ = Filter()

    async def scene() -> None:
        nonlocal slept_ns
        async with running(alone(tmp_path), filter_):
            assert await until(filter_.accepts_everything)
            filter_.closings = 0
            slept_ns = slept_ms * 1_000_000
            assert await until(lambda: filter_.closings > 0), "jiffies stood still: the lease in the kernel is too long"
            assert await until(filter_.accepts_everything), "the core never closed, so it never opens again"

    asyncio.run(scene())
    assert filter_.deadline_ns == 0
    assert set(filter_.planes.values()) == {CLOSED}
