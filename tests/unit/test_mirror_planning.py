# SPDX-License-Identifier: Apache-2.0
"""Configuration, plan and pace of a mirror: pure values and functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import pytest

from farmd.mirror.config import Directory, MirrorPolicy, Pace, checked
from farmd.mirror.pace import LEARN_AFTER, Bucket, Controller
from farmd.mirror.planning import Plan, Progress, Step, eta_s, plan
from farmd.mirror.zones import BLOCK_BYTES, ZONE_BYTES, Cover, Kind, Line, Mark, TreeMark, Zone

MIB = 1 << 20
DATA = Directory(PurePosixPath("/srv/data"))
GOOD = MirrorPolicy("db", (DATA,))


def _cover(*lines: Line) -> Cover:
    cover = Cover()
    cover.apply(lines)
    return cover


# ---- configuration ----


def test_a_good_configuration_has_no_fault() -> None:
    assert checked(GOOD) == ()


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (replace(GOOD, name="a b"), "name"),
        (replace(GOOD, directories=()), "directories"),
        (replace(GOOD, directories=(Directory(PurePosixPath("data")),)), "directories[0]"),
        (replace(GOOD, directories=(DATA, Directory(PurePosixPath("/srv/data/db")))), "directories[1]"),
        (
            replace(GOOD, directories=(replace(DATA, not_replicated=(PurePosixPath("../x"),)),)),
            "directories[0].not_replicated",
        ),
        (
            replace(GOOD, directories=(replace(DATA, not_replicated_patterns=("(",)),)),
            "directories[0].not_replicated_patterns",
        ),
        (replace(GOOD, hold_timeout_s=1.0), "hold_timeout_s"),
        (replace(GOOD, pace=Pace(ceiling_bytes_s=1)), "pace.ceiling_bytes_s"),
        (replace(GOOD, hot_zones=4), "hot_zones"),
    ],
)
def test_each_fault_is_named(config: MirrorPolicy, key: str) -> None:
    assert [fault.key for fault in checked(config)] == [key]


def test_all_faults_are_named_at_once() -> None:
    assert len(checked(replace(GOOD, name="", max_lag_s=0, directories=()))) == 3


def test_what_is_not_replicated() -> None:
    directory = replace(
        DATA, not_replicated=(PurePosixPath("tmp"),), not_replicated_patterns=(r".*\.log", r"cache/[0-9]+")
    )

    assert not directory.replicates(b"tmp")
    assert not directory.replicates(b"tmp/a/b")
    assert directory.replicates(b"tmpfile")
    assert not directory.replicates(b"deep/down/x.log")
    assert not directory.replicates(b"new\nline.log")
    assert directory.replicates(b"x.log.gz")
    assert not directory.replicates(b"cache/17")
    assert directory.replicates(b"cache/17/x")
    assert directory.replicates(b"\xff\xfe")


# ---- plan ----

FILE = Zone(Kind.DATA, b"f", 0)


def test_a_plan_is_the_sum_of_both_journals_in_order() -> None:
    mine = _cover(Mark(FILE, 0b1, False), Mark(Zone(Kind.ENTRIES, b"z"), 1, False))
    theirs = _cover(Mark(FILE, 0b10, False), Mark(Zone(Kind.DATA, b"a", 3), Zone(Kind.DATA, b"a").full, True))

    assert plan([mine, theirs]) == Plan(
        (
            Step(Zone(Kind.ENTRIES, b"z"), 1, False),
            Step(Zone(Kind.DATA, b"a", 3), (1 << 256) - 1, True),
            Step(FILE, 0b11, False),
        ),
        None,
    )


def test_a_zone_that_is_hot_on_either_side_is_suspect_as_a_whole() -> None:
    hot, known = _cover(Mark(FILE, FILE.full, True)), _cover(Mark(FILE, 1, False))

    assert plan([hot, known]) == plan([known, hot]) == Plan((Step(FILE, FILE.full, True),), None)


def test_a_plan_tells_how_much_it_is() -> None:
    found = plan([_cover(Mark(FILE, 0b101, False), Mark(Zone(Kind.DATA, b"g", 0), FILE.full, True))])

    assert (found.send_bytes, found.compare_bytes, found.files, found.directories) == (
        2 * BLOCK_BYTES,
        ZONE_BYTES,
        2,
        0,
    )


def test_the_walk_begins_at_the_lower_position_and_a_whole_file_needs_no_blocks() -> None:
    covers = [
        _cover(TreeMark(b"m"), Mark(Zone(Kind.WHOLE, b"f"), 1, False)),
        _cover(TreeMark(b"c"), Mark(FILE, 1, False)),
    ]

    assert plan(covers) == Plan((Step(Zone(Kind.WHOLE, b"f"), 1, False),), b"c")


# ---- pace and time left ----


@dataclass
class Server:
    """A disk in virtual time: an application's writes take `rest_ns` and more with what a resync does; in rounds."""

    controller: Controller
    rest_ns: float = 1e6
    full_bytes_s: float = 200 * MIB
    """At this rate of a resync a write takes twice as long."""
    queued_ns: float = 0.0

    def run(self, samples: int) -> list[float]:
        """The rates that the controller gave."""
        rates = []
        for _ in range(samples):
            wanted_ns = self.rest_ns * self.controller.rate_bytes_s / self.full_bytes_s
            self.queued_ns += 0.5 * (wanted_ns - self.queued_ns)  # a queue fills and empties with time
            self.controller = self.controller.sampled(self.rest_ns + self.queued_ns, None)
            rates.append(self.controller.rate_bytes_s)
        return rates

    @property
    def times(self) -> float:
        """How much longer a write takes than at rest."""
        return 1 + self.queued_ns / self.rest_ns


