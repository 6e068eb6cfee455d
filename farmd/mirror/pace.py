# SPDX-License-Identifier: Apache-2.0
"""How fast a resync may go: as fast as applications do not notice.

The controller sees the latency of applications' syncs, once in a while, and answers with a rate. What they took before
the resync is the measure; as long as they take at most `slowdown` more, the rate rises by a tenth; above that it falls
by a third. It never leaves floor and ceiling. DRBD's dynamic resync controller aims at the same with a fill target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from farmd.mirror.config import Pace

RISE, FALL = 1.1, 2 / 3
START_BYTES_S = 64 << 20
MEMORY = 0.2
"""Weight of a new sample in the smoothed latency."""


@dataclass(frozen=True, slots=True)
class Controller:
    """The state of the controller; each event gives the next one. Latencies in nanoseconds."""

    pace: Pace
    rate_bytes_s: float
    usual_ns: float | None
    """What a sync takes without a resync; None: no application synced, nothing to be spared."""
    now_ns: float | None = None

    @classmethod
    def start(cls, pace: Pace, usual_ns: float | None) -> Controller:
        """A resync begins."""
        return cls(pace, _within(pace, START_BYTES_S), usual_ns)

    def sampled(self, latency_ns: float | None) -> Controller:
        """The mean latency of the syncs since the last sample; None if there were none."""
        if latency_ns is None:
            return replace(self, rate_bytes_s=_within(self.pace, self.rate_bytes_s * RISE), now_ns=None)
        usual = latency_ns if self.usual_ns is None else self.usual_ns
        smoothed = latency_ns if self.now_ns is None else self.now_ns + MEMORY * (latency_ns - self.now_ns)
        noticed = smoothed > usual * (1 + self.pace.slowdown)
        rate = self.rate_bytes_s * (FALL if noticed else RISE)
        return replace(self, rate_bytes_s=_within(self.pace, rate), usual_ns=usual, now_ns=smoothed)


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


def _within(pace: Pace, rate: float) -> float:
    highest = pace.ceiling_bytes_s or math.inf
    return max(float(pace.floor_bytes_s), min(rate, highest))
