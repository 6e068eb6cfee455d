# SPDX-License-Identifier: Apache-2.0
"""The filter as a program of this machine: against its oracle, under sanitizers, and fuzzed. The short form;
`make fuzz` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.build import Kind, build
from tests.native.campaign import campaign, report
from tests.native.fuzz import coverage, fuzz, lines_covered
from tests.native.judge import Judge
from tests.native.oracle import OWN, Oracle
from tests.native.packets import Generator
from tests.native.worlds import NODES, WORLDS

FUZZED_S = 10
LINES_COVERED = 95.0
"""Per cent. What is left are bounds that the verifier wants and no frame can reach."""


def test_the_filter_agrees_with_its_oracle() -> None:
    tally = campaign(build(Kind.JUDGE), 30_000, seed=2)

    assert not tally.differences, report(tally)
    assert len(tally.reasons) == 28, report(tally)  # every reason there is, and none
    assert len(tally.buckets) > 8_000


def test_no_decision_depends_on_what_was_never_written() -> None:
    tally = campaign(build(Kind.JUDGE_MEMORY), 7_500, seed=3)

    assert not tally.differences, report(tally)


def test_no_input_breaks_a_rule(tmp_path: Path) -> None:
    fuzzed = fuzz(FUZZED_S, corpus=tmp_path)

    assert not fuzzed.broken, fuzzed.broken
    table = coverage(tmp_path)
    print(table)
    assert lines_covered(table) >= LINES_COVERED, table


@pytest.mark.parametrize("farm", range(len(WORLDS)))
def test_the_oracle_notices(farm: int) -> None:
    """A filter with one other bucket, and one that thinks the lease is over, would be found out."""
    world = WORLDS[farm]
    oracle, generator = Oracle(world), Generator(world, "notices")
    oracle.planes = [bytes([OWN]) * 4096] * 16
    arrivals = [generator.arrival() for _ in range(500)]
    with Judge(build(Kind.JUDGE)) as judge:
        judge.configure(world.table)
        judge.macs(NODES)
        judge.lease(True)
        for group in range(16):
            judge.planes(group, bytes([OWN]) * 4095 + bytes(1))
        told = judge.judge(arrivals)
        judge.lease(False)
        closed = judge.judge(arrivals)
    expected = [oracle.judge(arrival) for arrival in arrivals]
    assert {each for each, other in zip(expected, told, strict=True) if each != other} == {
        each for each in expected if each.bucket == 4095
    }
    assert sum(each != other for each, other in zip(expected, closed, strict=True)) > 250
