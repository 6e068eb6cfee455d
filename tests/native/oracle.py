# SPDX-License-Identifier: Apache-2.0
"""What the filter must do with a frame, in plain Python: written from ARCHITECTURE.md and the RFCs, not from the C.

Two bounds are the filter's own: it looks under two tags and behind six IPv6 extension headers, and no header may begin
further into the frame than byte 1023. A header that is needed must be whole in the frame; one that is passed over must
lie within the length that IP tells.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, NoReturn

from farmd.dataplane.reasons import Reason, Verdict, verdict_of
from farmd.model.rules import PROTOCOL_NUMBER, Affinity, Rule
from farmd.model.siphash import bucket_of
from tests.native.sockets import ACK, FIN, RST, SYN, Segment, Socket, claims
from tests.native.worlds import IFINDEX, MARKER, NODE_MAC, NODES, VIRTUAL_MAC, World

TAGS, EXTENSIONS, REACH = 2, 6, 1023
HOP_BY_HOP, ICMP, TCP, UDP, ROUTING, FRAGMENT, AH, ICMP6, OPTIONS = 0, 1, 6, 17, 43, 44, 51, 58, 60
CHAIN = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, AH, OPTIONS))
OWN, HELD, FRESH, SEND_ON = 1, 2, 4, 8
HOPS, SEARCH, NOBODY = 8, 0x80, 255
NO_BUCKET = 0xFFFF
ERRORS = {4: frozenset((3, 11, 12)), 6: frozenset((1, 2, 3, 4))}


class Arrival(NamedTuple):
    """A frame comes in."""

    frame: bytes
    ifindex: int = IFINDEX
    socket: Socket | None = None
    """The one TCP socket of this node."""
    room: bool = True
    """Whether the frame can be made longer."""


class Told(NamedTuple):
    """What became of it. `group` and `bucket` are those whose state was asked, NO_BUCKET if none was."""

    verdict: Verdict
    reason: Reason | None
    rule: int
    group: int
    bucket: int
    frame: bytes
    """As it leaves; of a dropped frame, as it came."""


class Settled(Exception):
    """The packet's fate is known."""

    def __init__(self, reason: Reason | None, rule: int = 0) -> None:
        self.outcome: Outcome = reason, rule, NOBODY


Outcome = tuple[Reason | None, int, int]
"""Reason, rule, and the node that the frame is sent on to."""


@dataclass(slots=True)
class Packet:
    """What the headers of a packet say."""

    version: int
    client: bytes
    vip: bytes
    protocol: int
    at: int
    """Where what follows the IP headers begins."""
    length: int
    """Of what follows, as IP tells."""
    datagram: int = 0
    first: bool = False
    later: bool = False
    segment: Segment = Segment.DATAGRAM
    client_port: int = 0
    vip_port: int = 0
    quoted: bool = False
    """It is a packet of ours, seen from the other side: an ICMP error is about it."""


@lru_cache(maxsize=300_000)
def hashed(key: bytes, client: bytes, extra: int) -> int:
    """The bucket by the model's hash; `extra` 0: by address."""
    affinity = Affinity.CLIENT_IP_PORT if extra else Affinity.CLIENT_IP
    return bucket_of(key, affinity, IPv4Address(client) if len(client) == 4 else IPv6Address(client), extra)


def by_affinity(rule: Rule, packet: Packet) -> tuple[bytes, int]:
    """What of a packet is hashed: of the client's address, and beside it."""
    if rule.affinity is Affinity.CLIENT_NETWORK:
        kept = 3 if packet.version == 4 else 8  # /24, /64
        return packet.client[:kept].ljust(len(packet.client), b"\0"), 0
    if rule.affinity is Affinity.CLIENT_IP_PORT:
        return packet.client, packet.client_port
    if rule.affinity is Affinity.PACKET_ID and not packet.quoted:
        return packet.client, packet.datagram
    return packet.client, 0


def drop(reason: Reason = Reason.DROP_MALFORMED, rule: int = 0) -> NoReturn:
    """End here."""
    raise Settled(reason, rule)


