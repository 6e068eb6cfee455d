# SPDX-License-Identifier: Apache-2.0
"""The bucket of a client, by the same C as the filter's: the fast twin of `farmd.model.siphash.bucket_of`."""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import Any

from farmd.dataplane._libbpf import ffi, lib
from farmd.model.rules import Address, Affinity
from farmd.model.siphash import network_of


def bucket_of(key: bytes, affinity: Affinity, client: Address, extra: int) -> int:
    """The bucket of a packet from `client` under the farm's 16-byte `key`.

    `extra` is its source port with the affinity `client-ip-port`, its identification with `packet-id`.
    """
    if affinity is Affinity.CLIENT_NETWORK:
        client = network_of(client)
    told = socket.htons(extra) if affinity in (Affinity.CLIENT_IP_PORT, Affinity.PACKET_ID) else 0
    packed = client.packed
    if len(packed) == 4:
        return int(lib.farm_bucket_of_ipv4(_prepared(key), int.from_bytes(packed, "little"), told))
    return int(lib.farm_bucket_of_ipv6(_prepared(key), ffi.from_buffer("uint64_t[2]", packed), told))


@lru_cache(maxsize=16)
def _prepared(key: bytes) -> Any:
    if len(key) != 16:
        raise ValueError(f"a SipHash key has 16 bytes, not {len(key)}")
    made = ffi.new("struct farm_hash *")
    lib.farm_prepare_hash(ffi.from_buffer("uint64_t[2]", key), made)
    return made