def test_a_resync_that_nobody_notices_goes_up_to_its_ceiling() -> None:
    controller = Controller.start(Pace(ceiling_bytes_s=200 * MIB), 1e6, 2e6)
    for _ in range(50):
        controller = controller.sampled(1.05e6, 2.1e6)

    assert controller.rate_bytes_s == 200 * MIB


@pytest.mark.parametrize("slow", [(3e6, 2e6), (1e6, 9e6), (3e6, None), (None, 9e6)])
def test_a_resync_that_slows_applications_down_gives_way_and_never_stops(
    slow: tuple[float | None, float | None],
) -> None:
    controller = Controller.start(Pace(), 1e6, 2e6)
    rates = []
    for _ in range(LEARN_AFTER):
        controller = controller.sampled(*slow)
        rates.append(controller.rate_bytes_s)

    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == Pace().floor_bytes_s
    assert "times as long" in controller.why


@pytest.mark.parametrize("slowdown", [1.5, 2.0, 3.0])
def test_a_resync_settles_where_applications_are_at_their_limit(slowdown: float) -> None:
    server = Server(Controller.start(Pace(slowdown=slowdown), 1e6, None))
    server.run(100)
    seen = []
    for _ in range(200):
        server.run(1)
        seen.append(server.times)

    assert max(seen) < slowdown * 1.25
    assert 1 + 0.6 * (slowdown - 1) < sum(seen) / 200 < slowdown


def test_what_is_usual_is_learnt_before_anything_is_fast() -> None:
    """Nobody wrote before the resync, so nobody knows what a write takes without it."""
    server = Server(Controller.start(Pace(), None, None))

    rates = server.run(LEARN_AFTER)
    assert set(rates[1:]) == {Pace().floor_bytes_s}
    server.run(200)
    assert server.controller.changes.usual_ns == pytest.approx(1e6, rel=0.1)
    assert max(server.run(100)) > 100 * MIB


def test_applications_that_became_slow_by_themselves_do_not_hold_a_resync_up_for_ever() -> None:
    server = Server(Controller.start(Pace(), 1e6, None))
    server.run(100)
    server.rest_ns = 10e6

    assert min(server.run(10)) == Pace().floor_bytes_s
    server.run(200)
    assert server.controller.changes.usual_ns == pytest.approx(10e6, rel=0.1)
    assert max(server.run(100)) > 100 * MIB


def test_a_moment_at_the_floor_teaches_nothing() -> None:
    """What was queued at a higher rate must not be taken for usual."""
    controller = Controller.start(Pace(), 1e6, None)
    for _ in range(LEARN_AFTER):
        controller = controller.sampled(50e6, None)

    assert controller.changes.usual_ns == 1e6


def test_nobody_notices_microseconds() -> None:
    controller = Controller.start(Pace(), 20e3, None)
    for _ in range(50):
        controller = controller.sampled(150e3, None)

    assert controller.limit_bytes_s == 0


def test_without_applications_there_is_nothing_to_spare() -> None:
    controller = Controller.start(Pace(ceiling_bytes_s=100 * MIB), None, None)
    for _ in range(20):
        controller = controller.sampled(None, None)

    assert controller.rate_bytes_s == 100 * MIB
    assert controller.limited(0).sampled(None, None).rate_bytes_s == 200 * MIB


def test_an_administrators_limit_holds_below_the_floor_too() -> None:
    controller = Controller.start(Pace(), 1e6, None).limited(MIB)
    assert controller.limit_bytes_s == MIB
    for _ in range(20):
        controller = controller.sampled(9e6, None)
    assert controller.limit_bytes_s == MIB


def test_the_bucket_lets_through_what_the_rate_allows() -> None:
    bucket, now_ns, sent = Bucket(0), 0, 0
    while now_ns < 10_000_000_000:
        bucket = bucket.filled(now_ns, 10 * MIB)
        if bucket.wait_ns(10 * MIB) == 0:
            bucket, sent = bucket.taken(MIB), sent + MIB
        now_ns += max(bucket.wait_ns(10 * MIB), 1_000_000)

    assert 98 * MIB <= sent <= 104 * MIB


def test_the_time_left_comes_from_what_was_seen() -> None:
    progress = Progress(sent_bytes=100 * MIB, left_bytes=300 * MIB, compare_left_bytes=0, since_ns=0)

    assert eta_s(progress, 10_000_000_000, 1, 1) == 30.0
    assert eta_s(progress, 1_000_000_000, 50 * MIB, 1) == 6.0
    assert eta_s(replace(progress, left_bytes=0), 10_000_000_000, 1, 1) == 0.0
    assert eta_s(replace(progress, sent_bytes=0), 10_000_000_000, 0, 1) is None
    assert eta_s(replace(progress, compare_left_bytes=1000 * MIB), 10_000_000_000, 1, 10 * MIB) == 100.0
