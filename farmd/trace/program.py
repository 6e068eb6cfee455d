# SPDX-License-Identifier: Apache-2.0
"""What `probes.c` leaves open, as definitions in front of it: offsets, namespace, clients, bounds. Pure but for the
text of that file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from farmd.model.errors import KernelError
from farmd.model.rules import MAX_VIPS, Address
from farmd.trace.btf import Types

HEAD_BYTES = 160
"""Of each frame: enough for two tags, IPv6 with extension headers, and TCP with options."""
_RING_PAGES = 64
_WINDOWS_PER_S = 10
_LEAST_BURST = 20
"""In one window: a whole short connection, even at a low rate."""
_SOURCE = Path(__file__).with_name("probes.c")
_FIELDS = {
    "SKB_DEV": ("sk_buff", "dev"),
    "SKB_DST": ("sk_buff", "_skb_refdst"),
    "SKB_SK": ("sk_buff", "sk"),
    "DST_DEV": ("dst_entry", "dev"),
    "SKB_HEAD": ("sk_buff", "head"),
    "SKB_NETWORK": ("sk_buff", "network_header"),
    "DEVICE_NET": ("net_device", "nd_net.net"),
    "NET_INUM": ("net", "ns.inum"),
    "SOCK_NET": ("sock_common", "skc_net.net"),
    "SOCK_FAMILY": ("sock_common", "skc_family"),
    "SOCK_LOCAL": ("sock_common", "skc_rcv_saddr"),
    "SOCK_REMOTE": ("sock_common", "skc_daddr"),
    "SOCK_LOCAL6": ("sock_common", "skc_v6_rcv_saddr"),
    "SOCK_REMOTE6": ("sock_common", "skc_v6_daddr"),
    "SOCK_LOCAL_PORT": ("sock_common", "skc_num"),
    "SOCK_REMOTE_PORT": ("sock_common", "skc_dport"),
}
_FILTERS = ("do_xdp_generic", "netif_receive_generic_xdp", "veth_xdp_rcv_skb", "veth_xdp_rcv", "veth_poll")
"""The kernel's functions in which an XDP program runs on an skb (generic mode, and veth's native one), and from which
the frames it drops are freed."""


class Kind(IntEnum):
    """What a record tells."""

    STACK_DROP = 1
    RESET_SENT = 2
    RESET_RECEIVED = 3
    RETRANSMIT = 4


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look at: the number of the network namespace, VIPs, clients (None: all), and how many a second."""

    namespace: int
    vips: tuple[Address, ...]
    client: IPv4Network | IPv6Network | None
    events_per_s: int


def source(types: Types, symbols: Sequence[str], scope: Scope) -> str:
    """The whole program. `symbols` are lines of /proc/kallsyms. KernelError if this kernel lacks what it needs."""
    filters = code_of(_FILTERS, symbols)
    if not filters:
        cause = f"it does not tell where {_FILTERS[0]} is, so drops cannot be told apart"
        raise KernelError("kernel symbols", cause, "Run as root, with kernel.kptr_restrict below 2")
    mask, value = client_words(scope.client)
    names: dict[str, object] = {name: types.offset(*where) for name, where in _FIELDS.items()}
    names |= {f"KIND_{kind.name}": kind.value for kind in Kind}
    names |= {
        "HEAD": HEAD_BYTES,
        "RING_PAGES": _RING_PAGES,
        "MAX_VIPS": MAX_VIPS,
        "NAMESPACE": scope.namespace,
        "CLIENT_MASK_0": f"{mask[0]}ULL",
        "CLIENT_MASK_1": f"{mask[1]}ULL",
        "CLIENT_0": f"{value[0]}ULL",
        "CLIENT_1": f"{value[1]}ULL",
        "EVENT_LIMIT": a_window(scope.events_per_s),
        "FILTER_CODE": _within(filters),
    }
    return "".join(f"#define {name} {value}\n" for name, value in names.items()) + _SOURCE.read_text()


def a_window(a_second: int) -> int:
    """How many of so many a second may come in one window of the probes' bound."""
    return max(_LEAST_BURST, a_second // _WINDOWS_PER_S)


def code_of(functions: Sequence[str], symbols: Sequence[str]) -> list[tuple[int, int]]:
    """Where the code of kernel functions lies: [begin, end] of each part, from lines "address type name".

    The compiler may put a function's unlikely part elsewhere, under the name with a suffix.
    """
    text = [(int(words[0], 16), words[2]) for words in map(str.split, symbols) if words[1] in "tT"]
    starts = sorted({begin for begin, _name in text})
    return [
        (begin, starts[starts.index(begin) + 1])
        for begin, name in text
        if name.split(".")[0] in functions and 0 < begin < starts[-1]
    ]


def _within(ranges: Sequence[tuple[int, int]]) -> str:
    """A condition in C; an address that follows a call may be the end of its function."""
    return " || ".join(f"(where > {begin:#x}ULL && where <= {end:#x}ULL)" for begin, end in ranges) or "0"


def client_words(network: IPv4Network | IPv6Network | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Mask and value of the two words of an address in IPv6 form that a client must have."""
    if network is None:
        return (0, 0), (0, 0)
    bits = network.prefixlen + (96 if network.version == 4 else 0)
    mask = (((1 << bits) - 1) << (128 - bits)).to_bytes(16, "big")
    return _words(mask), _words(mapped(network.network_address))


def mapped(address: Address) -> bytes:
    """The 16 bytes of an address in IPv6 form (IPv4: ::ffff:a.b.c.d)."""
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def _words(packed: bytes) -> tuple[int, int]:
    first, second = struct.unpack("=QQ", packed)
    return first, second
