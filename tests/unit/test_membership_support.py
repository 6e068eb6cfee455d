# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of promises, leases and hold-downs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from farmd.membership.flap import HoldDown
from farmd.membership.settings import NEVER_NS
from farmd.membership.support import Lease, Promises
from farmd.model.config import TIMINGS, Timing
from farmd.model.nodes import BootId, NodeId
from farmd.model.view import Ballot

N0, N1, N2 = NodeId(0), NodeId(1), NodeId(2)
OLD, NEW = Ballot(1, N0, BootId(1)), Ballot(2, N0, BootId(1))
X, Y = BootId(10), BootId(11)


def nobody_moved(node: NodeId, boot: BootId) -> bool:
    return False


@settings(derandomize=True)
@given(
    st.sampled_from(sorted(TIMINGS)), st.floats(-0.01, 0.01), st.floats(-0.01, 0.01), st.integers(0, 10**12)
)  # fmt: skip
def test_a_promise_outlasts_the_lease_on_any_two_clocks(name: str, holder: float, voter: float, sent_ns: int) -> None:
    timing = TIMINGS[name]
    lease_over = sent_ns + timing.lease_ns / (1 + holder)
    promise_over = sent_ns + timing.promise_ns / (1 + voter)
    assert promise_over >= lease_over


def test_a_promise_blocks_a_newer_view_until_it_is_over() -> None:
    promises = Promises(500)
    promises.give(0, N1, X, OLD)
    assert promises.blocking(499, NEW, nobody_moved) == 500
    assert promises.blocking(500, NEW, nobody_moved) == NEVER_NS
    assert promises.until(N1) == NEVER_NS


def test_a_promise_does_not_block_its_own_view() -> None:
    promises = Promises(500)
    promises.give(0, N1, X, OLD)
    assert promises.blocking(1, OLD, nobody_moved) == NEVER_NS


def test_a_holder_that_adopted_the_new_view_does_not_block_it() -> None:
    promises = Promises(500)
    promises.give(0, N1, X, OLD)
    assert promises.blocking(1, NEW, lambda node, boot: (node, boot) == (N1, X)) == NEVER_NS


def test_another_incarnation_does_not_release_a_promise() -> None:
    promises = Promises(500)
    promises.give(0, N1, X, OLD)
    promises.give(100, N1, Y, OLD)
    assert promises.blocking(101, NEW, lambda node, boot: boot == Y) == 500
    promises.forget(N1, Y)
    assert promises.until(N1) == 500


def test_remaining_times_are_rounded_up() -> None:
    promises = Promises(5_000)
    promises.give(0, N2, X, OLD)
    promises.give(1_500, N1, X, OLD)
    assert promises.remaining(1_500) == ((N1, 6), (N2, 4))
    assert promises.remaining(5_000) == ((N1, 2),)


def test_a_lease_runs_from_the_sending_of_what_a_majority_echoed() -> None:
    lease = Lease(500, majority=2)
    for seq, at in enumerate((0, 100, 200)):
        lease.sending(seq, at)
    assert not lease.echoed(210, N0, 2, clear=True)
    assert lease.echoed(220, N1, 1, clear=True)
    assert lease.deadline_ns == 600, "the majority has echoed what was sent at 100"
    assert lease.echoed(230, N1, 2, clear=True)
    assert lease.deadline_ns == 700


def test_echoes_that_are_unclear_unknown_or_late_extend_nothing() -> None:
    lease = Lease(500, majority=1)
    lease.sending(1, 0)
    assert not lease.echoed(10, N0, 1, clear=False)
    assert not lease.echoed(10, N0, 99, clear=True)
    assert not lease.echoed(500, N0, 1, clear=True)
    assert lease.deadline_ns == 0


def test_a_new_view_keeps_the_deadline_but_not_the_echoes() -> None:
    lease = Lease(500, majority=2)
    lease.sending(1, 0)
    lease.sending(2, 100)
    lease.echoed(1, N0, 1, clear=True)
    lease.echoed(1, N1, 1, clear=True)
    assert lease.proven
    lease.new_view()
    assert (lease.deadline_ns, lease.proven) == (500, False)
    assert not lease.echoed(110, N0, 2, clear=True), "one voter under the new view is no majority"
    assert lease.echoed(110, N1, 2, clear=True)
    assert (lease.deadline_ns, lease.proven) == (600, True)


def test_hold_down_doubles_with_every_failure_and_is_forgiven_in_the_end() -> None:
    hold_down = HoldDown(Timing(100, 500, hold_down_ns=3, hold_down_max_ns=20))
    assert hold_down.needed_ns(0, N1) == 3
    waits = []
    for _ in range(5):
        hold_down.failed(0, N1)
        waits.append(hold_down.needed_ns(0, N1))
    assert waits == [3, 6, 12, 20, 20]
    assert hold_down.needed_ns(201, N1) == 3
    assert hold_down.needed_ns(0, N2) == 3
