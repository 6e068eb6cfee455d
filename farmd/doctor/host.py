# SPDX-License-Identifier: Apache-2.0
"""Rules about the server and its kernel. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from farmd.doctor.facts import HostFacts
from farmd.doctor.finding import Finding, fail, ok, warn

OLDEST_KERNEL = (6, 1)
NEEDED = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_PERFMON": 38, "CAP_BPF": 39}
"""Capabilities without which farmd cannot work, and their numbers."""
_BPFFS = Path("/sys/fs/bpf")
_CLOCK_STOPS = ("kvm-clock", "xen", "hyperv_clocksource_tsc_page", "hyperv_clocksource_msr")
_CLOCK_SLOW = ("acpi_pm", "hpet", "jiffies", "refined-jiffies")


def judge(facts: HostFacts, pin_dir: Path) -> Iterator[Finding]:
    """Every finding about the host."""
    yield kernel(facts)
    yield jit(facts)
    yield btf(facts)
    yield capabilities(facts)
    yield program(facts)
    yield bpffs(facts, pin_dir)
    yield clock(facts)
    yield realtime(facts)
    yield memory_lock(facts)


def judge_witness(facts: HostFacts) -> Iterator[Finding]:
    """The findings that concern a witness, which only votes."""
    yield clock(facts)
    yield realtime(facts)
    yield memory_lock(facts)


def kernel(facts: HostFacts) -> Finding:
    """The filter needs what 6.1 brought."""
    match = re.match(r"(\d+)\.(\d+)", facts.release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    oldest = ".".join(map(str, OLDEST_KERNEL))
    if version < OLDEST_KERNEL:
        return fail("kernel", f"Linux {facts.release} is older than {oldest}", f"Boot Linux {oldest} or newer")
    return ok("kernel", f"Linux {facts.release}")


def jit(facts: HostFacts) -> Finding:
    """Interpreted, a packet costs several times as much."""
    if facts.jit == 0:
        return warn("bpf-jit", "BPF programs are interpreted", "Set net.core.bpf_jit_enable=1 in /etc/sysctl.d")
    if facts.jit is None:
        return ok("bpf-jit", "whether BPF programs are compiled does not show in this network namespace")
    return ok("bpf-jit", "BPF programs are compiled")


def btf(facts: HostFacts) -> Finding:
    """The filter's maps are described by BTF."""
    if not facts.btf:
        return fail(
            "kernel-btf", "the kernel publishes no types (BTF)", "Boot a kernel with CONFIG_DEBUG_INFO_BTF, as Debian's"
        )
    return ok("kernel-btf", "the kernel publishes its types (BTF)")


def capabilities(facts: HostFacts) -> Finding:
    """What farmd would lack if it ran as the doctor does."""
    missing = [name for name, number in NEEDED.items() if not facts.capabilities >> number & 1]
    if missing:
        return fail("capabilities", f"this process lacks {', '.join(missing)}", "Run it, and farmd, as root")
    return ok("capabilities", f"this process has {', '.join(NEEDED)}")


def program(facts: HostFacts) -> Finding:
    """The kernel's verifier has the last word on the filter."""
    if facts.object_refusal is not None:
        return fail("filter-loads", facts.object_refusal, facts.object_advice)
    return ok("filter-loads", "the kernel accepts the filter (loaded and let go, not attached)")


def bpffs(facts: HostFacts, pin_dir: Path) -> Finding:
    """Pins outlive the daemon only on a bpffs; farmd mounts the usual one itself."""
    if facts.bpffs_at is not None:
        return ok("bpffs", f"pins go to {pin_dir}, on the bpffs at {facts.bpffs_at}")
    if pin_dir.is_relative_to(_BPFFS):
        return ok("bpffs", f"no bpffs is mounted at {_BPFFS} yet; farmd mounts it when it starts")
    return fail("bpffs", f"{pin_dir} is on no bpffs", f"Set `pin_dir` in farm.toml to a folder below {_BPFFS}")


def clock(facts: HostFacts) -> Finding:
    """The lease counts on a clock that goes on while the machine is paused, and is read many times a second."""
    if facts.clock_source is None:
        return warn("clock-source", "the kernel does not tell its clock source", "Check that /sys is mounted")
    if facts.clock_source in _CLOCK_STOPS:
        return warn(
            "clock-source",
            f"{facts.clock_source} stands still while the hypervisor pauses this guest, and with it the lease",
            "Boot with clocksource=tsc if the host's TSC is stable, and do not pause or live-migrate nodes that serve",
        )
    if facts.clock_source in _CLOCK_SLOW:
        return warn("clock-source", f"{facts.clock_source} is slow to read", "Find out from dmesg why tsc was refused")
    return ok("clock-source", facts.clock_source)


def realtime(facts: HostFacts) -> Finding:
    """Under normal scheduling a loaded machine wakes the engine up to a tenth of a second late."""
    if facts.realtime_refusal is not None:
        return warn(
            "real-time",
            f"real-time scheduling is refused ({facts.realtime_refusal}), so heartbeats may be late under load",
            "Grant CAP_SYS_NICE, and real-time bandwidth to the control group (cpu.rt_runtime_us on cgroup v1)",
        )
    return ok("real-time", "the engine may run under SCHED_RR")


def memory_lock(facts: HostFacts) -> Finding:
    """A page fault to a slow disk is as long as a lease."""
    if facts.memory_lock_refusal is not None:
        return warn(
            "memory-lock",
            f"locking memory is refused ({facts.memory_lock_refusal}), so swapping may delay heartbeats",
            "Grant CAP_IPC_LOCK, or set LimitMEMLOCK=infinity in farmd's unit",
        )
    return ok("memory-lock", "the engine may lock its memory")
