# SPDX-License-Identifier: Apache-2.0
"""Mirror histories in short; `python -m bench.mirror_model --mutants` is the long form."""

from __future__ import annotations

import pytest

from bench.mirror_model import caught
from tests.sim.mirror.mutants import Mutant, mutated
from tests.sim.mirror.storm import ride

BATCH = 50


@pytest.mark.parametrize("batch", range(6))
def test_no_promise_is_broken_and_every_pair_recovers(batch: int) -> None:
    outcomes = [ride(seed) for seed in range(batch * BATCH, (batch + 1) * BATCH)]

    assert [(each.seed, each.violation) for each in outcomes if each.violation] == []
    assert [(each.seed, each.stuck) for each in outcomes if each.stuck] == []
    assert sum(each.served for each in outcomes) / BATCH > 0.3, "safety of a mirror that never serves"
    assert sum(each.counts["acknowledged"] for each in outcomes) > 20 * BATCH
    assert sum(each.counts["promotions"] for each in outcomes) > 2 * BATCH


def test_aimed_faults_break_nothing_either() -> None:
    outcomes = [ride(seed, aimed=True) for seed in range(120)]

    assert [(each.seed, each.violation or each.stuck) for each in outcomes if each.violation or each.stuck] == []
    assert sum(each.counts["verified"] for each in outcomes) > 10
    assert sum(each.counts["late"] for each in outcomes) > 10


def test_a_seed_is_a_pair_and_its_fate() -> None:
    assert ride(7) == ride(7)


CATCHING_SEEDS = {
    Mutant.NO_ARBITER: 6,
    Mutant.ACK_BEFORE_SWITCH: 103,
    Mutant.LOG_IGNORED: 0,
    Mutant.EVICTED_EARLY: 43,
    Mutant.STALE_COPY: 4,
    Mutant.NO_INHERITANCE: 21,
    Mutant.ALONE_BEFORE_CAS: 184,
    Mutant.CLAIM_REPLACED: 2,
    Mutant.UPTODATE_BEFORE_FLUSH: 0,
    Mutant.JOURNAL_CLEARED_EARLY: 69,
    Mutant.SETTLED_IN_CACHE: 10,
    Mutant.MARK_AFTER_WRITE: 2,
    Mutant.BITMAP_FORGETS: 1,
    Mutant.ANY_BASE: 2,
    Mutant.SYNC_NOT_AWAITED: 0,
    Mutant.OVERWRITTEN_FIRST: 7,
    Mutant.DONE_OVERTAKES: 31,
    Mutant.LATE_MESSAGES: 113,
    Mutant.OLD_FLUSH: 37,
    Mutant.CLAIM_TAKEN_UP: 24,
    Mutant.WALK_UNTRACKED: 51,
    Mutant.READING_BELIEVED: 5,
    Mutant.HANDOVER_FORGOTTEN: 59,
    Mutant.REPAIR_UNMARKED: 1,
}


@pytest.mark.parametrize("mutant", Mutant)
def test_the_mutant_is_caught(mutant: Mutant) -> None:
    seed = CATCHING_SEEDS[mutant]
    with mutated(mutant):
        assert caught(seed, mutant), f"seed {seed} no longer exposes it: run bench.mirror_model --mutants"
    assert caught(seed, None) is None, "the mirror as it is survives the same seed"
