# SPDX-License-Identifier: Apache-2.0
"""What every test may rely on. A test whose needs are not met fails and says why: a skipped test proves nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
from functools import cache

import pytest

_BPF_MAP_CREATE = 0
_BPF_MAP_TYPE_ARRAY = 2
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}


def pytest_sessionstart() -> None:
    """Ctrl-C ends what tests start, also where they run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails a test that needs root or BPF where there is none, with one sentence."""
    needs_root = any(item.get_closest_marker(name) for name in ("root", "lab"))
    if needs_root and (lacking := missing_privilege()):
        pytest.fail(lacking, pytrace=False)


@cache
def missing_privilege() -> str | None:
    """Why tests marked `root` or `lab` cannot run here; None if they can."""
    if os.geteuid() != 0:
        return 'This test needs root: run `make test` as root, or pytest with -m "not root and not lab".'
    attributes = struct.pack("=IIII", _BPF_MAP_TYPE_ARRAY, 4, 4, 1).ljust(128, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return None
    fd = libc.syscall(number, _BPF_MAP_CREATE, attributes, len(attributes))
    if fd < 0:
        reason = errno.errorcode.get(ctypes.get_errno(), "an error")
        return f"This test needs BPF, and the kernel answers {reason}: run it where root has CAP_BPF and CAP_NET_ADMIN."
    os.close(fd)
    return None
