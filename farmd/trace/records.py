# SPDX-License-Identifier: Apache-2.0
"""What the probes hand over, as values. Pure. Mirrors `struct record` of `probes.c`."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address

from farmd.model.rules import Address
from farmd.trace.packets import Packet
from farmd.trace.program import HEAD_BYTES, Kind

_RECORD = struct.Struct(f"=QIIII{HEAD_BYTES}s")
_TUPLE = struct.Struct("=16s16sHH")


class Form(IntEnum):
    """What a record's head holds."""

    NONE = 0
    IP = 1
    TUPLE = 2


@dataclass(frozen=True, slots=True)
class Record:
    """One record. `at_ns` is CLOCK_MONOTONIC; `reason` the kernel's number for a dropped packet."""

    kind: Kind
    at_ns: int
    reason: int
    form: Form
    head: bytes


def decode(raw: bytes) -> Record:
    """The record in `raw`."""
    at_ns, kind, reason, captured, form, head = _RECORD.unpack_from(raw)
    captured = min(captured, HEAD_BYTES)
    return Record(Kind(kind), at_ns, reason, Form(form), head[:captured])


def connection(head: bytes) -> Packet:
    """The TCP connection in a record of form TUPLE, as a packet of this node's: from its own side to the other."""
    source, target, source_port, target_port = _TUPLE.unpack_from(head)
    return Packet(_address(source), source_port, _address(target), target_port, "tcp", "")


def _address(packed: bytes) -> Address:
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
