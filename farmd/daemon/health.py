# SPDX-License-Identifier: Apache-2.0
"""Should this node get new clients? What the health URLs say, from the engine's report. Pure.

The answer is no unless everything that speaks for yes is known now: a balancer that hears nothing good must not send
anything here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol as Seam

from farmd.daemon.report import EngineReport
from farmd.model.config import Delivery, FarmConfig
from farmd.model.nodes import MemberState, Role
from farmd.model.planes import Planes
from farmd.model.rules import Address, Protocol, Rule

FARM_PATH = "/health"
RULE_PATH = "/health/rule/"
"""Followed by a rule's name, or by VIP:port/protocol (an IPv6 VIP in brackets)."""


class Listening(Seam):
    """A port that some process serves (see `farmd.net.listeners`)."""

    def takes(self, protocol: Protocol, address: Address, ports: range) -> bool:
        """Whether packets to that address, and to one of the ports, are for this process."""
        ...


@dataclass(frozen=True, slots=True)
class Health:
    """`healthy`: new clients may come. `reason` is one line, without secrets."""

    healthy: bool
    reason: str


def rules_of(path: str, config: FarmConfig) -> tuple[Rule, ...] | None:
    """The rules that a path asks about, all for the farm's own; None for a path that asks about nothing we know."""
    if path == FARM_PATH:
        return config.rules
    if not path.startswith(RULE_PATH):
        return None
    wanted = path.removeprefix(RULE_PATH)
    found = tuple(rule for rule in config.rules if wanted in (rule.name, place_of(rule)))
    return found or None


def place_of(rule: Rule) -> str:
    """What a rule is about, as it stands in a path: `192.0.2.100:80/tcp`, `[2001:db8::100]:80/tcp`."""
    host = f"[{rule.vip}]" if rule.vip.version == 6 else str(rule.vip)
    return f"{host}:{rule.ports_text}/{rule.protocol}"


def judge(
    config: FarmConfig, report: EngineReport, now_ns: int, rules: Sequence[Rule], served: Collection[Listening]
) -> Health:
    """Whether new clients of `rules` may come to this node at `now_ns` (CLOCK_BOOTTIME).

    All of the rules must be fit for it; without any rule it is the node that must.
    """
    if why := _node_trouble(config, report, now_ns):
        return Health(False, why)
    groups = sorted({rule.group for rule in rules}) or [group.index for group in config.groups]
    for group in groups:
        if why := _share_trouble(config, report, group):
            return Health(False, why)
    for rule in rules:
        if not any(one.takes(rule.protocol, place, rule.ports) for one in served for place in places(config, rule)):
            where = f"{rule.protocol} port{'s' * (len(rule.ports) > 1)} {rule.ports_text}"
            return Health(False, f"rule {rule.name}: nothing on {config.me.name} listens on {where}")
    return Health(True, f"{config.me.name} takes new clients")


def places(config: FarmConfig, rule: Rule) -> tuple[Address, ...]:
    """The addresses by which packets of a rule reach this node: the VIP, or what a balancer outside makes of it."""
    if config.delivery is not Delivery.EXTERNAL:
        return (rule.vip,)
    return (rule.vip, *config.me.addresses)


def _node_trouble(config: FarmConfig, report: EngineReport, now_ns: int) -> str:
    name, view = config.me.name, report.view
    if config.me.role is not Role.NODE:
        return f"{name} is a witness and serves nothing"
    mine = next((peer.state for peer in report.peers if peer.id == config.me.id), None)
    if mine is MemberState.UNFIT:
        return f"clients cannot reach {name}: its service network is down"
    if report.phase in ("leaving", "closed"):
        return f"{name} is leaving the farm"
    if view is None or config.me.id not in view.members:
        return f"{name} is not in the farm's view"
    if report.deadline_ns <= now_ns:
        return f"{name} has no lease: it hears no majority of the voters"
    return f"{name} is drained" if config.me.id in view.drained else ""


def _share_trouble(config: FarmConfig, report: EngineReport, group: int) -> str:
    name = config.me.name
    assert report.view is not None  # or there was trouble before
    if report.view.weight(group, config.me.id) == 0:
        return f"{name} has the weight 0 in group {config.groups[group].name}"
    planes = report.planes[group] if group < len(report.planes) else Planes()
    return "" if planes.own else f"{name} owns no bucket of group {config.groups[group].name} yet"
