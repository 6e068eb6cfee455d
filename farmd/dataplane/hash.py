# SPDX-License-Identifier: Apache-2.0
"""The bucket of a client, by the same C as the filter's: the fast twin of `farmd.model.siphash.bucket_of`."""

from __future__ import annotations

import socket

from farmd.dataplane._libbpf import ffi, lib
from farmd.model.rules import Address, Affinity


def bucket_of(key: bytes, affinity: Affinity, client: Address, port: int) -> int:
    """The bucket of a packet from `client` and its source `port` under the farm's 16-byte `key`."""
    if len(key) != 16:
        raise ValueError(f"a SipHash key has 16 bytes, not {len(key)}")
    words = ffi.from_buffer("uint64_t[2]", key)
    port = socket.htons(port) if affinity is Affinity.CLIENT_IP_PORT else 0
    packed = client.packed
    if len(packed) == 4:
        return int(lib.farm_bucket_of_ipv4(words, int.from_bytes(packed, "little"), port))
    return int(lib.farm_bucket_of_ipv6(words, ffi.from_buffer("uint64_t[2]", packed), port))
