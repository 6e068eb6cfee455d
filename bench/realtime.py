# SPDX-License-Identifier: Apache-2.0
"""A CPU to oneself, as far as the machine allows, for benches that count nanoseconds."""

from __future__ import annotations

import os


def take_cpu() -> str:
    """Put this process, and the threads it will start, before all ordinary ones; which scheduling it has then."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return "SCHED_OTHER"
    return "SCHED_FIFO"


def stay_on_one_cpu() -> int:
    """Keep this process, and the threads it will start, on the last CPU that it may use; which that is."""
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    return cpu
