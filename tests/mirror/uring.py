# SPDX-License-Identifier: Apache-2.0
"""The kernel's switch for FUSE over io_uring, which is one for the whole machine.

With FARMD_MIRROR_URING=1 in the environment all tests of the mirror run over io_uring, else only those that ask for it:

    FARMD_MIRROR_URING=1 .venv/bin/pytest tests/mirror/test_nodes.py tests/mirror/test_nodes_modes.py
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SWITCH = Path("/sys/module/fuse/parameters/enable_uring")
_USERS = Path("/run/farmd-test-uring")
"""Locked by all who have it on; says how it was before the first of them."""
WANTED = os.environ.get("FARMD_MIRROR_URING", "") == "1"


@contextmanager
def switched_on() -> Iterator[bool]:
    """On, whoever else wants it; the last puts it back. False: this kernel has none (6.14 is the first)."""
    if not SWITCH.exists():
        yield False
        return
    with _USERS.open("a+") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        users.seek(0)
        if not users.read():
            users.write(SWITCH.read_text())
            users.flush()
        SWITCH.write_text("Y")
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield True
        finally:
            _leave(users.fileno())


def _leave(users: int) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another one uses it
    SWITCH.write_text(os.pread(users, 16, 0).decode())
    os.ftruncate(users, 0)
