# SPDX-License-Identifier: Apache-2.0
"""The arbiter: one register with compare-and-swap, which says whose data is the mirror's.

The rule that everything rests on: a node serves, or goes on alone, only after it moved the register from the
generation of its own data to a new one that it made. Of two nodes that try the same, one fails.

Three arbiters keep the same register. A *witness* is a third machine: it grants whatever matches. The *operator's*
arbiter is for two nodes without a third; each node has a copy of the register in a file, and only two things move it:
a primary that goes on alone, and the administrator's word. Later the farm's view will be a third.
With the operator's arbiter the safety of a promotion rests on the administrator having made sure that the other
node is down, and the text of the refusal says so.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum

from farmd.mirror.generation import BLANK, Generation
from farmd.model.nodes import NodeId

_FILE = struct.Struct("<8sH6xQQQB7x16s")
_CRC = struct.Struct("<I")
_MAGIC = b"FARMARBR"
_VERSION = 1
FILE_BYTES = _FILE.size + _CRC.size
NOBODY = NodeId(255)


class Occasion(StrEnum):
    """Why a node claims the register."""

    START = "start"
    """It wants to become primary."""
    ALONE = "alone"
    """It is primary, lost its peer, and wants to go on."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A compare-and-swap. It is made durable before it is sent, and repeated, never replaced, until it is answered.

    So a node that crashed between the register's move and its own record recognises its own generation.
    """

    expected: Generation
    new: Generation
    occasion: Occasion
    forced: bool = False
    """The administrator accepted the loss: granted whenever `new` is newer than the register."""


@dataclass(frozen=True, slots=True)
class Register:
    """What the arbiter holds. `moves` counts the changes, to tell two copies of a file apart."""

    generation: Generation = BLANK
    holder: NodeId = NOBODY
    moves: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The arbiter's answer, and the register after it."""

    granted: bool
    register: Register


def decide(register: Register, claim: Claim, node: NodeId) -> Answer:
    """A witness's decision, which its owner makes durable before it is told to anybody.

    A claim that was granted before is granted again: the first answer may have been lost.
    """
    if register.generation == claim.new:
        return Answer(True, register)
    matches = register.generation == claim.expected
    newer = claim.new.epoch > register.generation.epoch
    if newer and (matches or claim.forced):
        return Answer(True, Register(claim.new, node, register.moves + 1))
    return Answer(False, register)


def decide_by_operator(register: Register, claim: Claim, node: NodeId, *, ordered: bool) -> Answer:
    """The decision of the operator's arbiter on `node`'s own copy of the register.

    `ordered`: the administrator gave this very order and said that the other node does not serve. Without it only a
    running primary moves the register, when it lost its peer.
    """
    if register.generation != claim.new and not ordered and claim.occasion is not Occasion.ALONE:
        return Answer(False, register)
    return decide(register, claim, node)


def followed(register: Register, generation: Generation, node: NodeId) -> Register:
    """The operator's register on a node that was brought up to date: its copy follows the data."""
    if generation.epoch > register.generation.epoch:
        return Register(generation, node, register.moves + 1)
    return register


def encode_register(mirror: bytes, register: Register) -> bytes:
    """The file's content. It is replaced as a whole (write, sync, rename, sync the folder)."""
    generation = register.generation
    body = _FILE.pack(_MAGIC, _VERSION, generation.epoch, generation.tag, register.moves, register.holder, mirror)
    return body + _CRC.pack(zlib.crc32(body))


def decode_register(mirror: bytes, data: bytes) -> Register:
    """Read the file of `mirror`'s register. Raises ValueError with the cause when it cannot be trusted."""
    if len(data) != FILE_BYTES:
        raise ValueError(f"it has {len(data)} bytes, not {FILE_BYTES}")
    body, checksum = data[: _FILE.size], _CRC.unpack(data[_FILE.size :])[0]
    if zlib.crc32(body) != checksum:
        raise ValueError("its checksum is wrong")
    magic, version, epoch, tag, moves, holder, owner = _FILE.unpack(body)
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(f"it is not a register of version {_VERSION}")
    if owner != mirror:
        raise ValueError("it belongs to another mirror")
    return Register(Generation(epoch, tag), NodeId(holder), moves)
