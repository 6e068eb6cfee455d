# SPDX-License-Identifier: Apache-2.0
"""Every safeguard removed is noticed. The seeds are those that `python -m bench.simulate --mutants` found first."""

from __future__ import annotations

import pytest

from bench.simulate import caught
from tests.sim.mutants import Mutant, mutated

CATCHING_SEEDS = {
    Mutant.NO_PROMISE: 10,
    Mutant.LEASE_FROM_ACK: 0,
    Mutant.NO_RESIDUAL_WAIT: 1,
    Mutant.BALLOT_REUSE: 579,
    Mutant.NO_RESTART_WAIT: 123,
    Mutant.EXTEND_BEFORE_START: 282,
    Mutant.OPEN_BEFORE_LEASE: 13,
    Mutant.PROMISE_BEFORE_RELEASE: 1175,
    Mutant.NO_TWO_WAY: 0,
}


@pytest.mark.parametrize("mutant", Mutant)
def test_the_mutant_is_caught(mutant: Mutant) -> None:
    seed = CATCHING_SEEDS[mutant]
    with mutated(mutant):
        assert caught(seed, mutant), f"seed {seed} no longer exposes it: run bench.simulate --mutants"
    assert caught(seed, None) is None, "the protocol as it is survives the same seed"
