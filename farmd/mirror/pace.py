# SPDX-License-Identifier: Apache-2.0
"""How fast a resync may go: as fast as applications hardly notice.

The controller sees a few times a second what changes and syncs of applications take, and answers with a rate. What they
take without a resync is the measure. As long as they take at most `slowdown` times as long, the rate rises by a tenth;
above that it is halved. It never leaves floor and ceiling, so a resync always ends.

What is usual is learnt before the resync, and again whenever the rate has been at its floor for a while: applications
that have more to do meanwhile are slow by themselves, and a resync that waits for them to be as before would wait for
ever. DRBD's dynamic resync controller aims at the same with a fill target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from farmd.mirror.config import Pace

RISE, FALL, RISE_IDLE = 1.1, 0.5, 2.0
START_BYTES_S = 64 << 20
ROOF_BYTES_S = 1 << 30
"""Without a ceiling: from here on nothing is limited. A rate that only grew would take too long to fall."""
MEMORY = 0.5
"""Weight of a new sample in the smoothed latency."""
LEARN = 0.2
"""Weight of a sample that is faster than usual in what is usual."""
LEARN_AFTER = 8
"""Samples at the floor before one tells what is usual: what was queued at a higher rate is gone."""
TOLERANCE_NS = 200_000
"""Nobody notices less, however fast the usual write is."""


@dataclass(frozen=True, slots=True)
class Latency:
    """What one kind of operation takes, in nanoseconds: usually, and now. None: not known, and nobody does it."""

    usual_ns: float | None = None
    now_ns: float | None = None

    def sampled(self, ns: float | None, *, learns: bool) -> Latency:
        """The mean since the last sample. `learns`: the resync hardly does anything now."""
        if ns is None:
            return replace(self, now_ns=None)
        now = ns if self.now_ns is None else self.now_ns + MEMORY * (ns - self.now_ns)
        usual = self.usual_ns
        if learns:
            usual = now
        elif usual is not None and now < usual:
            usual += LEARN * (now - usual)
        return Latency(usual, now)

    @property
    def times(self) -> float:
        """How many times as long as usual it takes; 1 if nobody notices, infinite if nobody knows."""
        if self.now_ns is None:
            return 1.0
        if self.usual_ns is None:
            return math.inf
        return 1.0 if self.now_ns <= self.usual_ns + TOLERANCE_NS else self.now_ns / self.usual_ns


@dataclass(frozen=True, slots=True)
class Controller:
    """The state of the controller; each event gives the next one."""

    pace: Pace
    rate_bytes_s: float
    changes: Latency
    syncs: Latency
    at_floor: int = 0
    """Samples in a row with the rate at its floor."""
    why: str = "it begins"

    @classmethod
    def start(cls, pace: Pace, changes_ns: float | None, syncs_ns: float | None) -> Controller:
        """A resync begins. What both take without one; None: no application did that."""
        return cls(pace, _within(pace, START_BYTES_S), Latency(changes_ns), Latency(syncs_ns))

    def sampled(self, changes_ns: float | None, syncs_ns: float | None) -> Controller:
        """The mean latencies since the last sample; None if there were none."""
        learns = self.at_floor >= LEARN_AFTER
        changes, syncs = self.changes.sampled(changes_ns, learns=learns), self.syncs.sampled(syncs_ns, learns=learns)
        times = max(changes.times, syncs.times)
        if changes_ns is None and syncs_ns is None:
            rate, why = self.rate_bytes_s * RISE_IDLE, "nobody writes"
        elif times == math.inf:
            rate, why = 0.0, "finding out what writes take without it"
        elif times > self.pace.slowdown:
            rate, why = self.rate_bytes_s * FALL, f"writes take {times:.1f} times as long as without it"
        else:
            rate, why = self.rate_bytes_s * RISE, "writes are hardly slower than without it"
        rate = _within(self.pace, rate)
        at_floor = self.at_floor + 1 if rate == _floor(self.pace) else 0
        return Controller(self.pace, rate, changes, syncs, at_floor, why)

    def limited(self, ceiling_bytes_s: int) -> Controller:
        """The administrator changes the ceiling; 0: none."""
        pace = replace(self.pace, ceiling_bytes_s=ceiling_bytes_s)
        return replace(self, pace=pace, rate_bytes_s=_within(pace, self.rate_bytes_s))

    @property
    def limit_bytes_s(self) -> int:
        """What to send at most; 0: no limit."""
        return 0 if self.rate_bytes_s >= ROOF_BYTES_S else math.ceil(self.rate_bytes_s)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket in bytes: what a rate allows over time, with at most `burst_s` of it saved up."""

    at_ns: int
    tokens: float = 0.0
    burst_s: float = 0.1

    def filled(self, now_ns: int, rate_bytes_s: float) -> Bucket:
        """Time has passed."""
        earned = rate_bytes_s * max(now_ns - self.at_ns, 0) / 1e9
        return replace(self, at_ns=now_ns, tokens=min(self.tokens + earned, rate_bytes_s * self.burst_s))

    def taken(self, length: int) -> Bucket:
        """`length` bytes were sent; a debt is paid before the next ones."""
        return replace(self, tokens=self.tokens - length)

    def wait_ns(self, rate_bytes_s: float) -> int:
        """How long until something may be sent; 0: now."""
        return 0 if self.tokens >= 0 else math.ceil(-self.tokens * 1e9 / rate_bytes_s)


def _floor(pace: Pace) -> float:
    return float(min(pace.floor_bytes_s, pace.ceiling_bytes_s or math.inf))


def _within(pace: Pace, rate: float) -> float:
    return max(_floor(pace), min(rate, float(pace.ceiling_bytes_s or ROOF_BYTES_S)))
