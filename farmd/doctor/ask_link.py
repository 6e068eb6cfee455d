# SPDX-License-Identifier: Apache-2.0
"""Gathers `LinkFacts`."""

from __future__ import annotations

import os
from pathlib import Path

from farmd.dataplane.kernel import Program, program_name, xdp_presence
from farmd.doctor.facts import LinkFacts, XdpProgram
from farmd.model.interfaces import InterfaceFacts
from farmd.net import linkstate, offloads, sysctl

_SETTINGS = ("arp_ignore", "arp_announce", "rp_filter")


def ask(interface: InterfaceFacts, pin_dir: Path) -> LinkFacts:
    """Facts about one interface. Raises KernelError."""
    state = linkstate.states()[interface.name]
    return LinkFacts(
        interface=interface,
        up=state.up,
        promiscuous=state.promiscuous,
        accepted_macs=state.accepted,
        programs=_programs(interface.ifindex, pin_dir),
        features=offloads.features(interface.name),
        queues=offloads.receive_queues(interface.name),
        cpus=os.cpu_count() or 1,
        settings={name: _effective(interface.name, name) for name in _SETTINGS},
    )


def _programs(ifindex: int, pin_dir: Path) -> tuple[XdpProgram, ...]:
    present = xdp_presence(ifindex)
    ours = _own_number(pin_dir)
    modes = {"native": present.native, "generic": present.generic, "offloaded": present.offloaded}
    return tuple(
        XdpProgram(number, program_name(number), mode, ours=number == ours) for mode, number in modes.items() if number
    )


def _own_number(pin_dir: Path) -> int:
    """The number of the pinned filter, 0 if none is pinned."""
    try:
        with Program.get(pin_dir / "filter") as program:
            return program.identity()[0]
    except FileNotFoundError:
        return 0


def _effective(interface: str, name: str) -> int | None:
    """The kernel takes the higher of `all` and the interface's own."""
    values = [sysctl.read(f"ipv4/conf/{where}/{name}") for where in ("all", interface)]
    return max((value for value in values if value is not None), default=None)
