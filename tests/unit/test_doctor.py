# SPDX-License-Identifier: Apache-2.0
"""Every rule of the doctor, on facts made up for it: what is well, what is not, and that a fix stands beside it."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from farmd.cli.doctor import render
from farmd.cli.output import Style
from farmd.doctor import farm, host, link
from farmd.doctor.facts import (
    HostFacts,
    KeyFacts,
    LinkFacts,
    PeerFacts,
    PortFacts,
    PortHolder,
    VipFacts,
    XdpProgram,
)
from farmd.doctor.finding import Finding, Level, fail, of_error, ok, worst
from farmd.model.config import AttachMode, Delivery
from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts

OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL
PINS = Path("/sys/fs/bpf/farmd")
VIRTUAL_MAC = bytes.fromhex("02fa12000001")
VIP = ip_address("192.0.2.10")
OURS = XdpProgram(7, "farm_filter", "native", ours=True)
GENERIC = replace(OURS, mode="generic")
ALL_CAPABILITIES = (1 << 41) - 1

WELL = HostFacts(
    release="6.1.0-56-amd64",
    jit=1,
    btf=True,
    capabilities=ALL_CAPABILITIES,
    object_refusal=None,
    object_advice="",
    bpffs_at="/sys/fs/bpf",
    clock_source="tsc",
    realtime_refusal=None,
    memory_lock_refusal=None,
)
NIC = LinkFacts(
    interface=InterfaceFacts("eth0", 2, bytes.fromhex("020000000001"), "", "ice", 1500),
    up=True,
    promiscuous=False,
    accepted_macs=frozenset((VIRTUAL_MAC,)),
    programs=(OURS,),
    features={"large-receive-offload": False, "rx-gro-hw": False, "rx-vlan-hw-parse": False},
    queues=8,
    cpus=8,
    settings={"arp_ignore": 1, "arp_announce": 2, "rp_filter": 2},
)


def nic(**changes: Any) -> LinkFacts:
    """The NIC with other facts; those of the interface itself by their own names."""
    own = {name: changes.pop(name) for name in ("kind", "driver", "mtu", "mac") if name in changes}
    return replace(NIC, interface=replace(NIC.interface, **own), **changes)


def assert_finding(found: Finding, level: Level, text: str) -> None:
    assert found.level == level, found
    assert text in found.text
    assert bool(found.fix) == (level is not OK), "a fix stands beside what is not well, and only there"


def levels(findings: Sequence[Finding]) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings}


def test_a_good_host_and_a_good_interface_have_nothing_to_mend() -> None:
    findings = [*host.judge(WELL, PINS), *link.judge(NIC, AttachMode.AUTO, VIRTUAL_MAC, ipv4=True)]

    assert worst(findings) is OK
    assert len(levels(findings)) == len(findings), "each check is asked once"
    assert all(finding.text and not finding.fix for finding in findings)


@pytest.mark.parametrize(
    ("changes", "check", "level", "text"),
    [
        ({"release": "5.10.0-30"}, "kernel", FAIL, "older than 6.1"),
        ({"release": "odd"}, "kernel", FAIL, "older"),
        ({"release": "6.18.44"}, "kernel", OK, "6.18.44"),
        ({"jit": 0}, "bpf-jit", WARN, "interpreted"),
        ({"jit": None}, "bpf-jit", OK, "does not show"),
        ({"btf": False}, "kernel-btf", FAIL, "no types"),
        ({"capabilities": ALL_CAPABILITIES & ~(1 << 39)}, "capabilities", FAIL, "CAP_BPF"),
        ({"capabilities": 0}, "capabilities", FAIL, "CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF"),
        (
            {"object_refusal": "farm.bpf.o: refused", "object_advice": "Boot another"},
            "filter-loads",
            FAIL,
            "farm.bpf.o: refused",
        ),
        ({"bpffs_at": None}, "bpffs", OK, "farmd mounts it"),
        ({"clock_source": "kvm-clock"}, "clock-source", WARN, "stands still"),
        ({"clock_source": "acpi_pm"}, "clock-source", WARN, "slow"),
        ({"clock_source": None}, "clock-source", WARN, "does not tell"),
        ({"clock_source": "arch_sys_counter"}, "clock-source", OK, "arch_sys_counter"),
        ({"realtime_refusal": "Operation not permitted"}, "real-time", WARN, "Operation not permitted"),
        ({"memory_lock_refusal": "Cannot allocate memory"}, "memory-lock", WARN, "Cannot allocate memory"),
    ],
)
def test_host(changes: dict[str, Any], check: str, level: Level, text: str) -> None:
    found = [finding for finding in host.judge(replace(WELL, **changes), PINS) if finding.check == check]

    assert len(found) == 1
    assert_finding(found[0], level, text)


def test_pins_must_be_on_a_bpffs() -> None:
    assert_finding(host.bpffs(replace(WELL, bpffs_at=None), Path("/var/pins")), FAIL, "on no bpffs")


def test_a_witness_is_asked_only_what_concerns_its_engine() -> None:
    assert [finding.check for finding in host.judge_witness(WELL)] == ["clock-source", "real-time", "memory-lock"]


FOREIGN = XdpProgram(9, "xdp_ddos", "generic", ours=False)


@pytest.mark.parametrize(
    ("facts", "wanted", "check", "level", "text"),
    [
        (nic(up=False), "auto", "link", FAIL, "no carrier"),
        (nic(programs=(FOREIGN,)), "auto", "foreign-xdp", FAIL, "xdp_ddos (id 9, generic)"),
        (nic(programs=()), "auto", "foreign-xdp", OK, "no XDP program"),
        (nic(programs=()), "auto", "attach-mode", OK, "native can be expected"),
        (nic(programs=(), driver="e1000e"), "auto", "attach-mode", WARN, "e1000e is not known"),
        (nic(programs=(GENERIC,)), "auto", "attach-mode", WARN, "ice refused native"),
        (nic(programs=(GENERIC,)), "generic", "attach-mode", OK, "farm.toml says so"),
        (nic(kind="veth", programs=()), "auto", "attach-mode", OK, "generic, because a veth"),
        (nic(kind="veth", programs=()), "native", "attach-mode", FAIL, "lost before the stack"),
        (nic(kind="veth"), "auto", "attach-mode", FAIL, "lost before the stack"),
        (nic(mtu=9000), "auto", "mtu", WARN, "multi-buffer"),
        (nic(mtu=9000), "generic", "mtu", OK, "9000"),
        (nic(mtu=9000, kind="veth"), "auto", "mtu", OK, "9000"),
        (
            nic(features={"large-receive-offload": True}),
            "auto",
            "receive-offloads",
            WARN,
            "large-receive-offload is on",
        ),
        (nic(features={"rx-gro-hw": True}), "auto", "receive-offloads", WARN, "rx-gro-hw is on"),
        (nic(features={}), "auto", "receive-offloads", OK, "joins no segments"),
        (nic(features={"rx-vlan-hw-parse": True}), "auto", "rx-vlan-offload", WARN, "strips VLAN tags"),
        (
            nic(features={"rx-vlan-hw-parse": True}, programs=(GENERIC,)),
            "auto",
            "rx-vlan-offload",
            OK,
            "sees VLAN tags",
        ),
        (nic(features={"rx-vlan-hw-parse": True}, programs=()), "generic", "rx-vlan-offload", OK, "sees VLAN tags"),
        (nic(queues=1), "auto", "queues", WARN, "1 receive queue for 8 CPUs"),
        (nic(queues=1, cpus=1), "auto", "queues", OK, "1 receive queues"),
        (nic(queues=None), "auto", "queues", OK, "no hardware queues"),
        (nic(mac=VIRTUAL_MAC), "auto", "virtual-mac", FAIL, "switches learn it"),
        (nic(accepted_macs=frozenset()), "auto", "virtual-mac", FAIL, "the filter sees no client"),
        (nic(accepted_macs=frozenset(), promiscuous=True), "auto", "virtual-mac", OK, "promiscuous"),
        (nic(accepted_macs=frozenset(), programs=()), "auto", "virtual-mac", OK, "when it starts"),
    ],
)
def test_link(facts: LinkFacts, wanted: str, check: str, level: Level, text: str) -> None:
    findings = link.judge(facts, AttachMode(wanted), VIRTUAL_MAC, ipv4=True)
    found = [finding for finding in findings if finding.check == check]

    assert len(found) == 1
    assert_finding(found[0], level, text)


@pytest.mark.parametrize(
    ("name", "value", "attached", "level", "text"),
    [
        ("arp_ignore", 0, True, FAIL, "answers ARP for the VIP"),
        ("arp_ignore", 0, False, OK, "farmd sets 1"),
        ("arp_ignore", 2, True, OK, "arp_ignore is 2"),
        ("arp_announce", 1, True, FAIL, "may announce the VIP"),
        ("arp_announce", 0, False, OK, "farmd sets 2"),
        ("rp_filter", 1, True, WARN, "dropped silently"),
        ("rp_filter", 1, False, OK, "the loose form"),
        ("rp_filter", None, True, OK, "rp_filter is 0"),
        ("arp_ignore", None, True, OK, "not needed here"),
    ],
)
def test_settings_are_only_wrong_once_farmd_has_set_them(
    name: str, value: int | None, attached: bool, level: Level, text: str
) -> None:
    facts = nic(settings=dict(NIC.settings) | {name: value}, programs=(OURS,) if attached else ())
    findings = link.judge(facts, AttachMode.AUTO, VIRTUAL_MAC, ipv4=True)
    found = next(finding for finding in findings if finding.check == name.replace("_", "-"))

    assert_finding(found, level, text)


def test_a_farm_without_ipv4_is_not_asked_about_arp() -> None:
    checks = levels([*link.judge(NIC, AttachMode.AUTO, VIRTUAL_MAC, ipv4=False)])

    assert not {"arp-ignore", "arp-announce", "rp-filter"} & set(checks)


@pytest.mark.parametrize(
    ("on", "attached", "level", "text"),
    [
        (("lo",), True, OK, "is on lo"),
        ((), False, OK, "comes to lo with farmd"),
        ((), True, FAIL, "is not on lo"),
        (("lo",), False, FAIL, "without a filter in front"),
        (("lo", "eth0"), True, FAIL, "configured on eth0"),
        (("eth1",), False, FAIL, "configured on eth1"),
    ],
)
def test_a_vip_belongs_on_lo_behind_the_filter(on: tuple[str, ...], attached: bool, level: Level, text: str) -> None:
    assert_finding(farm.vip_place(VipFacts(VIP, on, ()), attached), level, text)


def test_somebody_else_with_a_vip_is_named_by_its_mac() -> None:
    assert_finding(farm.vip_conflict(VipFacts(VIP, (), ())), OK, "nobody else")
    stranger = bytes.fromhex("02000000beef")
    assert_finding(farm.vip_conflict(VipFacts(VIP, (), (stranger,))), FAIL, "02:00:00:00:be:ef")


@pytest.mark.parametrize(
    ("error", "holder", "level", "text"),
    [
        (0, None, OK, "is free"),
        (errno.EADDRINUSE, PortHolder(5, "python3 -m farmd.daemon.engine", is_engine=True), OK, "this node's engine"),
        (
            errno.EADDRINUSE,
            PortHolder(5, "socat UDP-LISTEN:4804", is_engine=False),
            FAIL,
            "socat UDP-LISTEN:4804 (pid 5)",
        ),
        (errno.EADDRINUSE, None, FAIL, "another process"),
        (errno.EADDRNOTAVAIL, None, FAIL, "no address of this server"),
        (errno.EACCES, None, FAIL, "Permission denied"),
    ],
)
def test_port(error: int, holder: PortHolder | None, level: Level, text: str) -> None:
    assert_finding(farm.port(PortFacts(ip_address("192.0.2.1"), 4804, error, holder)), level, text)


@pytest.mark.parametrize(
    ("mode", "problem", "level", "text"),
    [
        (0o600, "", OK, "whole, mode 0600"),
        (0o400, "", OK, "whole"),
        (None, "", FAIL, "does not exist"),
        (0o640, "", FAIL, "others can read it"),
        (0o604, "", FAIL, "others can read it"),
        (0o600, "there is no hash-key", FAIL, "there is no hash-key"),
    ],
)
def test_key_file(mode: int | None, problem: str, level: Level, text: str) -> None:
    assert_finding(farm.key_file(KeyFacts("/etc/farmd/farm.key", mode, problem)), level, text)


PEER = ip_address("192.0.2.2")


@pytest.mark.parametrize(
    ("state", "silent", "unasked", "level", "text"),
    [
        ("up", (), (), OK, "is up"),
        ("drained", (), (), OK, "is drained"),
        ("joining", (), (), WARN, "is joining"),
        ("left", (PEER,), (), WARN, "is left"),
        ("failed", (), (), FAIL, "although its addresses answer"),
        ("unseen", (PEER,), (), FAIL, "does not answer at 192.0.2.2"),
        (None, (), (), OK, "farmd here is down"),
        (None, (PEER,), (), FAIL, "does not answer"),
        (None, (), (PEER,), WARN, "behind a router"),
    ],
)
def test_peer(state: str | None, silent: Any, unasked: Any, level: Level, text: str) -> None:
    assert_finding(farm.peer(PeerFacts("node2", state, silent, unasked)), level, text)


def test_the_text_for_people() -> None:
    text = render([ok("kernel", "Linux 6.1"), fail("port", "it is taken", "Free it")], Style())

    assert text.splitlines() == [
        "OK    kernel  Linux 6.1",
        "FAIL  port    it is taken",
        "              -> Free it",
        "1 ok, 1 fail",
    ]


def test_a_check_that_cannot_be_made_is_a_finding() -> None:
    found = of_error("link", KernelError("interface eth7", "there is none", "Correct farm.toml"))

    assert found == Finding("link", FAIL, "interface eth7: there is none", "Correct farm.toml")
    assert worst([]) is OK
    assert worst([Finding("a", WARN, "t", "f"), found, Finding("b", OK, "t")]) is FAIL


@pytest.mark.parametrize(
    ("facts", "wanted", "check", "level", "text"),
    [
        (nic(), "auto", "sending-on", OK, "can send frames on"),
        (nic(kind="veth", programs=()), "native", "sending-on", WARN, "its other end has XDP or GRO on"),
        (nic(kind="veth"), "auto", "sending-on", WARN, "its other end has XDP or GRO on"),
        (nic(kind="veth", programs=()), "auto", "sending-on", OK, "can send frames on"),
        (nic(kind="veth", programs=()), "native", "attach-mode", OK, "native, because farm.toml says so"),
        (nic(kind="veth", programs=()), "auto", "attach-mode", OK, "generic, which sends frames on"),
        (nic(kind="ipvlan", driver=""), "auto", "sending-on", FAIL, "under its own MAC address only"),
        (nic(driver="iwlwifi"), "auto", "sending-on", FAIL, "iwlwifi"),
        (nic(features={"rx-vlan-hw-parse": True}), "auto", "rx-vlan-offload", WARN, "and what is sent on"),
    ],
)
def test_link_of_a_directed_farm(facts: LinkFacts, wanted: str, check: str, level: Level, text: str) -> None:
    findings = list(link.judge(facts, AttachMode(wanted), VIRTUAL_MAC, ipv4=True, delivery=Delivery.DIRECTED))
    (found,) = (finding for finding in findings if finding.check == check)
    assert_finding(found, level, text)
    assert "virtual-mac" not in levels(findings), "there is none"
