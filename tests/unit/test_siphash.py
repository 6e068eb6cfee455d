# SPDX-License-Identifier: Apache-2.0
"""SipHash-1-3 against a second implementation, which in turn is held against published vectors."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farmd.model.buckets import BUCKETS
from farmd.model.rules import Affinity
from farmd.model.siphash import bucket_of, client_message, siphash13

KEY = bytes(range(16))
MASK = (1 << 64) - 1


def siphash(key: bytes, message: bytes, compression: int, finalisation: int) -> int:
    """SipHash-c-d over bytes, straight from the paper's description."""
    state = [0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573]
    for index, word in enumerate(struct.unpack("<2Q", key) * 2):
        state[index] ^= word

    def rotate(index: int, bits: int) -> None:
        state[index] = (state[index] << bits | state[index] >> 64 - bits) & MASK

    def mix(into: int, other: int, bits: int) -> None:
        state[into] = (state[into] + state[other]) & MASK
        rotate(other, bits)
        state[other] ^= state[into]

    def rounds(count: int) -> None:
        for _ in range(count):
            mix(0, 1, 13)
            rotate(0, 32)
            mix(2, 3, 16)
            mix(0, 3, 21)
            mix(2, 1, 17)
            rotate(2, 32)

    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        state[3] ^= word
        rounds(compression)
        state[0] ^= word
    state[2] ^= 0xFF
    rounds(finalisation)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def test_the_second_implementation_meets_the_papers_vector() -> None:
    assert siphash(KEY, bytes(range(15)), 2, 4) == 0xA129CA6149BE45E5


def test_the_published_vector_of_siphash_1_3() -> None:
    assert siphash13(KEY, b"") == 0xABAC0158050FC4DC


@settings(derandomize=True)
@given(st.binary(min_size=16, max_size=16), st.binary(max_size=40))
def test_both_implementations_agree(key: bytes, message: bytes) -> None:
    assert siphash13(key, message) == siphash(key, message, 1, 3)


def test_a_key_has_16_bytes() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        siphash13(b"short", b"")


def test_client_ip_ignores_the_port_and_client_ip_port_does_not() -> None:
    client = ip_address("203.0.113.7")
    assert client_message(Affinity.CLIENT_IP, client, 4711) == client_message(Affinity.CLIENT_IP, client, 0)
    assert client_message(Affinity.CLIENT_IP_PORT, client, 0x1267) == bytes([203, 0, 113, 7, 0x12, 0x67])
    six = ip_address("2001:db8::7")
    assert client_message(Affinity.CLIENT_IP_PORT, six, 0x1267) == six.packed + b"\x12\x67"


def test_buckets_are_spread_evenly() -> None:
    counts = [0] * 8
    for number in range(4096):
        address = ip_address(0x0A000000 + number)
        counts[bucket_of(KEY, Affinity.CLIENT_IP, address, 0) * 8 // BUCKETS] += 1
    assert max(counts) < 1.2 * min(counts)
