# SPDX-License-Identifier: Apache-2.0
"""The short form of `python -m tests.mirror.campaign`: a few kills under every database, and the negative control."""

from __future__ import annotations

import math
import os
import queue
import random

import pytest

from tests.mirror.campaign import Part, parts
from tests.mirror.killing import Tally
from tests.mirror.servers import DATABASES

pytestmark = [pytest.mark.root, pytest.mark.lab, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("FARMD_MIRROR_KILLS", "2"))
"""Under each database."""
SEED = int(os.environ.get("FARMD_MIRROR_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


def run(database: str, kills: int, control: bool = False) -> Tally:
    part = Part(1, database, kills, SEED)
    part.run(control, math.inf, queue.Queue())
    assert not part.failed, f"seed {SEED}: {part.failed}"
    assert part.tally.kills.total() == kills
    return part.tally


@pytest.mark.parametrize("database", DATABASES)
def test_no_acknowledged_commit_is_lost(database: str) -> None:
    tally = run(database, KILLS)
    assert tally.acknowledged > 0
    assert (tally.lost, tally.gaps) == (0, 0), f"seed {SEED}: {tally}"


def test_commits_are_lost_when_fsync_does_not_wait() -> None:
    """Otherwise the test above could not see any loss."""
    assert run("sqlite", 2, control=True).lost > 0


def test_the_kills_are_shared_out_and_each_database_gets_its_part() -> None:
    shares = parts(list(DATABASES), 1001, SEED, jobs=4)
    assert sum(part.kills for part in shares) == 1001
    assert max(part.kills for part in shares) <= 50
    assert len({part.seed for part in shares}) == len(shares)
    assert {part.database for part in shares[: len(DATABASES)]} == set(DATABASES)
    assert [part.kills for part in parts(["sqlite"], 3, SEED, jobs=4)] == [3]
    assert [part.kills for part in parts(["sqlite"], 8, SEED, jobs=4)] == [2, 2, 2, 2]
