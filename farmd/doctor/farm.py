# SPDX-License-Identifier: Apache-2.0
"""Rules about this node's part in the farm: VIPs, port, keys, peers. Pure."""

from __future__ import annotations

import errno
import os

from farmd.doctor.facts import KeyFacts, PeerFacts, PortFacts, VipFacts
from farmd.doctor.finding import Finding, fail, ok, warn

_WELL = ("up", "draining", "drained")
_ON_ITS_WAY = ("joining", "left")


def vip_place(facts: VipFacts, attached: bool) -> Finding:
    """A VIP belongs on lo alone; `attached`: the filter is there, so farmd has put it there."""
    elsewhere = [name for name in facts.on if name != "lo"]
    if elsewhere:
        name = elsewhere[0]
        return fail(
            "vip-place",
            f"{facts.address} is configured on {name}, so the kernel tells this node's own MAC for it",
            f"Remove it there: ip address del {facts.address} dev {name}",
        )
    if facts.on and not attached:
        return fail(
            "vip-place",
            f"{facts.address} is on lo without a filter in front, so this node answers every client",
            "Start farmd, or take the address off: farmd --purge",
        )
    if attached and not facts.on:
        return fail(
            "vip-place",
            f"{facts.address} is not on lo, so the stack drops what the filter accepts",
            f"Restart farmd, or: ip address add {facts.address}/{facts.address.max_prefixlen} dev lo",
        )
    return ok("vip-place", f"{facts.address} is on lo" if facts.on else f"{facts.address} comes to lo with farmd")


def vip_conflict(facts: VipFacts) -> Finding:
    """Nobody but the farm may answer for a VIP, and the farm answers with its virtual MAC."""
    if facts.claimed_by:
        macs = ", ".join(sorted(mac.hex(":") for mac in facts.claimed_by))
        return fail(
            "vip-conflict",
            f"{facts.address} is also announced by {macs}, which is not this farm",
            f"Find that host (its MAC is in the switch's table) and take {facts.address} off it",
        )
    return ok("vip-conflict", f"nobody else announces {facts.address}")


def port(facts: PortFacts) -> Finding:
    """Heartbeats need their UDP port on every address of this member."""
    place = f"{facts.address} UDP port {facts.port}"
    if facts.error == 0:
        return ok("port", f"{place} is free")
    if facts.error == errno.EADDRNOTAVAIL:
        return fail(
            "port",
            f"{facts.address} is no address of this server",
            "Configure it on an interface, or correct this member's addresses in farm.toml",
        )
    holder = facts.holder
    if holder is not None and holder.is_engine:
        return ok("port", f"{place} is held by this node's engine (pid {holder.pid})")
    if facts.error == errno.EADDRINUSE:
        who = f"{holder.command} (pid {holder.pid})" if holder else "another process"
        return fail("port", f"{place} is held by {who}", "Stop that process, or set another `port` in every farm.toml")
    return fail("port", f"{place} cannot be had: {os.strerror(facts.error)}", "Run the doctor, and farmd, as root")


def key_file(facts: KeyFacts) -> Finding:
    """Whoever reads the key can speak as any member."""
    if facts.mode is None:
        return fail(
            "key-file",
            f"{facts.path} does not exist",
            f"Copy it from another member, or for a new farm: farmctl keygen {facts.path}",
        )
    if facts.mode & 0o077:
        return fail(
            "key-file", f"{facts.path} has mode {facts.mode:04o}: others can read it", f"chmod 600 {facts.path}"
        )
    if facts.problem:
        return fail("key-file", f"{facts.path} is unusable: {facts.problem}", "Copy it again from another member")
    return ok("key-file", f"{facts.path} is whole, mode {facts.mode:04o}")


def peer(facts: PeerFacts) -> Finding:
    """What farmd hears counts; with farmd down, whether the peer's addresses answer on the link."""
    addresses = ", ".join(map(str, facts.silent))
    if facts.state in _WELL:
        return ok("peer", f"{facts.name} is {facts.state}")
    if facts.state in _ON_ITS_WAY:
        step = f"If it should serve, look at farmd on {facts.name}"
        return warn("peer", f"{facts.name} is {facts.state}", step)
    if facts.state is not None and not facts.silent:
        return fail(
            "peer",
            f"{facts.name} is {facts.state} although its addresses answer",
            "Check that farmd runs there with the same key and farm.toml, and that no firewall drops its UDP port",
        )
    if facts.silent:
        step = f"Check that {facts.name} is up and on the same segment: cable, VLAN, bridge"
        return fail("peer", f"{facts.name} does not answer at {addresses}", step)
    if facts.unasked:
        where = ", ".join(map(str, facts.unasked))
        step = f"Start farmd on both and ask again; by hand: ping {facts.unasked[0]}"
        return warn("peer", f"{facts.name} cannot be asked by ARP: {where} is behind a router", step)
    return ok("peer", f"{facts.name} answers at all its addresses (farmd here is down)")