class Oracle:
    """One node. Its planes and lease are written by whoever asks; it remembers first fragments."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.vips, self.rules, self.portless = _rulebook(world)
        self.planes: list[bytes] = [bytes(4096)] * 16
        self.routes: list[tuple[bytes, bytes]] = [(bytes([NOBODY]) * 4096,) * 2] * 16
        """Delivery `directed`, by group: the owner of every bucket, and whom to ask after us."""
        self.open = True
        self._firsts: dict[tuple[bytes, bytes, int, int], Outcome] = {}
        self._asked = (NO_BUCKET, NO_BUCKET)

    def forget_fragments(self) -> None:
        """Forget first fragments."""
        self._firsts.clear()

    def judge(self, arrival: Arrival) -> Told:
        """The fate of a frame."""
        self._asked = (NO_BUCKET, NO_BUCKET)
        frame = arrival.frame
        try:
            reason, rule, node = self._ethernet(arrival)
        except Settled as settled:
            reason, rule, node = settled.outcome
        if reason is None:
            return Told(Verdict.PASS, None, 0, *self._asked, frame)
        sent = reason in (Reason.SENT_TO_OWNER, Reason.SENT_TO_PREVIOUS)
        if verdict_of(reason) is not Verdict.DROP and arrival.ifindex != IFINDEX:
            reason, rule = Reason.DROP_NO_INTERFACE, 0
        elif sent and trail_of(frame) & ~SEARCH >= HOPS:
            reason = Reason.DROP_HOP_LIMIT
        elif sent and node not in NODES:
            reason = Reason.DROP_MAC_UNKNOWN
        verdict = verdict_of(reason)
        if verdict is Verdict.PASS:
            frame = NODE_MAC + frame[6:]
        elif verdict is Verdict.TX and sent:
            trail = (trail_of(frame) & ~SEARCH) + 1 | (SEARCH if reason is Reason.SENT_TO_PREVIOUS else 0)
            frame = NODES[node] + MARKER + bytes((0, trail)) + frame[12:]
        elif verdict is Verdict.TX:
            answer = answer_arp if reason is Reason.ARP_ANSWERED else answer_nd
            frame = answer(frame, NODE_MAC if self.world.directed else VIRTUAL_MAC, self.world.directed)
        return Told(verdict, reason, rule, *self._asked, frame)

    def _ethernet(self, arrival: Arrival) -> Outcome:
        frame = arrival.frame
        kind, at = ethertype(frame)
        if kind == 0x0806:
            return self._arp(arrival, at)
        if kind == 0x0800 and len(frame) >= at + 20:
            return self._ip(arrival, self._ipv4(frame, at))
        if kind == 0x86DD and len(frame) >= at + 40:
            if frame[at + 6] == ICMP6:
                self._neighbour(arrival, at)
            return self._ip(arrival, self._ipv6(frame, at))
        return None, 0, NOBODY

    def _check_lease(self) -> None:
        """Without a lease nothing is for this node; in a directed farm it may still be for another."""
        if not self.open and not self.world.directed:
            drop(Reason.DROP_LEASE_OVER)

    def _send_on(self, frame: bytes, state: int, segment: Segment, rule: int, otherwise: Outcome) -> Outcome:
        """Delivery `directed`: to the owner; a connection's segment past the owner along the row of holders."""
        group, bucket = self._asked
        owners, following = self.routes[group]
        if state & OWN or owners[bucket] == 0 or trail_of(frame) & SEARCH:
            if segment not in (Segment.FOLLOWING, Segment.REPORT) or not 0 < following[bucket] < 64:
                return otherwise
            return Reason.SENT_TO_PREVIOUS, rule, following[bucket]
        return (Reason.SENT_TO_OWNER, rule, owners[bucket]) if owners[bucket] < 64 else otherwise

    def _refuse_asker(self, frame: bytes, client: bytes, known: bool, otherwise: Reason) -> None:
        """Settles a question of somebody whose bucket is not ours; `known`: it says where the asker is."""
        state = self._state(0, client)
        if self.open and state & OWN:
            return
        settled = Settled(otherwise if self.open else Reason.DROP_LEASE_OVER)
        if state & SEND_ON and not frame[0] & 1 and known:
            settled.outcome = self._send_on(frame, state, Segment.DATAGRAM, 0, settled.outcome)
        raise settled

    def _state(self, group: int, client: bytes, extra: int = 0) -> int:
        bucket = hashed(self.world.key, client, extra)
        self._asked = group, bucket
        return self.planes[group][bucket]

    def _arp(self, arrival: Arrival, at: int) -> Outcome:
        """RFC 826 and RFC 5227."""
        frame, directed = arrival.frame, self.world.directed
        if len(frame) < at + 28 or frame[at : at + 6] != b"\0\1\x08\0\6\4":
            raise Settled(None)
        sender, target = frame[at + 14 : at + 18], frame[at + 24 : at + 28]
        if target not in self.vips:
            raise Settled(None)
        self._check_lease()
        if sender == target:
            ours = directed and arrival.ifindex == IFINDEX and frame[at + 8 : at + 14] in NODES.values()
            drop(Reason.ARP_ANNOUNCED if ours else Reason.ARP_CLAIM)
        if frame[at + 6 : at + 8] != b"\0\1" or frame[6] & 1 or (directed and frame[at + 8] & 1):
            drop()
        self._refuse_asker(frame, sender, True, Reason.ARP_NOT_OWNER)
        return Reason.ARP_ANSWERED, 0, NOBODY

    def _neighbour(self, arrival: Arrival, at: int) -> None:
        """RFC 4861, 7.1.1. Settles a solicitation for a VIP that came to the VIP or its solicited-node address."""
        frame = arrival.frame
        source, to = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        solicited = to[:13] == bytes.fromhex("ff0200000000000000000001ff")
        if len(frame) < at + 64 or frame[at] >> 4 != 6 or frame[at + 40] != 135 or not (solicited or to in self.vips):
            return
        if frame[at + 48 : at + 64] not in self.vips:
            return
        self._check_lease()
        if frame[at + 7] != 255 or frame[at + 41] or frame[6] & 1:
            drop()
        self._refuse_asker(frame, source, source_option(frame, at) is not None, Reason.ND_NOT_OWNER)
        if arrival.ifindex != IFINDEX:
            drop(Reason.DROP_NO_INTERFACE)
        if len(frame) < at + 72 and not arrival.room:
            drop(Reason.DROP_NO_ROOM)
        raise Settled(Reason.ND_ANSWERED)

    def _ipv4(self, frame: bytes, at: int) -> Packet:
        """RFC 791, of a packet to a VIP."""
        vip = frame[at + 16 : at + 20]
        if vip not in self.vips:
            raise Settled(None)
        self._check_lease()
        packet = read_ipv4(frame, at)
        packet.vip = vip
        return packet

    def _ipv6(self, frame: bytes, at: int) -> Packet:
        """RFC 8200, of a packet to a VIP."""
        vip = frame[at + 24 : at + 40]
        if vip not in self.vips:
            raise Settled(None)
        self._check_lease()
        packet = read_ipv6(frame, at)
        packet.vip = vip
        return packet

    def _ip(self, arrival: Arrival, packet: Packet) -> Outcome:
        """All fragments of a datagram share the fate of the first."""
        if packet.client == packet.vip:
            drop()
        # RFC 8200, 4.5: the protocol is no part of what tells datagrams of IPv6 apart.
        protocol = packet.protocol if packet.version == 4 else 0
        datagram = packet.client, packet.vip, packet.datagram, protocol
        if packet.later and datagram in self._firsts:
            first = self._firsts[datagram]
            if not self.open and first[0] is not None and verdict_of(first[0]) is Verdict.PASS:
                drop(Reason.DROP_LEASE_OVER)
            return first
        try:
            outcome = self._transport(arrival, packet)
        except Settled as settled:
            outcome = settled.outcome
        if packet.first:
            self._firsts[datagram] = outcome
        return outcome

    def _transport(self, arrival: Arrival, packet: Packet) -> Outcome:
        frame = arrival.frame
        if packet.later:
            packet.segment = Segment.ORPHAN
        elif packet.protocol == TCP:
            read_ports(frame, packet, 20)
            opening = frame[packet.at + 13] & (FIN | SYN | RST | ACK) == SYN
            packet.segment = Segment.OPENING if opening else Segment.FOLLOWING
        elif packet.protocol == UDP:
            read_ports(frame, packet, 8)
        elif packet.protocol == (ICMP if packet.version == 4 else ICMP6):
            need(frame, packet, 8)
            if frame[packet.at] in ERRORS[packet.version]:
                packet = quoted(frame, packet)
        return self._rule(arrival, packet)

    def _rule(self, arrival: Arrival, packet: Packet) -> Outcome:
        rule: Rule | None = None
        if packet.protocol in (TCP, UDP):
            if packet.segment is Segment.ORPHAN:
                rule = self.portless.get((packet.vip, packet.protocol))
            else:
                named = self.rules.get((packet.vip, packet.protocol), ())
                rule = next((rule for rule in named if packet.vip_port in rule.ports), None)
        if rule is not None:
            return self._place(arrival, packet, self._state(rule.group, *by_affinity(rule, packet)), rule.index)
        if packet.protocol != (ICMP if packet.version == 4 else ICMP6):
            if packet.segment is Segment.ORPHAN:
                drop(Reason.DROP_FRAGMENT_UNKNOWN)
            if self.world.drop_without_rule:
                drop(Reason.DROP_NO_RULE)
        return self._place(arrival, packet, self._state(0, packet.client), 0)

    def _place(self, arrival: Arrival, packet: Packet, state: int, rule: int) -> Outcome:
        """What the state of the bucket makes of it; what is another's is sent on."""
        outcome: Outcome = Reason.DROP_LEASE_OVER, 0, NOBODY
        if self.open:
            outcome = self._decide(arrival, packet, state & ~SEND_ON), rule, NOBODY
        reason = outcome[0]
        assert reason is not None
        if not state & SEND_ON or verdict_of(reason) is not Verdict.DROP or reason is Reason.DROP_FRAGMENT_UNKNOWN:
            return outcome
        return self._send_on(arrival.frame, state, packet.segment, rule, outcome)

    def _decide(self, arrival: Arrival, packet: Packet, state: int) -> Reason:
        """The table of ARCHITECTURE.md, "Data plane"."""
        if state == OWN:
            return Reason.ACCEPT_OWN
        if not state:
            return Reason.DROP_NOT_OWNER
        if packet.segment is Segment.ORPHAN:
            return Reason.DROP_FRAGMENT_UNKNOWN
        if packet.segment is Segment.DATAGRAM:
            return Reason.ACCEPT_FRESH_NEW if state & OWN else Reason.DROP_HELD_NEW
        if packet.segment is Segment.OPENING and state & OWN:
            return Reason.ACCEPT_FRESH_NEW
        ends = packet.client, packet.client_port, packet.vip, packet.vip_port
        claim = claims(arrival.socket, ends, packet.segment, arrival.frame, packet.at, packet.length)
        if claim == "cookie":
            return Reason.ACCEPT_COOKIE
        if state & OWN:
            return Reason.ACCEPT_FRESH_SOCKET if claim else Reason.DROP_FRESH_UNKNOWN
        if claim:
            return Reason.ACCEPT_HELD_SOCKET
        return Reason.DROP_HELD_NEW if packet.segment is Segment.OPENING else Reason.DROP_HELD_UNKNOWN


