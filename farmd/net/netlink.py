# SPDX-License-Identifier: Apache-2.0
"""One netlink conversation, with refusals in our words. The only module that touches pyroute2."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from farmd.model.errors import KernelError

_T = TypeVar("_T")


def talk(subject: str, work: Callable[[Any], _T]) -> _T:
    """What `work` returns, given a pyroute2 `IPRoute` of this thread's network namespace.

    A refusal that `work` lets through becomes a KernelError about `subject`. pyroute2 brings its own event loop, which
    cannot run inside another: then the conversation gets a thread of its own, and the caller waits the milliseconds.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _talk(subject, work)
    with ThreadPoolExecutor(1, "netlink") as pool:
        return pool.submit(_talk, subject, work).result()


def _talk(subject: str, work: Callable[[Any], _T]) -> _T:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            return work(route)
    except NetlinkError as error:
        raise refused(subject, int(error.code)) from error
    except OSError as error:
        raise refused(subject, error.errno or 0) from error


def refused(subject: str, code: int) -> KernelError:
    """The kernel's errno as a KernelError about `subject`."""
    if code in (errno.EPERM, errno.EACCES):
        return KernelError(subject, "the kernel does not permit it", "Run as root, or with CAP_NET_ADMIN.")
    if code == errno.ENODEV:
        return KernelError(subject, "the interface is gone", "See `ip link` for the interfaces that exist.")
    return KernelError(subject, f"the kernel answered: {os.strerror(code).lower()}", "See `dmesg` for more.")


def attempt(call: Callable[[], object], expected: set[int]) -> int:
    """Makes a netlink call; 0 if it went through, or the kernel's errno if it is one of `expected`."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        call()
    except NetlinkError as error:
        if int(error.code) not in expected:
            raise
        return int(error.code)
    return 0
