# SPDX-License-Identifier: Apache-2.0
"""The two clocks of the daemon: BOOTTIME for everything that is safe or not, UTC for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta


def boot_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds: monotonic, and it goes on during a suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def suspended_ns() -> int:
    """How long this machine has been suspended since boot; a jump means that jiffies stood still meanwhile."""
    return boot_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def utc_text(at: datetime | None = None) -> str:
    """RFC 3339 in UTC with milliseconds, for JSON."""
    moment = datetime.now(UTC) if at is None else at
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_of_boot_ns(at_boot_ns: int) -> str:
    """The UTC text of a BOOTTIME instant of this boot."""
    return utc_text(datetime.now(UTC) - timedelta(microseconds=(boot_ns() - at_boot_ns) / 1000))
