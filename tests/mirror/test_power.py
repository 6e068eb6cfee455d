# SPDX-License-Identifier: Apache-2.0
"""Loss of power on disks with a volatile cache, below the replicated directory and the node's own records alike.

What was acknowledged as durable is there, and the journal, the generation and the record are whole: the node starts.
`FARMD_MIRROR_POWER_LOSSES=50` is longer.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.mirror.nodes import MirrorNode, TwoNodes, begin, equal
from tests.mirror.power import VolatileDisk
from tests.mirror.writing import lines, writing

pytestmark = [pytest.mark.root, pytest.mark.lab, pytest.mark.timeout(3600)]

LOSSES = int(os.environ.get("FARMD_MIRROR_POWER_LOSSES", "3"))
SEED = int(os.environ.get("FARMD_MIRROR_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
DISKS = {1: "256M", 2: "256M"}


def written_until_the_end(nodes: TwoNodes, primary: MirrorNode, *lost: MirrorNode, dice: random.Random) -> int:
    """The application writes, then the power of all of `lost` fails; how many lines were acknowledged."""
    with writing(primary) as writer:
        writer.goes_on(20)
        time.sleep(dice.uniform(0.0, 0.5))
        for node in lost:
            node.kill()
        acknowledged = writer.ends()
    for node in lost:
        node.lose_power()
    return acknowledged


def other_of(nodes: TwoNodes, node: MirrorNode) -> MirrorNode:
    return nodes.two if node is nodes.one else nodes.one


def test_the_secondary_comes_back_alone_after_both_lost_power() -> None:
    dice = random.Random(SEED)
    with TwoNodes("pwb", disks=DISKS, disk=VolatileDisk, peer_timeout_s=3.0) as nodes:
        begin(nodes)
        primary = nodes.one
        for _ in range(LOSSES):
            other = other_of(nodes, primary)
            acknowledged = written_until_the_end(nodes, primary, primary, other, dice=dice)
            other.power_on()
            other.start()
            other.ctl("promote")
            assert lines(other.data) >= acknowledged, f"seed {SEED}"
            (other.data / "ledger").unlink()
            primary.power_on()
            primary.start()
            equal(nodes, other)
            primary = other


def test_a_primary_alone_comes_back_after_it_lost_power_and_its_log_names_all_that_the_peer_lacks() -> None:
    dice = random.Random(SEED)
    with TwoNodes("pwa", disks=DISKS, disk=VolatileDisk, peer_timeout_s=3.0) as nodes:
        one, two = nodes.nodes
        begin(nodes)
        for _ in range(LOSSES):
            two.kill()
            one.wait("alone", lambda status: status["gate"] == "alone")
            acknowledged = written_until_the_end(nodes, one, one, dice=dice)
            one.power_on()
            one.start()
            one.ctl("promote")
            assert lines(one.data) >= acknowledged, f"seed {SEED}"
            two.start()
            equal(nodes, one)
            (one.data / "ledger").unlink()


def test_disks_that_ignore_flushes_lose_what_was_acknowledged() -> None:
    """Otherwise the tests above could not see any loss."""
    with TwoNodes("pwd", disks=DISKS, disk=VolatileDisk, peer_timeout_s=3.0) as nodes:
        one, two = nodes.nodes
        begin(nodes)
        for node in nodes.nodes:  # they lie from now on, not while the mirror was made
            node.ctl("stop")
            assert isinstance(node.disk, VolatileDisk)
            node.disk.unmount()
            node.disk.is_deaf = True
            node.power_on()
        for node in nodes.nodes:
            node.start()
        one.ctl("promote")
        one.wait_in_sync()
        acknowledged = written_until_the_end(nodes, one, one, two, dice=random.Random(SEED))
        two.power_on()
        two.start()
        assert "stale" in two.refused("promote")  # its record is gone too, and the arbiter knows better
        two.ctl("promote", "--accept", "stale")
        found = lines(two.data) if (two.data / "ledger").exists() else 0
        assert found < acknowledged
