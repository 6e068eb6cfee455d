# SPDX-License-Identifier: Apache-2.0
"""Attaching the filter to interfaces: which mode, which link, and what may be in the way."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from farmd.dataplane._libbpf import lib
from farmd.dataplane.kernel import Link, Program, kernel_error, program_name, xdp_presence
from farmd.model.config import AttachMode
from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts

_VETH = "veth fixes a frame's type before native XDP runs, so frames to the virtual MAC would be lost"
_VETH_DIRECTED = "veth loses what native XDP sends on unless its other end has XDP or GRO on"
_ORDERED = "farm.toml says so"
_FLAGS = {AttachMode.NATIVE: int(lib.XDP_FLAGS_DRV_MODE), AttachMode.GENERIC: int(lib.XDP_FLAGS_SKB_MODE)}


@dataclass(frozen=True, slots=True)
class Attachment:
    """The filter on one interface.

    `mode` is native (in the driver) or generic (behind it: slower, but any interface can do it), and `reason` says why.
    `reattached`: a pinned link of the last run went on without a gap.
    """

    interface: str
    ifindex: int
    mode: AttachMode
    reason: str
    reattached: bool


def link_pin(pin_dir: Path, ifindex: int) -> Path:
    """Where an interface's link is pinned: by index, because a bpffs allows no dot in a name."""
    return pin_dir / f"link-{ifindex}"


def attach(
    program: Program, facts: InterfaceFacts, wanted: AttachMode, pin_dir: Path, *, directed: bool = False
) -> Attachment:
    """Put `program` on an interface: through its pinned link if there is one, else through a new one.

    `directed`: it sends frames on (delivery `directed`), which is one more thing that a driver must be able to do.
    """
    veth = _VETH_DIRECTED if directed else _VETH
    pin = link_pin(pin_dir, facts.ifindex)
    changed = ""
    try:
        link = Link.get(pin)
    except FileNotFoundError:
        return _attach_anew(program, facts, wanted, pin, changed, veth)
    with link:
        if link.target()[1] == facts.ifindex:
            mode = _present_mode(facts)
            if _is_good(facts, wanted, mode):
                link.update(program)
                reason = f"{_why(facts, wanted, mode, veth)}; the link of the last run goes on"
                return Attachment(facts.name, facts.ifindex, mode, reason, True)
            link.detach()
            changed = f"; was {mode} before"
        pin.unlink()
    return _attach_anew(program, facts, wanted, pin, changed, veth)


def _is_good(facts: InterfaceFacts, wanted: AttachMode, mode: AttachMode) -> bool:
    """Whether a link of the last run may stay in its mode.

    A change of mode leaves a moment without a filter. So "auto" keeps what there is, except what it would never choose:
    a veth in native mode, which only an order can have brought about.
    """
    if wanted is AttachMode.AUTO:
        return not (facts.kind == "veth" and mode is AttachMode.NATIVE)
    return wanted is mode


def prune(pin_dir: Path, keep: frozenset[int]) -> None:
    """End the links of interfaces that are gone or no longer ours."""
    for pin in pin_dir.glob("link-*"):
        if pin.name not in {f"link-{ifindex}" for ifindex in keep}:
            end(pin)


def end(pin: Path) -> None:
    """End one pinned link and remove its pin."""
    with Link.get(pin) as link:
        link.detach()
    pin.unlink()


def _present_mode(facts: InterfaceFacts) -> AttachMode:
    return AttachMode.NATIVE if xdp_presence(facts.ifindex).native else AttachMode.GENERIC


def _attach_anew(
    program: Program, facts: InterfaceFacts, wanted: AttachMode, pin: Path, note: str, veth: str
) -> Attachment:
    if number := xdp_presence(facts.ifindex).any:
        raise _foreign(facts, number)
    if wanted is AttachMode.AUTO and facts.kind == "veth":
        mode = AttachMode.GENERIC
        link, reason = _create(program, facts, mode), veth
    elif wanted is AttachMode.AUTO:
        link, mode, reason = _create_best(program, facts)
    else:
        mode = wanted
        link, reason = _create(program, facts, mode), _ORDERED
    with link:
        link.pin(pin)
    return Attachment(facts.name, facts.ifindex, mode, reason + note, False)


def _create_best(program: Program, facts: InterfaceFacts) -> tuple[Link, AttachMode, str]:
    try:
        link = Link.create(program, facts.ifindex, _FLAGS[AttachMode.NATIVE])
        return link, AttachMode.NATIVE, f"{_driver(facts)} supports it"
    except OSError as refused:
        why = f"{_driver(facts)} refused native XDP: {refused.strerror}"
    return _create(program, facts, AttachMode.GENERIC), AttachMode.GENERIC, why


def _driver(facts: InterfaceFacts) -> str:
    return facts.driver or facts.kind or "the driver"


def _why(facts: InterfaceFacts, wanted: AttachMode, mode: AttachMode, veth: str) -> str:
    """Why a link of the last run has its mode, as far as one can tell without trying again."""
    if wanted is not AttachMode.AUTO:
        return _ORDERED
    if mode is AttachMode.NATIVE:
        return f"{_driver(facts)} supports it"
    if facts.kind == "veth":
        return veth
    return f"{_driver(facts)} had refused native XDP, or farm.toml had asked for generic mode"


def _create(program: Program, facts: InterfaceFacts, mode: AttachMode) -> Link:
    try:
        return Link.create(program, facts.ifindex, _FLAGS[mode])
    except OSError as refused:
        number = refused.errno or 0
    subject = f"interface {facts.name}"
    if number in (errno.EBUSY, errno.EEXIST) and (other := xdp_presence(facts.ifindex).any):
        raise _foreign(facts, other)
    if number == errno.ENODEV:
        raise KernelError(subject, "there is no such interface", "Correct `interfaces` in farm.toml; see `ip link`")
    if mode is AttachMode.NATIVE:
        cause = f"its driver ({facts.driver or facts.kind or 'unknown'}) refused native XDP: {os.strerror(number)}"
        raise KernelError(subject, cause, 'Set `attach_mode = "auto"` or "generic" in farm.toml')
    raise kernel_error(subject, number, "the filter cannot be attached")


def _foreign(facts: InterfaceFacts, number: int) -> KernelError:
    mode = xdp_presence(facts.ifindex).word(number)
    return KernelError(
        f"interface {facts.name}",
        f"another XDP program is attached to it: {program_name(number)} (id {number})",
        f"Stop what attached it, or remove it with `ip link set dev {facts.name} {mode} off`; see `bpftool net`",
    )
