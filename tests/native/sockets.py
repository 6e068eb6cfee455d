# SPDX-License-Identifier: Apache-2.0
"""What a TCP socket of the node claims while its bucket moves: the oracle's half of `ebpf/sockets.h`."""

from __future__ import annotations

import struct
from enum import Enum, IntEnum, auto
from typing import NamedTuple

FIN, SYN, RST, ACK = 1, 2, 4, 16


class Segment(Enum):
    """What a packet means to connections."""

    DATAGRAM = auto()
    OPENING = auto()
    FOLLOWING = auto()
    REPORT = auto()
    """A TCP segment of ours that an ICMP error is about."""
    ORPHAN = auto()
    """A later fragment whose first one was not seen."""


class State(IntEnum):
    """The kernel's BPF_TCP_*."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


Ends = tuple[bytes, int, bytes, int]
"""Client, its port, VIP, its port."""


class Socket(NamedTuple):
    """A socket that the kernel finds for these ends."""

    state: State
    ends: Ends
    snt_isn: int = 0
    cookie: int = 0

    def packed(self) -> bytes:
        """A `struct socket_script`. The tuple is that of bpf_skc_lookup_tcp: addresses, then ports."""
        client, client_port, vip, vip_port = self.ends
        tuple_ = client + vip + struct.pack("!HH", client_port, vip_port)
        return struct.pack("<BB36sxxII", self.state, len(tuple_), tuple_, self.snt_isn, self.cookie)


NO_SOCKET = bytes(48)


def claims(socket: Socket | None, ends: Ends, segment: Segment, frame: bytes, at: int, length: int) -> str:
    """Say "socket" or "cookie" if the socket claims the TCP segment at `at` of `frame`, else nothing."""
    if socket is None or socket.ends != ends:
        return ""
    flags = ack = data = 0
    if segment is not Segment.REPORT:
        ack, data, flags = struct.unpack_from("!8xIBB", frame, at)
    if socket.state is State.LISTEN:
        pure = segment is Segment.FOLLOWING and flags & (SYN | RST | ACK) == ACK
        return "cookie" if pure and ack == (socket.cookie + 1) & 0xFFFFFFFF else ""
    if segment is Segment.REPORT:
        return "socket"
    if socket.state is State.NEW_SYN_RECV:
        answer = not flags & ACK or ack == (socket.snt_isn + 1) & 0xFFFFFFFF
        return "socket" if segment is Segment.FOLLOWING and answer else ""
    if socket.state is State.TIME_WAIT:
        speaks = flags & (FIN | RST) or length > (data >> 4) * 4
        return "socket" if segment is Segment.FOLLOWING and speaks else ""
    return "socket"