@cache
def _rulebook(world: World) -> tuple[set[bytes], dict[tuple[bytes, int], list[Rule]], dict[tuple[bytes, int], Rule]]:
    """The VIPs as they stand in headers; their rules by protocol; and the one rule of a VIP and protocol that is enough
    to steer a later fragment whose first was not seen: all steer alike, and by what is in every fragment."""
    vips = {vip.packed for vip in world.vips}
    rules: dict[tuple[bytes, int], list[Rule]] = {}
    for rule in world.rules:
        rules.setdefault((rule.vip.packed, PROTOCOL_NUMBER[rule.protocol]), []).append(rule)
    portless = {
        kind: min(same, key=lambda rule: rule.index)
        for kind, same in rules.items()
        if len({(rule.affinity, rule.group) for rule in same}) == 1 and same[0].affinity is not Affinity.CLIENT_IP_PORT
    }
    return vips, rules, portless


def ethertype(frame: bytes) -> tuple[int, int]:
    """The type behind at most two tags, and where its header begins. Type 0: the frame is too short."""
    at = 14
    kind = frame[12] << 8 | frame[13]
    for _ in range(TAGS):
        if kind not in (0x8100, 0x88A8):
            break
        at += 4
        if len(frame) < at:
            return 0, at
        kind = frame[at - 2] << 8 | frame[at - 1]
    return kind, at


