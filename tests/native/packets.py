# SPDX-License-Identifier: Apache-2.0
"""Frames by the million: structured, so that they get far into the filter, and then damaged. Same seed, same frames."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from ipaddress import ip_address

from farmd.model.rules import PROTOCOL_NUMBER, Rule
from tests.native.oracle import AH, FRAGMENT, HOP_BY_HOP, ICMP, ICMP6, OPTIONS, ROUTING, TCP, UDP, Arrival
from tests.native.sockets import ACK, FIN, RST, SYN, Socket, State
from tests.native.worlds import IFINDEX, MARKER, NODE_MAC, NODES, VIRTUAL_MAC, World

HOT_CLIENTS = 64
FLAGS = (SYN, SYN, SYN, ACK, ACK, ACK | 8, FIN | ACK, RST, RST | ACK, SYN | ACK, SYN | FIN, SYN | RST, 0, SYN | 0xC0)
STATES = tuple(State)


class Generator:
    """Frames for one farm."""

    def __init__(self, world: World, seed: str) -> None:
        self.rng = random.Random(seed)
        self.world = world
        self.rules: dict[bytes, list[Rule]] = {vip.packed: [] for vip in world.vips}
        for rule in world.rules:
            self.rules[rule.vip.packed].append(rule)
        self.vips = tuple(self.rules)
        self.hot = {4: [self.rng.randbytes(4) for _ in range(HOT_CLIENTS)]}
        self.hot[6] = [self.rng.randbytes(16) for _ in range(HOT_CLIENTS)]
        self.socket: Socket | None = None
        kinds: tuple[tuple[Callable[[bytes], bytes], int], ...] = (
            (self._plain, 50),
            (self._fragment, 14),
            (self._icmp_error, 14),
            (self._echo, 4),
            (self._other, 4),
            (self._neighbour, 12),
            (self._noise, 2),
        )
        self.kinds = [kind for kind, weight in kinds for _ in range(weight)]

    def arrival(self) -> Arrival:
        """The next frame."""
        rng = self.rng
        self.socket = None
        vip = rng.choice(self.vips)
        frame = rng.choice(self.kinds)(vip)
        damage = rng.random()
        if damage < 0.06:
            frame = frame[: max(14, rng.randrange(len(frame)))]
        elif damage < 0.12:
            frame = self._flip(frame)
        elif damage < 0.2:
            frame += rng.randbytes(rng.randrange(1, 40))
        foreign = rng.random() < 0.01
        return Arrival(frame, 77 if foreign else IFINDEX, self.socket, rng.random() > 0.05)

    def _flip(self, frame: bytes) -> bytes:
        """A few bits of the headers fall over."""
        damaged = bytearray(frame)
        for _ in range(self.rng.choice((1, 1, 2, 6))):
            damaged[self.rng.randrange(12, max(13, min(len(frame), 130)))] ^= 1 << self.rng.randrange(8)
        return bytes(damaged)

    def _client(self, vip: bytes) -> bytes:
        version = 4 if len(vip) == 4 else 6
        choice = self.rng.random()
        if choice < 0.6:
            return self.rng.choice(self.hot[version])
        return vip if choice < 0.61 else self.rng.randbytes(len(vip))

    def _ports(self, vip: bytes, protocol: int = 0) -> tuple[int, int, int]:
        """Protocol, client's port and VIP's port: mostly of a rule."""
        rng = self.rng
        choice = rng.random()
        if choice < 0.85 and self.rules[vip]:
            rule = rng.choice(self.rules[vip])
            if not protocol or PROTOCOL_NUMBER[rule.protocol] == protocol:
                edge = rng.choice((rule.ports[0], rule.ports[0], rule.ports[-1], rng.choice(rule.ports)))
                edge += rng.choice((-1, 1)) if len(rule.ports) > 1 and rng.random() < 0.05 else 0
                return PROTOCOL_NUMBER[rule.protocol], rng.randrange(65536), edge & 0xFFFF
        port = 0 if choice > 0.97 else rng.randrange(65536)
        return protocol or rng.choice((TCP, UDP)), rng.randrange(0, 65536), port

    def _ether(self, kind: int, payload: bytes) -> bytes:
        rng = self.rng
        to = rng.choice((VIRTUAL_MAC, VIRTUAL_MAC, NODE_MAC, b"\xff" * 6))
        by = (b"\x01" if rng.random() < 0.02 else b"\x02") + rng.randbytes(5)
        if rng.random() < 0.3:
            by = MARKER + bytes((rng.randrange(4), rng.choice((0, 1, 2, 7, 8, 9, 0x7F)) | rng.choice((0, 0x80))))
        tags = b""
        if rng.random() < 0.25:
            for _ in range(rng.choice((1, 1, 2, 2, 3))):
                tags += rng.choice((b"\x81\0", b"\x88\xa8")) + rng.randbytes(2)
        return to + by + tags + struct.pack("!H", kind) + payload

    def _ip(self, source: bytes, to: bytes, protocol: int, payload: bytes, fragment: tuple[int, int] = (0, 0)) -> bytes:
        """A packet; `fragment` = (datagram, offset in 8 bytes with bit 15 for "more")."""
        rng = self.rng
        ident, offset = fragment
        if not offset and rng.random() < 0.5:
            ident = rng.randrange(65536)
        if rng.random() < 0.02:
            to = rng.randbytes(len(to))
        if len(to) == 4:
            options = rng.randbytes(4 * rng.choice((1, 2, 10))) if rng.random() < 0.12 else b""
            header, length = 5 + len(options) // 4, 20 + len(options) + len(payload)
            field = (offset & 0x1FFF) | (0x2000 if offset >> 15 else rng.choice((0, 0x4000)))
            first = struct.pack("!BxHHHBB2x", 0x40 | header, length & 0xFFFF, ident & 0xFFFF, field, 64, protocol)
            return self._ether(0x0800, first + source + to + options + payload)
        following, chain = self._chain(protocol, fragment)
        first = struct.pack("!IHBB", 6 << 28, len(chain + payload) & 0xFFFF, following, 64)
        return self._ether(0x86DD, first + source + to + chain + payload)

    def _chain(self, protocol: int, fragment: tuple[int, int]) -> tuple[int, bytes]:
        """Extension headers, now and then too many or too long: the type of the first, and all of them."""
        rng = self.rng
        if rng.random() < 0.04:
            return self._far(protocol, fragment)
        kinds: list[int] = []
        if rng.random() < 0.15:
            kinds = [rng.choice((HOP_BY_HOP, ROUTING, OPTIONS, AH)) for _ in range(rng.choice((1, 1, 2, 5, 6, 7)))]
        if fragment[1] or rng.random() < 0.02:
            kinds.insert(rng.randrange(len(kinds) + 1), FRAGMENT)
        chain, following = b"", protocol
        long = rng.random() < 0.2
        for kind in reversed(kinds):
            chain = self._extension(kind, following, fragment, long) + chain
            following = kind
        return following, chain

    def _far(self, protocol: int, fragment: tuple[int, int]) -> tuple[int, bytes]:
        """A chain that ends about where the filter stops looking."""
        chain, following = b"", protocol
        if fragment[1] or self.rng.random() < 0.5:
            chain, following = self._extension(FRAGMENT, protocol, fragment, long=False), FRAGMENT
        units = self.rng.randrange(117, 123)
        return OPTIONS, struct.pack("!BB", following, units) + bytes((units + 1) * 8 - 2) + chain

    def _extension(self, kind: int, following: int, fragment: tuple[int, int], long: bool) -> bytes:
        rng = self.rng
        if kind == FRAGMENT:
            ident, offset = fragment
            return struct.pack("!BxHI", following, (offset & 0x1FFF) << 3 | offset >> 15, ident)
        units = rng.choice((0, 1, 24, 26, 30)) if long else rng.choice((0, 0, 1, 3))
        bytes_ = (units + 2) * 4 if kind == AH else (units + 1) * 8
        return struct.pack("!BB", following, units) + bytes(max(bytes_, 8) - 2)

    def _segment(self, protocol: int, cport: int, vport: int) -> bytes:
        rng = self.rng
        data = rng.randbytes(rng.choice((0, 0, 0, 1, 40)))
        if protocol == UDP:
            return struct.pack("!HHH2x", cport, vport, 8 + len(data)) + data
        words = rng.choice((5, 5, 5, 5, 8, 15, 0, 4))
        ack = rng.randrange(1 << 32)
        if self.socket is not None and rng.random() < 0.7:
            ack = self.socket.snt_isn + 1 & 0xFFFFFFFF
        options = bytes(max(0, words * 4 - 20))
        return struct.pack("!HHIIBB6x", cport, vport, 7, ack, words << 4, rng.choice(FLAGS)) + options + data

    def _open_socket(self, client: bytes, cport: int, vip: bytes, vport: int) -> None:
        """Perhaps the node has a socket for this connection, or for one that is nearly this."""
        rng = self.rng
        if rng.random() < 0.4:
            return
        off = rng.random() < 0.1
        number = rng.choice((0, 0xFFFFFFFF, rng.randrange(1 << 32)))
        self.socket = Socket(rng.choice(STATES), (client, cport ^ off, vip, vport), number, number)

    def _plain(self, vip: bytes) -> bytes:
        client = self._client(vip)
        protocol, cport, vport = self._ports(vip)
        if protocol == TCP:
            self._open_socket(client, cport, vip, vport)
        return self._ip(client, vip, protocol, self._segment(protocol, cport, vport))

    def _fragment(self, vip: bytes) -> bytes:
        """A piece of one of few datagrams, so that first and later ones meet; sometimes of an ICMP message."""
        rng = self.rng
        client = rng.choice(self.hot[4 if len(vip) == 4 else 6][:8])
        ident = rng.randrange(16)
        where = rng.choice((0x8000, 0x8000, 150, 0x8000 | 150, 0x8001, 1, 0x1FFF))
        choice = rng.random()
        if choice < 0.8:
            protocol, cport, vport = self._ports(vip)
            payload = self._segment(protocol, cport, vport)
        elif choice < 0.9:
            protocol = ICMP if len(vip) == 4 else ICMP6
            payload = self._error_message(vip, client)
        else:
            protocol, payload = rng.choice((ICMP, ICMP6, 47, OPTIONS)), rng.randbytes(40)
        return self._ip(client, vip, protocol, payload, (ident, where))

    def _error_message(self, vip: bytes, client: bytes) -> bytes:
        """An ICMP error about what the VIP, or hardly ever somebody else, sent to the client."""
        rng = self.rng
        protocol, cport, vport = self._ports(vip)
        if protocol == TCP:
            self._open_socket(client, cport, vip, vport)
        elif rng.random() < 0.2:
            protocol = rng.choice((ICMP, ICMP6, 47))
        types = (3, 3, 11, 12, 4, 5) if len(vip) == 4 else (1, 2, 2, 3, 4, 5)
        sender = rng.randbytes(len(vip)) if rng.random() < 0.05 else vip
        fragment = (rng.randrange(4), rng.choice((0x8000, 150))) if rng.random() < 0.1 else (0, 0)
        keep, self.rng = self.rng, random.Random(rng.getrandbits(32))
        inner = self._ip(sender, client, protocol, self._segment(protocol, vport, cport), fragment)
        self.rng = keep
        ip_begins = inner.index(b"\x08\0" if len(vip) == 4 else b"\x86\xdd", 12) + 2
        inner = inner[ip_begins:]
        if rng.random() < 0.5:
            inner = inner[: rng.choice((28, 48, 24, 60))]
        return struct.pack("!BB2x4x", rng.choice(types), rng.randrange(5)) + inner

    def _icmp_error(self, vip: bytes) -> bytes:
        router = self._client(vip)
        protocol = ICMP if len(vip) == 4 else ICMP6
        return self._ip(router, vip, protocol, self._error_message(vip, self._client(vip)))

    def _echo(self, vip: bytes) -> bytes:
        request = 8 if len(vip) == 4 else 128
        protocol = ICMP if (len(vip) == 4) != (self.rng.random() < 0.05) else ICMP6
        return self._ip(self._client(vip), vip, protocol, bytes((request, 0, 0, 0, 0, 7, 0, 1)) + bytes(8))

    def _other(self, vip: bytes) -> bytes:
        """Protocols without ports; and IPv6 packets to the mapped form of an IPv4 address, which is no address."""
        rng = self.rng
        if len(vip) == 4 and rng.random() < 0.3:
            mapped = bytes(10) + b"\xff\xff" + vip
            return self._ip(rng.randbytes(16), mapped, TCP, self._segment(TCP, 1, 80))
        return self._ip(self._client(vip), vip, rng.randrange(256), rng.randbytes(rng.randrange(40)))

    def _neighbour(self, vip: bytes) -> bytes:
        return self._arp(vip) if len(vip) == 4 else self._solicitation(vip)

    def _arp(self, vip: bytes) -> bytes:
        rng = self.rng
        head = b"\0\1\x08\0\6\4" if rng.random() < 0.95 else rng.randbytes(6)
        operation = rng.choice((b"\0\1", b"\0\1", b"\0\1", b"\0\2", rng.randbytes(2)))
        sender = rng.choice((self._client(vip), bytes(4), vip))
        target = vip if rng.random() < 0.9 else rng.randbytes(4)
        asker = rng.choice((rng.randbytes(6), rng.choice(tuple(NODES.values()))))
        payload = head + operation + asker + sender + bytes(6) + target
        return self._ether(0x0806, payload + bytes(rng.choice((0, 18))))

    def _solicitation(self, vip: bytes) -> bytes:
        rng = self.rng
        target = vip if rng.random() < 0.9 else rng.randbytes(16)
        group = ip_address("ff02::1:ff00:0").packed[:13] + target[13:]
        to = rng.choice((group, group, vip, rng.randbytes(16), ip_address("ff02::1").packed))
        source = rng.choice((self._client(vip), bytes(16)))
        options = rng.choice((b"", b"\1\1" + rng.randbytes(6), rng.randbytes(8 * rng.randrange(4))))
        kind = rng.choice((135, 135, 135, 135, 136, 133))
        message = bytes((kind, rng.random() < 0.03, 0, 0, 0, 0, 0, 0)) + target + options
        hops = 255 if rng.random() < 0.9 else 64
        version = 6 if rng.random() < 0.98 else 4
        header = struct.pack("!IHBB", version << 28, len(message), ICMP6, hops)
        return self._ether(0x86DD, header + source + to + message)

    def _noise(self, vip: bytes) -> bytes:
        rng = self.rng
        kind = rng.choice((0x0800, 0x86DD, 0x0806, 0x8100, rng.randrange(65536)))
        payload = bytearray(rng.randbytes(rng.randrange(120)))
        for at in (16, 24):
            payload[at : at + len(vip)] = vip
        return self._ether(kind, bytes(payload))
