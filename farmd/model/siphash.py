# SPDX-License-Identifier: Apache-2.0
"""SipHash-1-3, and a client's bucket: the oracle for the C in `ebpf/siphash.h`.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), with one compression and three finalisation
rounds. IPv6 addresses are shortened first, by a universal hash under factors that come of the same key. A PRF of a
universal hash is a PRF, but for addresses that meet in the shorter form: among q of them some do with a probability
below q^2 / 2^33, and what it costs is that they share a bucket.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from farmd.model.buckets import BUCKETS
from farmd.model.rules import Address, Affinity

_MASK = (1 << 64) - 1


def _rotl(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (64 - bits))) & _MASK


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = (v0 + v1) & _MASK
    v1 = _rotl(v1, 13) ^ v0
    v0 = _rotl(v0, 32)
    v2 = (v2 + v3) & _MASK
    v3 = _rotl(v3, 16) ^ v2
    v0 = (v0 + v3) & _MASK
    v3 = _rotl(v3, 21) ^ v0
    v2 = (v2 + v1) & _MASK
    v1 = _rotl(v1, 17) ^ v2
    v2 = _rotl(v2, 32)
    return v0, v1, v2, v3


def siphash13(key: bytes, message: bytes) -> int:
    """SipHash-1-3 of `message` under a 16-byte `key`; 64 bits."""
    if len(key) != 16:
        raise ValueError(f"a SipHash key has 16 bytes, not {len(key)}")
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573
    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v3 ^= word
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@lru_cache(maxsize=16)
def factors(key: bytes) -> tuple[int, ...]:
    """The five secret factors of `shortened`, 64 bits each: SipHash-1-3 of "address" and the factor's number."""
    return tuple(siphash13(key, b"address" + bytes([number])) for number in range(5))


def shortened(secret: tuple[int, ...], address: bytes) -> int:
    """32 bits that stand for the 16 bytes of an IPv6 address: pair-multiply-shift over its four 32-bit words.

    For any two addresses, equal with probability 2^-32 over the choice of `secret`. Sources: Thorup, "High Speed
    Hashing for Integers and Strings" (2015), section 3.3, after Dietzfelbinger (1996); NH in Black, Halevi, Krawczyk,
    Krovetz and Rogaway, "UMAC" (1999).
    """
    words: tuple[int, int, int, int] = struct.unpack("<4I", address)
    first, second = (secret[0] + words[0]) * (secret[1] + words[1]), (secret[2] + words[2]) * (secret[3] + words[3])
    total = first + second + secret[4]
    return (total & _MASK) >> 32


def network_of(client: Address) -> Address:
    """The network of a client that `client-network` hashes: /24 of IPv4, /64 of IPv6, as its first address."""
    if isinstance(client, IPv4Address):
        return IPv4Address(int(client) & 0xFFFFFF00)
    return IPv6Address(int(client) >> 64 << 64)


def client_message(key: bytes, affinity: Affinity, client: Address, extra: int) -> bytes:
    """What is hashed for a client.

    IPv4: the address and `extra` in network order, 6 bytes. IPv6: `shortened` (little-endian), `extra` and the number
    6, 7 bytes, so that no client of one family stands for one of the other. `extra` is the client's port with
    `client-ip-port`, the packet's identification with `packet-id`, and counts as 0 with the others.
    """
    if affinity is Affinity.CLIENT_NETWORK:
        client = network_of(client)
    told = extra if affinity in (Affinity.CLIENT_IP_PORT, Affinity.PACKET_ID) else 0
    if isinstance(client, IPv4Address):
        return client.packed + told.to_bytes(2, "big")
    return struct.pack("<I", shortened(factors(key), client.packed)) + told.to_bytes(2, "big") + b"\6"


def bucket_of(key: bytes, affinity: Affinity, client: Address, extra: int) -> int:
    """The bucket of a client's packet: SipHash-1-3 of `client_message` modulo `BUCKETS`."""
    return siphash13(key, client_message(key, affinity, client, extra)) % BUCKETS
