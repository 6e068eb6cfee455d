# SPDX-License-Identifier: Apache-2.0
"""How fast a lost node's buckets are served again in calm weather."""

from __future__ import annotations

import pytest

from farmd.model.config import Timing
from farmd.model.nodes import NodeId
from tests.sim.calm import formed, wait
from tests.sim.takeover import Loss, takeover_ns
from tests.sim.world import MS, SIM_FAST, SIM_TIMING, Farm


@pytest.mark.parametrize("timing", [SIM_TIMING, SIM_FAST], ids=["100/500", "50/300"])
@pytest.mark.parametrize("loss", [Loss.POWER, Loss.LINK, Loss.MUTE])
def test_takeover_waits_for_the_promise_and_for_nothing_else(timing: Timing, loss: Loss) -> None:
    times = sorted(takeover_ns(seed, timing, loss, 3, seed % 3) for seed in range(12))
    assert times[-1] <= timing.promise_ns + 10 * MS
    assert times[len(times) // 2] <= timing.promise_ns


@pytest.mark.parametrize("timing", [SIM_TIMING, SIM_FAST], ids=["100/500", "50/300"])
def test_a_deaf_node_is_replaced_too(timing: Timing) -> None:
    for seed in range(6):
        assert takeover_ns(seed, timing, Loss.DEAF, 3, seed % 3) <= 2 * timing.promise_ns


def test_losing_two_of_five_at_once_costs_one_takeover() -> None:

    world = formed(Farm(5))
    epoch = world.hosts[NodeId(2)].node.status(0).view.epoch  # type: ignore[union-attr]
    world.power_off(NodeId(0))
    wait(world, 30 * MS)
    world.power_off(NodeId(4))
    wait(world, world.farm.timing.promise_ns + 10 * MS)
    assert world.served() == 1.0
    status = world.hosts[NodeId(2)].node.status(0)  # type: ignore[union-attr]
    assert status.view.members == {1, 2, 3}
    assert status.view.epoch <= epoch + 2