def need(frame: bytes, packet: Packet, size: int) -> None:
    """The transport header must be there, in the frame and by what IP tells."""
    if packet.length < size or len(frame) < packet.at + size:
        drop()


def read_ports(frame: bytes, packet: Packet, size: int) -> None:
    """The ports at the beginning of a transport header of `size` bytes."""
    need(frame, packet, size)
    packet.client_port, packet.vip_port = struct.unpack_from("!HH", frame, packet.at)


def read_ipv4(frame: bytes, at: int) -> Packet:
    """The IPv4 header at `at`, whose first 20 bytes are there."""
    version, total, ident, offset, _, protocol, _, source = struct.unpack_from("!BxHHHBBH4s", frame, at)
    header = (version & 15) * 4
    if version >> 4 != 4 or header < 20 or total < header:
        drop()
    later, more = bool(offset & 0x1FFF), bool(offset & 0x2000)
    return Packet(4, source, b"", protocol, at + header, total - header, ident, more and not later, later)


def read_ipv6(frame: bytes, at: int) -> Packet:
    """The IPv6 header at `at`, whose 40 bytes are there, and its extensions."""
    if frame[at] >> 4 != 6:
        drop()
    length = frame[at + 4] << 8 | frame[at + 5]
    packet = Packet(6, frame[at + 8 : at + 24], b"", frame[at + 6], at + 40, length)
    if packet.protocol in CHAIN:
        follow(frame, packet)
    return packet


