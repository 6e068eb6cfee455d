# SPDX-License-Identifier: Apache-2.0
"""Gathers `HostFacts`. Loads the filter once to hear what the verifier says, and attaches nothing."""

from __future__ import annotations

import ctypes
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from farmd.dataplane.filter import OBJECT
from farmd.dataplane.kernel import load
from farmd.doctor.facts import HostFacts
from farmd.model.errors import KernelError
from farmd.net import sysctl

_BTF = Path("/sys/kernel/btf/vmlinux")
_CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_PROGRAMS = ("farm_filter", "farm_explain", "farm_renew")
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_PRIORITY = 10
"""As the engine's."""


def ask(pin_dir: Path) -> HostFacts:
    """Facts about this machine."""
    refusal, advice = _try_object()
    realtime, memory = _try_engine_rights()
    return HostFacts(
        release=platform.release(),
        jit=sysctl.read("core/bpf_jit_enable"),
        btf=_BTF.exists(),
        capabilities=_capabilities(),
        object_refusal=refusal,
        object_advice=advice,
        bpffs_at=bpffs_of(pin_dir, _lines(Path("/proc/self/mountinfo"))),
        clock_source=next(iter(_lines(_CLOCK)), None),
        realtime_refusal=realtime,
        memory_lock_refusal=memory,
    )


def bpffs_of(folder: Path, mounts: Iterable[str]) -> str | None:
    """The mount point of the bpffs that `folder` is on, by the lines of /proc/self/mountinfo; None if it is on none."""
    points: dict[Path, str] = {}
    for line in mounts:
        words = line.split()
        points[Path(words[4])] = words[words.index("-") + 1]  # a later mount covers an earlier one
    point = next((place for place in (folder, *folder.parents) if place in points), None)
    return str(point) if point is not None and points[point] == "bpf" else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _capabilities() -> int:
    lines = dict(line.split(":", 1) for line in _lines(Path("/proc/self/status")) if ":" in line)
    return int(lines.get("CapEff", "0").strip(), 16)


def _try_object() -> tuple[str | None, str]:
    try:
        load(OBJECT, {}, _PROGRAMS).close()
    except KernelError as error:
        return f"{error.subject}: {error.cause}", error.next_step
    return None, ""


def _try_engine_rights() -> tuple[str | None, str | None]:
    """Whether a process may be what the engine wants to be; tried in a child, so that we stay what we are."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, json.dumps(_become_engine()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    realtime, memory = json.loads(answer)
    return realtime, memory


def _become_engine() -> list[str | None]:
    refusals: list[str | None] = [None, None]
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    except OSError as error:
        refusals[0] = error.strerror
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        refusals[1] = os.strerror(ctypes.get_errno())
    return refusals
