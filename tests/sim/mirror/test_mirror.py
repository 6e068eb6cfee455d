# SPDX-License-Identifier: Apache-2.0
"""Mirror histories in short; `python -m bench.mirror_model --mutants` is the long form."""

from __future__ import annotations

import pytest

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
    outcomes = [ride(seed, aimed=True) for seed in range(100)]

    assert [(each.seed, each.violation or each.stuck) for each in outcomes if each.violation or each.stuck] == []


def test_a_seed_is_a_pair_and_its_fate() -> None:
    assert ride(7) == ride(7)


REGRESSIONS = {
    8615: "a Hello from a target that had ignored ENTER took its deadline away",
    10648: "the model did not switch a stopped node on again",
    16426: "the model waited for a handover whose connection had broken",
    21716: "blocks sent by the walk of the tree were taken for tracked ones after it had settled",
}


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_once_went_wrong_stays_right(seed: int) -> None:
    outcome = ride(seed)

    assert (outcome.violation, outcome.stuck) == (None, None), REGRESSIONS[seed]
