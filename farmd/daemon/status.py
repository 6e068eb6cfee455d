# SPDX-License-Identifier: Apache-2.0
"""From the engine's report to what `farmctl status` shows. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from farmd.daemon.clock import utc_of_boot_ns
from farmd.daemon.report import EngineReport, PeerReport
from farmd.model.answers import (
    EngineData,
    FarmStatus,
    FilterData,
    GroupShare,
    LeaseData,
    MemberData,
    ProblemData,
    RuleData,
    ViewData,
)
from farmd.model.buckets import BUCKETS
from farmd.model.config import FarmConfig, Listen, Member, Profile
from farmd.model.nodes import MemberState, Role

SEND_ERRORS = "send-errors"
"""Beside the reasons in `EngineReport.dropped`: what we could not send, not what we did not accept."""


@dataclass(frozen=True, slots=True)
class LocalFacts:
    """What the daemon knows beside the engine's report."""

    filters: tuple[FilterData, ...]
    problems: tuple[ProblemData, ...] = ()


def farm_status(config: FarmConfig, report: EngineReport, now_ns: int, local: LocalFacts) -> FarmStatus:
    """The farm as this node sees it at `now_ns` (CLOCK_BOOTTIME)."""
    peers = {peer.id: peer for peer in report.peers}
    members = [_member(config, report, member, peers.get(member.id), now_ns) for member in config.members]
    lease = _lease(report, now_ns)
    status = FarmStatus(
        farm=config.farm,
        profile=config.profile,
        exclusive=report.exclusive,
        delivery=config.delivery,
        phase=report.phase,
        view=_view(report),
        lease=lease,
        filter=list(local.filters),
        vips=[str(vip) for vip in config.vips],
        members=members,
        groups=[group.name for group in config.groups],
        rules=[
            RuleData(
                name=rule.name,
                vip=str(rule.vip),
                protocol=rule.protocol,
                port=rule.port,
                ports=rule.ports_text,
                affinity=rule.affinity,
                group=config.groups[rule.group].name,
            )
            for rule in config.rules
        ],
        problems=[*local.problems, *_problems(config, report, members, lease)],
        engine=_engine(report),
        config_hash=config_hash(config),
    )
    if config.health is not None:
        status["health"] = health_url(config.health)
    return status


def health_url(place: Listen) -> str:
    """The farm's health URL, as this node listens for it; the rules' begin with it."""
    host = f"[{place.address}]" if place.address.version == 6 else str(place.address)
    return f"http://{host}:{place.port}/health"


def config_hash(config: FarmConfig) -> str:
    """A hash over what the nodes of a farm must agree on in farm.toml: all but `[node]`. The keys are not in it."""
    parts = (
        config.farm,
        config.profile,
        config.timing,
        config.delivery,
        config.virtual_mac,
        config.gateway,
        config.port,
        config.members,
        sorted(config.voters),
        config.vips,
        config.groups,
        config.rules,
        [sorted(weights.items()) for weights in config.weights],
        config.drop_without_rule,
        config.drain_deadline_s,
        sorted(map(str, config.outside_vips)),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _engine(report: EngineReport) -> EngineData:
    dropped = dict(report.dropped)
    send_errors = dropped.pop(SEND_ERRORS, 0)
    return EngineData(datagrams_dropped=dropped, send_errors=send_errors)


def _view(report: EngineReport) -> ViewData | None:
    if report.view is None:
        return None
    return ViewData(
        epoch=report.view.epoch,
        ballot=str(report.view.ballot),
        started=report.started,
        since=utc_of_boot_ns(report.view_since_ns),
    )


def _lease(report: EngineReport, now_ns: int) -> LeaseData:
    left_s = max(0, report.deadline_ns - now_ns) / 1e9
    return LeaseData(left_seconds=round(left_s, 3), valid=left_s > 0)


def _member(
    config: FarmConfig, report: EngineReport, member: Member, peer: PeerReport | None, now_ns: int
) -> MemberData:
    heard_ns = None if peer is None else peer.last_heard_ns
    since_ns = None if peer is None else peer.since_ns
    return MemberData(
        name=member.name,
        number=member.id,
        role=member.role,
        voter=member.id in config.voters,
        self=member.id == config.me.id,
        state=MemberState.UNSEEN if peer is None else peer.state,
        since=None if since_ns is None else utc_of_boot_ns(since_ns),
        last_heard_seconds=None if heard_ns is None else round(max(0, now_ns - heard_ns) / 1e9, 3),
        groups=list(_shares(config, report, member)),
        connections=None if peer is None else peer.connections,
        held_connections=None if peer is None else peer.held_connections,
    )


def _shares(config: FarmConfig, report: EngineReport, member: Member) -> Iterator[GroupShare]:
    if member.role is not Role.NODE:
        return
    view = report.view
    for group in config.groups:
        configured = config.weights[group.index].get(member.id, 0)
        buckets = 0 if view is None else view.owners[group.index].count(member.id)
        yield GroupShare(
            group=group.name,
            weight=configured if view is None else view.weights[group.index][member.id],
            effective_weight=0 if view is None else view.weight(group.index, member.id),
            buckets=buckets,
            share=round(buckets / BUCKETS, 4),
        )


def _problems(
    config: FarmConfig, report: EngineReport, members: Sequence[MemberData], lease: LeaseData
) -> Iterator[ProblemData]:
    if not lease["valid"] and config.me.role is Role.NODE:
        yield ProblemData(
            severity="error",
            text=f"{config.me.name} has no lease: "
            + ("its filter accepts nothing" if config.filters else "its health URLs say 503"),
            next_step="It needs to exchange heartbeats with a majority of the voters: see who is not heard below",
        )
    if not report.exclusive and config.profile is Profile.AVAILABLE:
        yield ProblemData(
            severity="warning",
            text="exclusive=false: this node serves alone and cannot prove that its peer does not",
            next_step="Bring the peer or the link to it back, or add a witness and use profile exclusive",
        )
    for member in members:
        if member["state"] in (MemberState.FAILED, MemberState.UNSEEN):
            yield ProblemData(
                severity="error" if member["state"] == MemberState.FAILED else "warning",
                text=f"{member['name']} is {member['state']}",
                next_step="See whether its farmd runs and whether UDP "
                f"port {config.port} passes between the nodes in both directions",
            )
        if member["state"] == MemberState.UNFIT:
            yield ProblemData(
                severity="error",
                text=f"clients cannot reach {member['name']}: its service network is down",
                next_step="Look at its cable, switch port and interface; its other heartbeat network still works",
            )
    for warning in report.warnings:
        yield ProblemData(
            severity="warning", text=warning, next_step="A late engine only darkens its own node, but it does"
        )
