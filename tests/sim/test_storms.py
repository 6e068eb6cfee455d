# SPDX-License-Identifier: Apache-2.0
"""Fault storms in short: no bucket at two nodes, and every farm heals. `python -m bench.simulate` is the long form."""

from __future__ import annotations

import pytest

from tests.sim.storm import draw_farm, ride

BATCH = 25


@pytest.mark.parametrize("batch", range(8))
def test_no_bucket_is_served_twice_and_every_farm_heals(batch: int) -> None:
    outcomes = [ride(seed, draw_farm(seed, wire=False)) for seed in range(batch * BATCH, (batch + 1) * BATCH)]
    assert [outcome.seed for outcome in outcomes if outcome.violation] == []
    assert [outcome.seed for outcome in outcomes if outcome.stuck] == []
    assert all(outcome.formed and outcome.calm == 1.0 for outcome in outcomes), "safety of a farm that never formed"
    assert sum(outcome.storm for outcome in outcomes) / BATCH > 0.25


def test_the_same_over_real_datagrams() -> None:
    for seed in range(1000, 1010):
        outcome = ride(seed, draw_farm(seed, wire=True))
        assert (outcome.violation, outcome.stuck) == (None, None), seed


def test_a_seed_is_a_farm_and_its_fate() -> None:
    assert ride(7) == ride(7)


REGRESSIONS = {
    1766: "a voter asked for ever with a ballot that another had outbid under the same counter",
    150: "formation: a voter that had reserved its own ballot could not adopt the view it fetched, and asked for ever",
}


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_once_went_wrong_stays_right(seed: int) -> None:
    outcome = ride(seed, draw_farm(seed, wire=False))
    assert (outcome.violation, outcome.stuck) == (None, None), REGRESSIONS[seed]
