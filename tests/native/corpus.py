# SPDX-License-Identifier: Apache-2.0
"""Seeds for the fuzzer: the frames of the packet tests, and some from the generator."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import product

from tests.native.packets import Generator
from tests.native.sockets import State
from tests.native.worlds import WORLDS
from tests.packet import test_decision, test_headers, test_neighbours, test_sockets

GENERATED = 60
"""For each farm."""


def rows() -> Iterator[list[bytes]]:
    """The frames of each row of the packet tests' tables."""
    for version in (4, 6):
        for kind in (*test_decision.FLAGS, "udp", "echo"):
            for port in (80, 8080):
                yield [test_decision.packet(kind, version, port)]
    for table in (test_headers.WELL_FORMED, test_headers.ERRORS):
        yield from ([bytes(packet)] for packet, _ in table.values())
    for lies in (test_headers.LYING, test_headers.UNKNOWN):
        yield from ([bytes(packet)] for packet in lies.values())
    yield from ([test_headers.chain(length)] for length in range(8))
    yield test_headers.TestFragments.pieces()
    yield [test_neighbours.arp()]
    yield from ([frame] for frame in test_neighbours.ARP_OF_OTHERS.values())
    yield from ([question] for question, _ in test_neighbours.ND.values())


def packed(frames: Sequence[bytes], farm: int = 0, split: int = 0, socket: int = 0, socket_at: int = 0) -> bytes:
    """An input of `fuzz.c`: which farm, how its buckets are shared out, and the state of a socket on one node."""
    head = bytes((farm, split, 0, socket, 0, 0, 0, socket_at))
    return head + b"".join(struct.pack("<H", min(len(frame), 2047)) + frame[:2047] for frame in frames)


def seeds() -> Iterator[bytes]:
    """All seeds."""
    for number, frames in enumerate(rows()):
        yield packed(frames)
        yield packed(frames, split=1, socket=1 + number % 12)
    for version, flags, state, socket_at in product((4, 6), ("S", "A", "FA"), State, range(3)):
        segments = [test_sockets.segment(version, cport, flags) for cport in range(41000, 41004)]
        yield packed(segments, split=1, socket=state, socket_at=socket_at)
    for farm, world in enumerate(WORLDS):
        generator = Generator(world, "corpus")
        for number in range(GENERATED):
            yield packed([generator.arrival().frame for _ in range(2)], farm, number % 8, number % 13)
