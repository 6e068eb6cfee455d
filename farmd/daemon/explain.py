# SPDX-License-Identifier: Apache-2.0
"""Which node serves a client, and why: the arithmetic from the view, the proof from the program in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from farmd.daemon.probeframe import Flow, probe_frames
from farmd.daemon.report import EngineReport
from farmd.dataplane.filter import Probe
from farmd.dataplane.reasons import Reason, Verdict
from farmd.model.answers import Explanation, PlanesData, ProofData
from farmd.model.buckets import BUCKETS
from farmd.model.config import Delivery, FarmConfig
from farmd.model.errors import BadRequest, NotFound
from farmd.model.nodes import NodeId
from farmd.model.planes import CLOSED, Planes
from farmd.model.question import PacketKind, Question
from farmd.model.rules import Address, Affinity, Protocol, Rule, RuleBook
from farmd.model.siphash import client_message, network_of, siphash13

_ANY_PORT = 49152
"""First dynamic port (RFC 6335): stands for the client's port in a probe when the question named none."""
_ANY_ID = 0xFA12
"""Stands for the identification of a packet when the question named none."""
_LOST_ID = 0xFA13
"""... of a fragment whose first one is lost: another, because a probe may have shown the filter that one."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A question with everything filled in."""

    flow: Flow
    packet: PacketKind
    identification: int
    rule: Rule | None
    """What it is steered by; None: by client-ip in group 0, or, if `lost`, not at all."""
    lost: bool = False
    """A fragment that nobody can place: its rules do not steer alike."""

    @property
    def affinity(self) -> Affinity:
        return Affinity.CLIENT_IP if self.rule is None else self.rule.affinity

    @property
    def group(self) -> int:
        return 0 if self.rule is None else self.rule.group

    @property
    def extra(self) -> int:
        """What is hashed beside the address. An ICMP error tells no identification of the client's."""
        if self.affinity is Affinity.PACKET_ID:
            return 0 if self.packet is PacketKind.ICMP_ERROR else self.identification
        return self.flow.port


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
        BadRequest: there is no such packet.
    """
    case = _case(config, question)
    rule = case.rule
    digest = siphash13(key, client_message(key, case.affinity, question.client, case.extra))
    bucket = digest % BUCKETS
    view = report.view
    outside = config.delivery is Delivery.EXTERNAL
    owner = None if view is None or outside or case.lost else view.owner(case.group, bucket)
    planes = report.planes[case.group] if report.planes else CLOSED
    bits = _bits(planes, bucket)
    told = None if case.packet is PacketKind.ECHO else case
    return Explanation(
        client=str(question.client),
        port=question.port,
        vip=str(case.flow.vip),
        vport=None if told is None else case.flow.vport,
        protocol=None if told is None else case.flow.protocol,
        rule=None if rule is None else rule.name,
        ports=None if rule is None else rule.ports_text,
        packet=case.packet,
        affinity=case.affinity,
        key=_key_text(case, question),
        hash=f"0x{digest:016x}",
        bucket=bucket,
        group=config.groups[case.group].name,
        owner=None if owner is None else _name(config, owner),
        why=_LOST if case.lost else _why(config, report, case.group, owner),
        planes=bits,
        proof=None
        if probe is None
        else _prove(config, case, probe, bits, owner, lease_valid=report.deadline_ns > now_ns),
    )


_LOST = "its ports are in the first fragment, and the rules of this VIP and protocol do not all steer alike"


def _case(config: FarmConfig, question: Question) -> _Case:
    named = _named_rule(config, question)
    protocol = question.protocol or (named.protocol if named else Protocol.TCP)
    vip = question.vip or (named.vip if named else _any_vip(config, question.client))
    vport = question.vport if question.vport is not None else (named.port if named else 0)
    flow = Flow(question.client, question.port if question.port is not None else _ANY_PORT, vip, vport, protocol)
    kind = question.packet
    if kind is PacketKind.FOLLOWING and protocol is Protocol.UDP:
        kind = PacketKind.OPENING  # to the filter each datagram is a beginning
    chosen = _LOST_ID if kind is PacketKind.LOST_FRAGMENT else _ANY_ID
    identification = question.identification if question.identification is not None else chosen
    if vip.version == 4 and identification >= 1 << 16:
        raise BadRequest(f"id {identification}", "IPv4 has 16 bits for it", "Give a number up to 65535")
    if kind is PacketKind.LOST_FRAGMENT:
        orphan = RuleBook(config.rules).orphan(vip, protocol)
        return _Case(flow, kind, identification, orphan, lost=orphan is None)
    return _Case(flow, kind, identification, None if kind is PacketKind.ECHO else named)


def _named_rule(config: FarmConfig, question: Question) -> Rule | None:
    """The rule of the service in question, or of any; None for what is steered without one. Raises NotFound."""
    if question.vip is None:
        fit = (rule for rule in config.rules if rule.vip.version == question.client.version)
        rule = next((rule for rule in fit if question.protocol in (None, rule.protocol)), None)
        if rule is not None or question.packet is PacketKind.ECHO:
            return rule
        raise NotFound(
            f"client {question.client}",
            f"no rule serves an IPv{question.client.version} VIP",
            "Name a client of the VIPs' family: `farmctl status` lists them",
        )
    if question.vip not in config.vips:
        listed = ", ".join(map(str, config.vips)) or "none"
        raise NotFound(f"VIP {question.vip}", "the farm has no such VIP", f"It has {listed}")
    if question.packet is PacketKind.ECHO:
        return None
    book, port = RuleBook(config.rules), question.vport or 0
    for protocol in Protocol if question.protocol is None else (question.protocol,):
        if rule := book.find(question.vip, protocol, port):
            return rule
    if not config.drop_without_rule:
        return None
    served = ", ".join(f"{rule.vip}:{rule.ports_text}/{rule.protocol}" for rule in config.rules) or "nothing"
    raise NotFound(
        f"{question.vip}:{question.vport}/{question.protocol or 'tcp'}",
        "no rule serves it, so the filter drops its packets",
        f"The farm serves {served}",
    )


def _any_vip(config: FarmConfig, client: Address) -> Address:
    for vip in config.vips:
        if vip.version == client.version:
            return vip
    raise NotFound(f"client {client}", f"there is no IPv{client.version} VIP", "See `farmctl status` for the VIPs")


def _key_text(case: _Case, question: Question) -> str:
    """What was hashed, in words."""
    client = str(question.client)
    if case.affinity is Affinity.CLIENT_NETWORK:
        return f"{network_of(question.client)}/{24 if question.client.version == 4 else 64}"
    if case.affinity is Affinity.CLIENT_IP_PORT:
        chosen = "" if question.port is not None else " (a port of our choice: each port has its own bucket)"
        return f"{client} port {case.flow.port}{chosen}"
    if case.affinity is Affinity.PACKET_ID and case.packet is PacketKind.ICMP_ERROR:
        return f"{client} (an ICMP error tells no packet id of the client's)"
    if case.affinity is Affinity.PACKET_ID:
        chosen = "" if question.identification is not None else " (an id of our choice: each id has its own bucket)"
        return f"{client} packet id {case.identification}{chosen}"
    return client


def _bits(planes: Planes, bucket: int) -> PlanesData:
    return PlanesData(
        own=bool(planes.own >> bucket & 1), held=bool(planes.held >> bucket & 1), fresh=bool(planes.fresh >> bucket & 1)
    )


def _name(config: FarmConfig, node: NodeId) -> str:
    return next((member.name for member in config.members if member.id == node), f"node number {node}")


def _why(config: FarmConfig, report: EngineReport, group: int, owner: NodeId | None) -> str:
    view = report.view
    if config.delivery is Delivery.EXTERNAL:
        return "no filter: a load balancer outside decides, among the nodes whose health URL says 200"
    if view is None:
        return "this node has no view yet"
    weights = ", ".join(
        f"{member.name} {'drained' if member.id in view.drained else view.weight(group, member.id)}"
        for member in config.nodes
        if member.id in view.members
    )
    state = "started" if report.started else "not started yet"
    if owner is None:
        return f"view {view.epoch} ({state}) gives it to nobody: no member has a weight above 0 ({weights})"
    return f"view {view.epoch} ({state}), weights: {weights}"


def _prove(
    config: FarmConfig,
    case: _Case,
    probe: Callable[[bytes], Probe],
    bits: PlanesData,
    owner: NodeId | None,
    *,
    lease_valid: bool,
) -> ProofData:
    frames = probe_frames(config.virtual_mac, case.flow, case.packet, case.identification)
    seen = [probe(frame) for frame in frames][-1]
    expected = _expected(case, bits, lease_valid)
    if config.delivery is Delivery.DIRECTED and not case.lost:
        expected = _sent_on(expected, bits, foreign=owner not in (None, config.me.id))
    return ProofData(
        node=config.me.name,
        verdict=seen.verdict,
        reason=seen.reason,
        sent_to=_name(config, owner) if owner is not None and seen.reason is Reason.SENT_TO_OWNER else None,
        agrees=seen.verdict in expected,
    )


def _sent_on(expected: tuple[Verdict, ...], bits: PlanesData, *, foreign: bool) -> tuple[Verdict, ...]:
    """The same in delivery `directed`, where what others drop goes on to the owner, or in transition to a holder."""
    if Verdict.DROP not in expected:
        return expected
    if bits["fresh"] or bits["held"]:
        return (*expected, Verdict.TX)
    return (Verdict.TX,) if foreign else expected


def _expected(case: _Case, bits: PlanesData, lease_valid: bool) -> tuple[Verdict, ...]:
    """What the filter may say. In transition a connection's packets go where its socket is, which we do not know."""
    moving = bits["fresh"] or bits["held"]
    if not lease_valid or case.lost:
        return (Verdict.DROP,)
    if case.packet is PacketKind.LOST_FRAGMENT:
        return (Verdict.PASS if bits["own"] and not moving else Verdict.DROP,)
    of_connection = case.packet is PacketKind.FOLLOWING or (
        case.packet is PacketKind.ICMP_ERROR and case.flow.protocol is Protocol.TCP
    )
    if of_connection and moving:
        return (Verdict.PASS, Verdict.DROP)
    if bits["held"] and case.flow.protocol is Protocol.TCP and case.packet is not PacketKind.ECHO:
        return (Verdict.PASS, Verdict.DROP)  # a socket of just this connection takes its SYN too
    return (Verdict.PASS if bits["own"] else Verdict.DROP,)
