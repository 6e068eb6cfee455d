# SPDX-License-Identifier: Apache-2.0
"""Which node the kernel's peers give a client to: the hash of nftables' `jhash` and of the iptables `cluster` match.

Both take Bob Jenkins' lookup3 of the client's address and scale it to the number of nodes. Source: Jenkins, "lookup3.c"
(2006), as Linux has it in <linux/jhash.h>; `reciprocal_scale` in <linux/kernel.h>.
"""

from __future__ import annotations

_MASK = 0xFFFFFFFF
_INITIAL = 0xDEADBEEF
_FINAL = ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24))
"""lookup3's `final`: the word that changes, the word that it is mixed with, and by how many bits that is rotated."""


def jhash(address: bytes, seed: int) -> int:
    """lookup3 of the four bytes of an IPv4 address; 32 bits."""
    if len(address) != 4:
        raise ValueError(f"an IPv4 address has 4 bytes, not {len(address)}")
    start = (_INITIAL + 4 + seed) & _MASK
    words = [(start + int.from_bytes(address, "little")) & _MASK, start, start]
    for changed, other, bits in _FINAL:
        rotated = (words[other] << bits | words[other] >> (32 - bits)) & _MASK
        words[changed] = ((words[changed] ^ words[other]) - rotated) & _MASK
    return words[2]


def node_of(address: bytes, seed: int, nodes: int) -> int:
    """The node, from 0, that a client belongs to."""
    return jhash(address, seed) * nodes >> 32
