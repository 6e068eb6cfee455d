# SPDX-License-Identifier: Apache-2.0
"""Rules about a node that a load balancer outside sends clients to (delivery external), and its health URL. Pure."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from http import HTTPStatus

from farmd.doctor.facts import HealthFacts, LinkFacts, VipFacts
from farmd.doctor.finding import Finding, fail, ok, warn
from farmd.doctor.link import state

_QUIET = {"arp_ignore": 1, "arp_announce": 2}


def delivery() -> Finding:
    """What is not examined here, and why."""
    return ok("delivery", "external: no filter, a load balancer outside decides; XDP and flooding do not matter")


def link(facts: LinkFacts, on_host: bool) -> Iterator[Finding]:
    """Findings about the interface that clients come by; `on_host`: the balancer leaves an IPv4 VIP in the packets."""
    yield state(facts)
    if facts.ours is not None:
        yield fail(
            "leftover-filter",
            f"{facts.name} still carries the farm's filter (id {facts.ours.number}), which drops most clients",
            "Restart farmd: it takes the filter off",
        )
    for name, least in _QUIET.items() if on_host else ():
        value = facts.settings.get(name)
        if value is not None and value < least:
            yield warn(
                name.replace("_", "-"),
                f"{facts.name}: {name} is {value}, so the kernel may answer for a VIP that the balancer answers for",
                f"farmd sets {least} when it starts; if it runs, keep whatever reset it from doing so",
            )


def vip(facts: VipFacts, on_host: bool, running: bool) -> Finding:
    """A VIP that arrives as a packet's destination must be an address of this host, on whatever interface."""
    where = ", ".join(facts.on)
    if facts.on:
        return ok("vip-place", f"{facts.address} is on {where}: packets to it are taken")
    if not on_host:
        return ok("vip-place", f"{facts.address} is the balancer's alone (on_host is not set)")
    if running:
        return fail(
            "vip-place", f"{facts.address} is not on this host, so the stack drops its packets", "Restart farmd"
        )
    return ok("vip-place", f"{facts.address} comes to lo with farmd")


def health(facts: HealthFacts, running: bool) -> Finding:
    """What a balancer would hear now."""
    if facts.status == HTTPStatus.OK:
        return ok("health", f"{facts.url} says 200: {facts.text}")
    if facts.status is not None:
        step = "If that is not intended, see `farmctl status`"
        return warn("health", f"{facts.url} says {facts.status}: {facts.text}", step)
    why = os.strerror(facts.error)
    if not running and facts.error == errno.ECONNREFUSED:
        return ok("health", f"{facts.url} comes with farmd")
    return fail(
        "health",
        f"{facts.url} does not answer ({why}), so balancers take this node for dead",
        "See farmd's log; another program may have the port",
    )
