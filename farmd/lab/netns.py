# SPDX-License-Identifier: Apache-2.0
"""Namespaces and the processes in them: run, find, signal, open sockets inside.

Nothing is remembered about processes: whatever runs in a lab's namespace belongs to the lab, which stays true when the
process that built the lab has died.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from farmd.model.errors import FarmError, KernelError, NotPermitted

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_PACKAGES = {"ip": "iproute2", "nft": "nftables", "nginx": "nginx", "nsenter": "util-linux", "setsid": "util-linux"}


class Part(StrEnum):
    """What a process of a lab is."""

    DAEMON = "daemon"
    ENGINE = "engine"
    NGINX = "nginx"
    HAPROXY = "haproxy"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Process:
    """A process that was seen in a namespace."""

    pid: int
    part: Part
    stopped: bool


def require_tools(extra: Mapping[str, str] | None = None) -> None:
    """Raise unless we are root and the tools of a lab are installed (`extra`: more commands with their packages)."""
    if os.geteuid() != 0:
        raise NotPermitted("lab", "network namespaces need root", "Run the same command with sudo")
    packages = _PACKAGES | dict(extra or {})
    missing = sorted(tool for tool in packages if shutil.which(tool) is None)
    if missing:
        names = " ".join(sorted({packages[tool] for tool in missing}))
        raise FarmError("lab", f"missing here: {', '.join(missing)}", f"Install with: apt-get install {names}")


def namespaces() -> list[str]:
    """The names of all network namespaces of this machine."""
    return sorted(os.listdir(NETNS_DIR)) if NETNS_DIR.is_dir() else []


def enter(namespace: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in a namespace. Only the network changes: the caller's bpffs stays visible."""
    return ["nsenter", f"--net={NETNS_DIR / namespace}", "--", *argv]


def tool(argv: Sequence[str], *, subject: str, text: str | None = None) -> str:
    """Run a tool with `text` as its input; its output. KernelError with the tool's own words if it fails."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise KernelError(subject, f"`{' '.join(argv)}` failed: {words}", "Run `farmctl lab down` and try again")
    return done.stdout


def ip_batch(namespace: str, batch: str) -> None:
    """Run `ip` commands in a namespace, all in one process."""
    tool(["ip", "-n", namespace, "-batch", "-"], subject=namespace, text=batch)


def bridge_batch(namespace: str, batch: str) -> None:
    """Run `bridge` commands in a namespace, all in one process."""
    if batch:
        tool(enter(namespace, ["bridge", "-batch", "-"]), subject=namespace, text=batch)


def nft(namespace: str, rules: str) -> None:
    """Apply nft commands in a namespace, all or nothing."""
    tool(enter(namespace, ["nft", "-f", "-"]), subject=namespace, text=rules)


def in_namespace(namespace: str, action: Callable[[], T]) -> T:
    """Run `action` in a thread that lives in the namespace; sockets that it opens stay there for good."""
    results: list[T] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            _set_namespace(namespace)
            results.append(action())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name=f"in-{namespace}")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def write_sysctls(namespace: str, values: Mapping[str, str]) -> None:
    """Write settings (paths below /proc/sys) of a namespace, in order."""

    def work() -> None:
        for path, value in values.items():
            Path("/proc/sys", path).write_text(value)

    in_namespace(namespace, work)


def start_detached(
    namespace: str, argv: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Start a process in a namespace, in a session of its own, not our child. Its output is appended to `log`.

    When this returns the process exists and is in its namespace, so that whoever clears the namespace finds it.
    """
    with log.open("ab") as output:
        done = subprocess.run(
            enter(namespace, ["setsid", "--fork", *argv]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(os.environ) | dict(environment or {}),
            check=False,
        )
    if done.returncode != 0:
        raise KernelError(namespace, f"`{argv[0]}` did not start", f"Read {log}")


def processes(namespace: str) -> list[Process]:
    """What runs in a namespace now, by pid; not ourselves."""
    try:
        inode = (NETNS_DIR / namespace).stat().st_ino
    except FileNotFoundError:
        return []
    return [
        found
        for pid in _pids()
        if pid != os.getpid() and _inode(pid) == inode and (found := _describe(pid)) is not None
    ]


def send_signal(namespace: str, process: Process, number: signal.Signals) -> bool:
    """Signal a process if it still lives in that namespace; whether it did. The pid cannot be another's by now."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # The handle pins the process; only now is it safe to ask whose namespace it is in.
        if _inode(process.pid) != (NETNS_DIR / namespace).stat().st_ino:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    else:
        if number == signal.SIGKILL:
            _wait_end(handle, seconds=5)
        return True
    finally:
        os.close(handle)


def clear(namespace: str, *, seconds: float = 10) -> None:
    """Kill everything in a namespace; returns when nothing is left. FarmError if that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while found := processes(namespace):
        for process in found:
            send_signal(namespace, process, signal.SIGKILL)
        if time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in found)
            raise FarmError(namespace, f"processes {pids} do not end", "They hang in the kernel; look at dmesg")


def delete_namespace(namespace: str) -> None:
    """Remove an (empty) namespace and with it its links, if it is there."""
    if (NETNS_DIR / namespace).exists():
        tool(["ip", "netns", "del", namespace], subject=namespace)


def _set_namespace(namespace: str) -> None:
    with (NETNS_DIR / namespace).open("rb") as handle:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise KernelError(namespace, f"cannot enter it: {os.strerror(number)}", "Run as root")


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _inode(pid: int) -> int | None:
    """The number of a process's network namespace; None if the process is gone."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    return None


def _describe(pid: int) -> Process | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None
    if state in "ZX":
        return None
    text = [word.decode(errors="replace") for word in words]
    part = Part.OTHER
    if "farmd.daemon.engine" in text:
        part = Part.ENGINE
    elif "farmd.daemon" in text:
        part = Part.DAEMON
    elif text[0].startswith("nginx") or text[0].endswith("/nginx"):
        part = Part.NGINX
    elif text[0].endswith("haproxy"):
        part = Part.HAPROXY
    return Process(pid, part, stopped=state == "T")


def _wait_end(handle: int, *, seconds: float) -> None:
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    poller.poll(seconds * 1000)
