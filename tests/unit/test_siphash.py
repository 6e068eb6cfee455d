# SPDX-License-Identifier: Apache-2.0
"""SipHash-1-3 against a second implementation, which in turn is held against published vectors."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farmd.dataplane.hash import bucket_of as dataplane_bucket_of
from farmd.model.buckets import BUCKETS
from farmd.model.rules import Affinity
from farmd.model.siphash import bucket_of, client_message, factors, shortened, siphash13

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


def shorten(key: bytes, address: bytes) -> int:
    """Pair-multiply-shift, straight from the paper, over the second implementation's SipHash."""
    factors = [siphash(key, b"address" + bytes([number]), 1, 3) for number in range(5)]
    words = [int.from_bytes(address[at : at + 4], "little") for at in range(0, 16, 4)]
    pairs = [(factors[i] + words[i]) * (factors[i + 1] + words[i + 1]) for i in (0, 2)]
    return (sum(pairs) + factors[4]) % 2**64 // 2**32


def test_what_of_a_client_is_hashed() -> None:
    client = ip_address("203.0.113.7")
    assert client_message(KEY, Affinity.CLIENT_IP, client, 4711) == bytes([203, 0, 113, 7, 0, 0])
    assert client_message(KEY, Affinity.CLIENT_IP_PORT, client, 0x1267) == bytes([203, 0, 113, 7, 0x12, 0x67])
    assert client_message(KEY, Affinity.PACKET_ID, client, 0x1267) == bytes([203, 0, 113, 7, 0x12, 0x67])
    assert client_message(KEY, Affinity.CLIENT_NETWORK, client, 0x1267) == bytes([203, 0, 113, 0, 0, 0])
    six = ip_address("2001:db8::7")
    short = shorten(KEY, six.packed).to_bytes(4, "little")
    assert client_message(KEY, Affinity.CLIENT_IP, six, 0x1267) == short + bytes([0, 0, 6])
    assert client_message(KEY, Affinity.CLIENT_IP_PORT, six, 0x1267) == short + bytes([0x12, 0x67, 6])
    network = shorten(KEY, ip_address("2001:db8::").packed).to_bytes(4, "little")
    assert client_message(KEY, Affinity.CLIENT_NETWORK, six, 0x1267) == network + bytes([0, 0, 6])


GOLDEN = [
    (Affinity.CLIENT_IP, "203.0.113.7", 0, 413),
    (Affinity.CLIENT_IP_PORT, "203.0.113.7", 51514, 77),
    (Affinity.CLIENT_NETWORK, "203.0.113.7", 0, 1023),
    (Affinity.PACKET_ID, "203.0.113.7", 4711, 1621),
    (Affinity.CLIENT_IP, "2001:db8::7", 0, 2754),
    (Affinity.CLIENT_IP_PORT, "2001:db8::7", 51514, 3127),
    (Affinity.CLIENT_NETWORK, "2001:db8::7", 0, 1970),
]
"""Nodes of different versions must agree on these: change them only together with FARM_ABI_VERSION."""


@pytest.mark.parametrize(("affinity", "client", "extra", "bucket"), GOLDEN)
def test_buckets_stay_what_they_were(affinity: Affinity, client: str, extra: int, bucket: int) -> None:
    assert bucket_of(KEY, affinity, ip_address(client), extra) == bucket
    assert dataplane_bucket_of(KEY, affinity, ip_address(client), extra) == bucket


@settings(derandomize=True)
@given(st.binary(min_size=16, max_size=16), st.ip_addresses(), st.integers(0, 65535), st.sampled_from(Affinity))
def test_the_c_agrees_with_the_model(
    key: bytes, client: IPv4Address | IPv6Address, extra: int, affinity: Affinity
) -> None:
    assert dataplane_bucket_of(key, affinity, client, extra) == bucket_of(key, affinity, client, extra)
    if client.version == 6:
        assert shortened(factors(key), client.packed) == shorten(key, client.packed)


def eui64(number: int) -> int:
    """An interface identifier that a MAC address of one vendor makes (RFC 4291, appendix A)."""
    return 0x0219B9FFFE000000 | number


CLIENTS = {
    "IPv4, one after another": lambda n: ip_address(0x0A000000 + n),
    "IPv4, one a network": lambda n: ip_address((0x0A000000 + n * 256) % 2**32),
    "IPv6, one after another in a /64": lambda n: ip_address((0x20010DB8 << 96) + n),
    "IPv6, a /64 each": lambda n: ip_address((0x20010DB8 << 96) + (n << 64) + 1),
    "IPv6, a /64 each, by network": lambda n: ip_address((0x20010DB8 << 96) + (n << 64) + 1),
    "IPv6, EUI-64 in a /64": lambda n: ip_address((0x20010DB8 << 96) + eui64(n)),
    "IPv6, EUI-64 in a /64 each": lambda n: ip_address((0x20010DB8 << 96) + (n << 64) + eui64(n * 77)),
    "IPv6, high bits of both halves": lambda n: ip_address((n << 112 | n << 48) % 2**128),
}


@pytest.mark.parametrize("kind", CLIENTS)
def test_clients_spread_over_all_buckets(kind: str) -> None:
    """Chi-square over 4096 buckets at 16 clients each. Its mean is 4095, its deviation 90.5: five of them is never."""
    affinity = Affinity.CLIENT_NETWORK if "by network" in kind else Affinity.CLIENT_IP
    clients, expected = 16 * BUCKETS, 16
    for key in (KEY, b"another key 1234", bytes(16)):
        counts = [0] * BUCKETS
        for number in range(clients):
            counts[dataplane_bucket_of(key, affinity, CLIENTS[kind](number), 0)] += 1
        chi_square = sum((count - expected) ** 2 for count in counts) / expected
        assert abs(chi_square - 4095) < 5 * 90.5


def test_no_two_of_many_similar_addresses_meet_more_often_than_chance() -> None:
    secret = factors(KEY)
    short = {shortened(secret, ip_address((0x20010DB8 << 96) + (n << 64) + eui64(n)).packed) for n in range(50_000)}
    assert len(short) >= 50_000 - 5  # of so many, 0.3 pairs meet on average
