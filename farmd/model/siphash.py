# SPDX-License-Identifier: Apache-2.0
"""SipHash-1-3, and a client's bucket: the oracle for the C in `ebpf/siphash.h`.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), with one compression and three finalisation
rounds.
"""

from __future__ import annotations

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


def client_message(affinity: Affinity, client: Address, port: int) -> bytes:
    """What is hashed for a client: address and port in network order, 6 or 18 bytes. `client-ip` hashes port 0."""
    return client.packed + (port if affinity is Affinity.CLIENT_IP_PORT else 0).to_bytes(2, "big")


def bucket_of(key: bytes, affinity: Affinity, client: Address, port: int) -> int:
    """The bucket of a client's packet: SipHash-1-3 modulo `BUCKETS`."""
    return siphash13(key, client_message(affinity, client, port)) % BUCKETS
