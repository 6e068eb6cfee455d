# SPDX-License-Identifier: Apache-2.0
"""The few frames that the lab sends and recognises: TCP SYNs and their answers, over IPv4 and IPv6. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, ip_address

from farmd.model.rules import Address

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_TCP = 6
_MSS_OPTION = bytes.fromhex("020405b4")
_TCP_BYTES = 20 + len(_MSS_OPTION)


@dataclass(frozen=True, slots=True)
class Flow:
    """A client's connection by its four names."""

    client: Address
    port: int
    vip: Address
    vport: int

    def __str__(self) -> str:
        return f"{self.client} port {self.port} to {self.vip} port {self.vport}"


@dataclass(frozen=True, slots=True)
class Segment:
    """What we read of a TCP segment with the SYN flag. `client` is who sent the SYN, whichever way this one goes."""

    flow: Flow
    answer: bool
    """Whether it is a SYN-ACK."""
    sequence: int
    """The SYN's sequence number; from an answer, the number that it acknowledges less one."""
    source_mac: bytes


def syn_frame(flow: Flow, sequence: int, source_mac: bytes, target_mac: bytes) -> bytes:
    """A whole Ethernet frame with a SYN of `flow`."""
    head = struct.pack("!HHIIBBHHH", flow.port, flow.vport, sequence, 0, _TCP_BYTES // 4 << 4, SYN, 64240, 0, 0)
    source, target = flow.client.packed, flow.vip.packed
    pseudo = source + target + struct.pack("!IHBB", _TCP_BYTES, 0, 0, _TCP)
    total = checksum(pseudo + head + _MSS_OPTION)
    tcp = head[:16] + struct.pack("!HH", total, 0) + _MSS_OPTION
    if flow.vip.version == 4:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, _TCP, 0) + source + target
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    else:
        ip = struct.pack("!IHBB", 6 << 28, len(tcp), _TCP, 64) + source + target
    return target_mac + source_mac + struct.pack("!H", _ETHERTYPE[flow.vip.version]) + ip + tcp


def read_syn(frame: bytes) -> Segment | None:
    """The segment in `frame` if it is TCP with the SYN flag, without fragments, tags or extension headers."""
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == _ETHERTYPE[4] and len(frame) >= 54 and frame[23] == _TCP:
        source, target, at = frame[26:30], frame[30:34], 14 + (frame[14] & 0xF) * 4
    elif ethertype == _ETHERTYPE[6] and len(frame) >= 74 and frame[20] == _TCP:
        source, target, at = frame[22:38], frame[38:54], 54
    else:
        return None
    if len(frame) < at + 20 or not frame[at + 13] & SYN:
        return None
    sport, dport, sequence, acknowledged = struct.unpack_from("!HHII", frame, at)
    if frame[at + 13] & ACK:
        flow = Flow(_address(target), dport, _address(source), sport)
        return Segment(flow, True, (acknowledged - 1) & 0xFFFFFFFF, frame[6:12])
    return Segment(Flow(_address(source), sport, _address(target), dport), False, sequence, frame[6:12])


@dataclass(frozen=True, slots=True)
class Announcement:
    """An ARP reply or a Neighbour Advertisement: who said which MAC an address has."""

    address: Address
    announced_mac: bytes
    source_mac: bytes


def read_announcement(frame: bytes) -> Announcement | None:
    """The announcement in `frame` if it is one. An advertisement must carry its MAC first."""
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == 0x0806 and len(frame) >= 42 and frame[20:22] == b"\0\2":
        return Announcement(IPv4Address(frame[28:32]), frame[22:28], frame[6:12])
    if ethertype == _ETHERTYPE[6] and len(frame) >= 86 and frame[20] == 58 and frame[54] == 136 and frame[78] == 2:
        return Announcement(_address(frame[62:78]), frame[80:86], frame[6:12])
    return None


@lru_cache(maxsize=1024)
def _address(packed: bytes) -> Address:
    return ip_address(packed)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# Classic BPF, because a capture that wakes Python for every frame of a loaded switch would be the load itself.
_LDB, _LDH, _LDX_HEADER, _LDB_X, _JEQ, _JSET, _RET = 0x30, 0x28, 0xB1, 0x50, 0x15, 0x45, 0x06
_WANTED = (
    # (label, operation, operand, label if true, label if false); "" is the next line
    ("", _LDH, 12, "", ""),
    ("", _JEQ, 0x0806, "keep", ""),
    ("", _JEQ, 0x0800, "", "six"),
    ("", _LDB, 23, "", ""),
    ("", _JEQ, _TCP, "", "drop"),
    ("", _LDX_HEADER, 14, "", ""),
    ("", _LDB_X, 14 + 13, "", ""),
    ("", _JSET, SYN, "keep", "drop"),
    ("six", _JEQ, 0x86DD, "", "drop"),
    ("", _LDB, 20, "", ""),
    ("", _JEQ, 58, "keep", ""),
    ("", _JEQ, _TCP, "", "drop"),
    ("", _LDB, 54 + 13, "", ""),
    ("", _JSET, SYN, "keep", "drop"),
    ("keep", _RET, 0x40000, "", ""),
    ("drop", _RET, 0, "", ""),
)


def capture_filter() -> bytes:
    """A classic BPF program (array of `struct sock_filter`) that keeps SYNs, ARP and Neighbour Discovery."""
    lines = {label: line for line, (label, *_) in enumerate(_WANTED) if label}
    program = b""
    for line, (_, operation, operand, yes, no) in enumerate(_WANTED):
        jumps = [lines[label] - line - 1 if label else 0 for label in (yes, no)]
        program += struct.pack("HBBI", operation, *jumps, operand)
    return program
