# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for tests: each lives as long as its thread, so that none can be left behind."""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

_CLONE_NEWNET = 0x40000000

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Namespace:
    """A network namespace of its own, with lo up. What `run` calls, and the processes that this starts, are in it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "namespace")
        self.id = self._thread.submit(self._enter).result()
        # Link-local addresses are usable at once, not after a second of duplicate address detection.
        self.run(Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text, "0")
        self.ip("link set lo up")

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()

    @staticmethod
    def _enter() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "no new network namespace")
        return threading.get_native_id()

    def run(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What `call` returns in this namespace."""
        return self._thread.submit(call, *args, **kwargs).result()

    def ip(self, command: str) -> str:
        """What `ip` with these arguments prints."""
        return self.shell(f"ip {command}")

    def shell(self, command: str) -> str:
        """What a command prints in this namespace."""
        return self.run(subprocess.run, command.split(), check=True, capture_output=True, text=True).stdout

    def wire(self, name: str, other: Namespace, other_name: str) -> None:
        """A veth cable between two namespaces, both ends up. `ip` takes a thread's id where it asks for a process."""
        self.ip(f"link add {name} type veth peer name {other_name} netns {other.id}")
        self.ip(f"link set {name} up")
        other.ip(f"link set {other_name} up")