def follow(frame: bytes, packet: Packet) -> None:
    """Pass the packet's extension headers."""
    begin, following, at = packet.at, packet.protocol, packet.at
    for _ in range(EXTENSIONS):
        if following not in CHAIN or packet.later:
            break
        if at > REACH or len(frame) < at + (8 if following == FRAGMENT else 2):
            drop()
        kind, following = following, frame[at]
        if kind == FRAGMENT:
            offset, packet.datagram = struct.unpack_from("!HI", frame, at + 2)
            packet.later = packet.later or offset >= 8
            packet.first = not packet.later and (packet.first or bool(offset & 1))
            at += 8
        else:
            at += (frame[at + 1] + 2) * 4 if kind == AH else (frame[at + 1] + 1) * 8
        if at > REACH:
            drop()
    if following in CHAIN and not packet.later:
        drop(Reason.DROP_HEADER_CHAIN)
    if at - begin > packet.length:
        drop()
    packet.protocol, packet.length, packet.at = following, packet.length - (at - begin), at


def quoted(frame: bytes, error: Packet) -> Packet:
    """The packet of ours that an ICMP error is about, with its ends swapped (RFC 792, RFC 4443)."""
    at = error.at + 8
    if at > REACH:
        drop(Reason.DROP_ICMP_UNKNOWN)
    if len(frame) < at + (20 if error.version == 4 else 40):
        drop()
    try:
        ours = (read_ipv4 if error.version == 4 else read_ipv6)(frame, at)
    except Settled:
        drop(Reason.DROP_ICMP_UNKNOWN)
    sender = ours.client
    ours.client = frame[at + 16 : at + 20] if error.version == 4 else frame[at + 24 : at + 40]
    ours.vip, ours.quoted = error.vip, True
    if ours.later or sender != error.vip:
        drop(Reason.DROP_ICMP_UNKNOWN)
    if ours.protocol in (TCP, UDP):
        if len(frame) < ours.at + 4:
            drop(Reason.DROP_ICMP_UNKNOWN)
        ours.vip_port, ours.client_port = struct.unpack_from("!HH", frame, ours.at)
        ours.segment = Segment.REPORT if ours.protocol == TCP else Segment.DATAGRAM
    return ours


def trail_of(frame: bytes) -> int:
    """What a node that sent the frame on says of its way; 0 if it comes from a client."""
    return frame[11] if frame[6:10] == MARKER else 0


def source_option(frame: bytes, at: int) -> bytes | None:
    """Where a solicitation says that the asker is, if it does so in its first option."""
    option = frame[at + 64 : at + 72]
    return option[2:] if len(option) == 8 and option[:2] == b"\1\1" and not option[2] & 1 else None


def answer_arp(frame: bytes, announced: bytes, directed: bool) -> bytes:
    """The reply: the VIP is at the address that this delivery announces."""
    _, at = ethertype(frame)
    asker, sender, target = frame[at + 8 : at + 14], frame[at + 14 : at + 18], frame[at + 24 : at + 28]
    reply = frame[at : at + 6] + b"\0\2" + announced + target + asker + sender
    return (asker if directed and trail_of(frame) else frame[6:12]) + NODE_MAC + frame[12:at] + reply + frame[at + 28 :]


def answer_nd(frame: bytes, announced: bytes, directed: bool) -> bytes:
    """The advertisement: RFC 4861, 4.4 and 7.2.4."""
    _, at = ethertype(frame)
    asker, target = frame[at + 8 : at + 24], frame[at + 48 : at + 64]
    mac, flags = frame[6:12], 0x60
    if directed and trail_of(frame):
        mac = source_option(frame, at) or mac
    if asker == bytes(16):
        asker, mac, flags = bytes.fromhex("ff02" + "0" * 27 + "1"), bytes.fromhex("333300000001"), 0x20
    message = bytes((136, 0, 0, 0, flags, 0, 0, 0)) + target + b"\2\1" + announced
    covered = target + asker + struct.pack("!II", len(message), ICMP6) + message
    total = sum(struct.unpack(f"!{len(covered) // 2}H", covered))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:]
    ip = frame[at : at + 4] + struct.pack("!H", len(message)) + frame[at + 6 : at + 8] + target + asker
    return mac + NODE_MAC + frame[12:at] + ip + message
