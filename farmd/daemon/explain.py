# SPDX-License-Identifier: Apache-2.0
"""Which node serves a client, and why: the arithmetic from the view, the proof from the program in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from farmd.daemon.probeframe import probe_frame
from farmd.daemon.report import EngineReport
from farmd.dataplane.filter import Probe
from farmd.dataplane.reasons import Reason, Verdict
from farmd.model.answers import Explanation, PlanesData, ProofData
from farmd.model.buckets import BUCKETS
from farmd.model.config import Delivery, FarmConfig
from farmd.model.errors import NotFound
from farmd.model.nodes import NodeId
from farmd.model.planes import CLOSED, Planes
from farmd.model.rules import Address, Affinity, Protocol, Rule
from farmd.model.siphash import client_message, siphash13

_ANY_PORT = 49152
"""First dynamic port (RFC 6335): stands for the client's port in a probe when the question named none."""


@dataclass(frozen=True, slots=True)
class Question:
    """A client and, optionally, the service it wants. `vip` and `vport` come together."""

    client: Address
    port: int | None
    vip: Address | None
    vport: int | None
    protocol: Protocol | None


def explain(
    config: FarmConfig,
    key: bytes,
    report: EngineReport,
    question: Question,
    probe: Callable[[bytes], Probe] | None,
    now_ns: int,
) -> Explanation:
    """Answer `question`; `probe` runs the loaded program on a frame, None on a witness.

    Raises:
        NotFound: no rule serves that VIP and port, or the client's address family has no VIP.
    """
    rule = _rule_for(config, question)
    affinity = rule.affinity
    port = question.port if question.port is not None else _ANY_PORT
    digest = siphash13(key, client_message(affinity, question.client, port))
    bucket = digest % BUCKETS
    view = report.view
    owner = None if view is None else view.owner(rule.group, bucket)
    planes = report.planes[rule.group] if report.planes else CLOSED
    bits = _bits(planes, bucket)
    return Explanation(
        client=str(question.client),
        port=question.port,
        vip=str(rule.vip),
        vport=rule.port,
        protocol=rule.protocol,
        rule=rule.name,
        affinity=affinity,
        key=_key_text(affinity, question, port),
        hash=f"0x{digest:016x}",
        bucket=bucket,
        group=config.groups[rule.group].name,
        owner=None if owner is None else _name(config, owner),
        why=_why(config, report, rule, owner),
        planes=bits,
        proof=None
        if probe is None
        else _prove(config, question, rule, port, probe, bits, owner, lease_valid=report.deadline_ns > now_ns),
    )


def _rule_for(config: FarmConfig, question: Question) -> Rule:
    if question.vip is None:
        for rule in config.rules:
            if rule.vip.version == question.client.version:
                return rule
        raise NotFound(
            f"client {question.client}",
            f"no rule serves an IPv{question.client.version} VIP",
            "Name a client of the VIPs' family: `farmctl status` lists them",
        )
    for rule in config.rules:
        if (rule.vip, rule.port) == (question.vip, question.vport) and question.protocol in (None, rule.protocol):
            return rule
    served = ", ".join(f"{rule.vip}:{rule.port}/{rule.protocol}" for rule in config.rules) or "nothing"
    raise NotFound(
        f"{question.vip}:{question.vport}/{question.protocol or 'tcp'}",
        "no rule serves it, so the filter drops its packets" if config.drop_without_rule else "no rule serves it",
        f"The farm serves {served}",
    )


def _key_text(affinity: Affinity, question: Question, port: int) -> str:
    if affinity is Affinity.CLIENT_IP:
        return str(question.client)
    chosen = "" if question.port is not None else " (a port of our choice: each port has its own bucket)"
    return f"{question.client} port {port}{chosen}"


def _bits(planes: Planes, bucket: int) -> PlanesData:
    return PlanesData(
        own=bool(planes.own >> bucket & 1), held=bool(planes.held >> bucket & 1), fresh=bool(planes.fresh >> bucket & 1)
    )


def _name(config: FarmConfig, node: NodeId) -> str:
    return next((member.name for member in config.members if member.id == node), f"node number {node}")


def _why(config: FarmConfig, report: EngineReport, rule: Rule, owner: NodeId | None) -> str:
    view = report.view
    if view is None:
        return "this node has no view yet"
    weights = ", ".join(
        f"{member.name} {'drained' if member.id in view.drained else view.weight(rule.group, member.id)}"
        for member in config.nodes
        if member.id in view.members
    )
    state = "started" if report.started else "not started yet"
    if owner is None:
        return f"view {view.epoch} ({state}) gives it to nobody: no member has a weight above 0 ({weights})"
    return f"view {view.epoch} ({state}), weights: {weights}"


def _prove(
    config: FarmConfig,
    question: Question,
    rule: Rule,
    port: int,
    probe: Callable[[bytes], Probe],
    bits: PlanesData,
    owner: NodeId | None,
    *,
    lease_valid: bool,
) -> ProofData | None:
    if rule.vip.version != question.client.version:
        return None
    frame = probe_frame(config.virtual_mac, question.client, port, rule.vip, rule.port, rule.protocol)
    seen = probe(frame)
    foreign = config.delivery is Delivery.DIRECTED and owner not in (None, config.me.id)
    expected = Verdict.PASS if bits["own"] and lease_valid else Verdict.TX if foreign else Verdict.DROP
    return ProofData(
        node=config.me.name,
        verdict=seen.verdict,
        reason=seen.reason,
        sent_to=_name(config, owner) if owner is not None and seen.reason is Reason.SENT_TO_OWNER else None,
        agrees=seen.verdict == expected,
    )
