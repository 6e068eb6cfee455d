# SPDX-License-Identifier: Apache-2.0
"""The filter that the kernel runs, compiled for BPF, against the same oracle."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from farmd.dataplane.planes import KernelPlanes
from farmd.dataplane.reasons import Verdict
from farmd.dataplane.routes import KernelRoutes
from farmd.model.config import Delivery
from farmd.model.nodes import NodeId
from farmd.model.planes import Planes
from tests.native.campaign import DIRECTED_STATES, STATES, TAKERS
from tests.native.oracle import FRESH, HELD, OWN, Oracle
from tests.native.packets import Generator
from tests.native.worlds import FARM, NODES, VIRTUAL_MAC, WORLDS
from tests.packet.rig import Rig

pytestmark = pytest.mark.root

PACKETS = 1500


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig("oracle") as made:
        yield made


def planes_of(states: bytes) -> Planes:
    """States of buckets as bit sets."""
    own, held, fresh = (sum(1 << n for n, state in enumerate(states) if state & bit) for bit in (OWN, HELD, FRESH))
    return Planes(own=own, held=held, fresh=fresh)


@pytest.mark.parametrize("farm", range(len(WORLDS)))
def test_the_kernel_agrees_with_the_oracle(rig: Rig, farm: int) -> None:
    world, rng = WORLDS[farm], random.Random(farm)
    oracle, generator = Oracle(world), Generator(world, f"kernel {farm}")
    oracle.planes = [bytes(rng.choices(DIRECTED_STATES if world.directed else STATES, k=4096)) for _ in range(16)]
    oracle.routes = [(bytes(rng.choices(TAKERS, k=4096)), bytes(rng.choices(TAKERS, k=4096))) for _ in range(16)]
    config = replace(
        rig.config,
        vips=world.vips,
        rules=world.rules,
        virtual_mac=VIRTUAL_MAC,
        drop_without_rule=world.drop_without_rule,
        delivery=Delivery.DIRECTED if world.directed else Delivery.FLOOD,
        farm=FARM,
    )
    rig.run(rig.filter.configure, config, world.key, [rig.facts])
    with closing(KernelPlanes.open(rig.pin_dir, directed=world.directed)) as control:
        for group, states in enumerate(oracle.planes):
            control.write(group, planes_of(states))
    with closing(KernelRoutes.open(rig.pin_dir)) as routes:
        for group, (owners, following) in enumerate(oracle.routes):
            routes.write(group, owners, following)
        for node, mac in NODES.items():
            routes.write_mac(0, NodeId(node), mac)
    for _ in range(PACKETS):
        arrival = generator.arrival()._replace(
            ifindex=2, socket=None, room=True
        )  # sockets: tests/packet/test_sockets.py
        expected, told = oracle.judge(arrival), rig.run(rig.filter.probe, arrival.frame)
        assert (told.verdict, told.reason, told.rule) == (expected.verdict, expected.reason, expected.rule), arrival
        assert expected.verdict is Verdict.DROP or told.frame == expected.frame, arrival
