# SPDX-License-Identifier: Apache-2.0
"""What the doctor's rules judge. Pure values; None means that it could not be found out, or does not exist here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from farmd.model.interfaces import InterfaceFacts
from farmd.model.rules import Address


@dataclass(frozen=True, slots=True)
class HostFacts:
    """This server and its kernel."""

    release: str
    jit: int | None
    """net.core.bpf_jit_enable; None: only the first network namespace shows it."""
    btf: bool
    capabilities: int
    """The effective set, a bit a capability."""
    object_refusal: str | None
    """Why the kernel refused the filter; None: it took it."""
    object_advice: str
    bpffs_at: str | None
    """Mount point of the bpffs that holds `pin_dir`."""
    clock_source: str | None
    realtime_refusal: str | None
    memory_lock_refusal: str | None


@dataclass(frozen=True, slots=True)
class XdpProgram:
    """An XDP program on an interface."""

    number: int
    name: str
    mode: str
    """native, generic or offloaded."""
    ours: bool


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """One interface that the filter is to be attached to."""

    interface: InterfaceFacts
    up: bool
    promiscuous: bool
    accepted_macs: frozenset[bytes]
    """What its unicast and multicast filters let in besides its own."""
    programs: tuple[XdpProgram, ...]
    features: Mapping[str, bool]
    """As `ethtool -k` lists them, by their long names; those that the driver does not know are missing."""
    queues: int | None
    cpus: int
    settings: Mapping[str, int | None]
    """arp_ignore, arp_announce, rp_filter as they work for this interface: the higher of `all` and its own."""

    @property
    def name(self) -> str:
        """The interface's name."""
        return self.interface.name

    @property
    def ours(self) -> XdpProgram | None:
        """The farm's filter, if it is attached: then farmd has set this interface up, and what is wrong stays so."""
        return next((program for program in self.programs if program.ours), None)


@dataclass(frozen=True, slots=True)
class PortHolder:
    """A process that has the membership port on one of this node's addresses."""

    pid: int
    command: str
    is_engine: bool


@dataclass(frozen=True, slots=True)
class PortFacts:
    """The membership port on one of this node's addresses. `error` is the kernel's errno, 0 if it could be had."""

    address: Address
    port: int
    error: int
    holder: PortHolder | None


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """The key file. `mode` None: there is no such file; `problem`: why it cannot be used, "" if it can."""

    path: str
    mode: int | None
    problem: str


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """Another member. `state` is what farmd says (None: farmd is down); `silent` are addresses that did not answer."""

    name: str
    state: str | None
    silent: tuple[Address, ...]
    unasked: tuple[Address, ...] = ()
    """Addresses on none of this node's links, which ARP cannot ask."""


@dataclass(frozen=True, slots=True)
class VipFacts:
    """A VIP: the interfaces of this node that have it, and the MACs that others announced for it when asked."""

    address: Address
    on: tuple[str, ...]
    claimed_by: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class HealthFacts:
    """What the farm's health URL said: status and first line; `status` None: nothing, with the kernel's `error`."""

    url: str
    status: int | None
    text: str
    error: int
