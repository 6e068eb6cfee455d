# SPDX-License-Identifier: Apache-2.0
"""The filter's table: what `farm.toml` decides, as the bytes of a `struct farm_table`. Pure: touches no kernel object.

VIPs lie in open-addressing tables whose seeds we choose: every key is in its home slot or one of the next
`FARM_PROBES` - 1, so that the filter's search is short and bounded. Rules are found through pages of 128 ports: two
loads, whether a rule names one port, a range or all of them.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from farmd.dataplane._libbpf import ffi, lib
from farmd.model.config import Delivery, FarmConfig
from farmd.model.interfaces import InterfaceFacts
from farmd.model.rules import Address, Affinity, Protocol, Rule, RuleBook

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MAX_SEEDS = 100_000
_PAGE_PORTS = int(lib.FARM_PAGE_PORTS)

MAX_INTERFACES = int(lib.FARM_INTERFACES)


def ipv4_word(vip: Address) -> int:
    """An IPv4 address as the filter compares it: as it lies in a packet, read as a little-endian number."""
    return int.from_bytes(vip.packed, "little")


def ipv6_words(vip: Address) -> tuple[int, int]:
    """An IPv6 address as the filter compares it: two little-endian numbers."""
    return int.from_bytes(vip.packed[:8], "little"), int.from_bytes(vip.packed[8:], "little")


def ipv4_home(seed: int, word: int) -> int:
    """Where an IPv4 VIP's search begins. Mirrors find_ipv4_vip() in `ebpf/table.h`."""
    return (word * seed & _MASK) >> int(lib.FARM_VIP_SHIFT)


def ipv6_home(seed: int, words: tuple[int, int]) -> int:
    """Where an IPv6 VIP's search begins. Mirrors find_ipv6_vip() in `ebpf/table.h`."""
    return (((words[0] * _GOLDEN & _MASK) ^ words[1]) * seed & _MASK) >> int(lib.FARM_VIP_SHIFT)


def service_of(vip: int, protocol: Protocol) -> int:
    """Where the ports of a VIP and protocol are written; `vip` counts from 1. Mirrors service_of() in the C."""
    return (vip - 1) << 1 | (protocol is Protocol.UDP)


def marker(farm: str) -> bytes:
    """How the source addresses begin of frames that nodes of a directed farm send on: unicast, locally administered.

    A sender's number and a count of hops follow: see `ebpf/forward.h`.
    """
    return b"\x06\xfa" + sha256(farm.encode()).digest()[:2]


def place(keys: Iterable[Any], home: Callable[[int, Any], int]) -> tuple[int, dict[int, Any]]:
    """A seed under which every key finds a slot within the bound, and the key of each slot that is taken.

    Raises ValueError if no seed does; with the sizes of `farm_abi.h` that does not happen.
    """
    keys = tuple(keys)
    for attempt in range(_MAX_SEEDS):
        seed = random.Random(attempt).getrandbits(64) | 1
        slots: dict[int, Any] = {}
        for key in keys:
            first = home(seed, key)
            free = next((slot for slot in range(first, first + int(lib.FARM_PROBES)) if slot not in slots), None)
            if free is None:
                break
            slots[free] = key
        else:
            return seed, slots
    raise ValueError(f"no seed places {len(keys)} keys")


def encode(config: FarmConfig, hash_key: bytes, interfaces: Sequence[InterfaceFacts]) -> bytes:
    """One generation of the table; `interfaces` are those that the filter is attached to.

    Raises ValueError for more VIPs, rules or interfaces than the filter has room for: the reader of farm.toml and
    `Filter` check that before.
    """
    if len(config.vips) > int(lib.FARM_VIPS) or len(config.rules) > int(lib.FARM_RULES):
        raise ValueError(f"too many VIPs ({len(config.vips)}) or rules ({len(config.rules)})")
    if len(interfaces) > MAX_INTERFACES:
        raise ValueError(f"too many interfaces: {len(interfaces)}")
    if len(hash_key) != 16 or len(config.virtual_mac) != 6:
        raise ValueError("the hash key has 16 bytes and the virtual MAC 6")
    table = ffi.new("struct farm_table *")
    lib.farm_prepare_hash(ffi.from_buffer("uint64_t[2]", hash_key), ffi.addressof(table, "hash"))
    table.directed = directed = config.delivery is Delivery.DIRECTED
    table.marker = int.from_bytes(marker(config.farm), "little")
    table.node = config.me.id
    table.accept_without_rule = not config.drop_without_rule
    for entry, facts in zip(table.interfaces, interfaces, strict=False):
        entry.ifindex = facts.ifindex
        ffi.memmove(entry.mac, facts.mac, 6)
        ffi.memmove(entry.announced, facts.mac if directed else config.virtual_mac, 6)
    numbers = {vip: number for number, vip in enumerate(config.vips, 1)}
    _fill_vips(table, numbers)
    _fill_rules(table, numbers, config.rules)
    return bytes(ffi.buffer(table))


def _fill_vips(table: Any, numbers: Mapping[Address, int]) -> None:
    by_word = {ipv4_word(vip): number for vip, number in numbers.items() if vip.version == 4}
    table.ipv4_seed, four = place(by_word, ipv4_home)
    for index, word in four.items():
        table.ipv4_vips[index].address = word
        table.ipv4_vips[index].vip = by_word[word]
    by_words = {ipv6_words(vip): number for vip, number in numbers.items() if vip.version == 6}
    table.ipv6_seed, six = place(by_words, ipv6_home)
    for index, words in six.items():
        table.ipv6_vips[index].address.words = words
        table.ipv6_vips[index].vip = by_words[words]


_AFFINITIES = {
    Affinity.CLIENT_IP: int(lib.FARM_CLIENT_IP),
    Affinity.CLIENT_IP_PORT: int(lib.FARM_CLIENT_IP_PORT),
    Affinity.CLIENT_NETWORK: int(lib.FARM_CLIENT_NETWORK),
    Affinity.PACKET_ID: int(lib.FARM_PACKET_ID),
}


def _fill_rules(table: Any, numbers: Mapping[Address, int], rules: Sequence[Rule]) -> None:
    for rule in rules:
        entry = table.rules[rule.index]
        entry.number, entry.group, entry.affinity = rule.index, rule.group, _AFFINITIES[rule.affinity]
    places: dict[bytes, int] = {bytes(2 * _PAGE_PORTS): 0}  # page 0 has no rules
    for (vip, protocol), ports in port_maps(rules).items():
        service = service_of(numbers[vip], protocol)
        table.services[service].pages = [
            places.setdefault(page.tobytes(), len(places)) for page in batched_pages(ports)
        ]
    for content, place_ in places.items():
        ffi.memmove(table.pages[place_].rules, content, len(content))
    book = RuleBook(rules)
    for vip, protocol in book.services():
        if orphan := book.orphan(vip, protocol):
            table.orphans[service_of(numbers[vip], protocol)] = orphan.index


def port_maps(rules: Sequence[Rule]) -> dict[tuple[Address, Protocol], array[int]]:
    """For each VIP and protocol the number of every port's rule; 0: none."""
    found: dict[tuple[Address, Protocol], array[int]] = {}
    for rule in rules:
        ports = found.setdefault((rule.vip, rule.protocol), array("H", bytes(2 * 65536)))
        ports[rule.ports.start : rule.ports.stop] = array("H", [rule.index]) * len(rule.ports)
    return found


def batched_pages(ports: array[int]) -> Iterator[array[int]]:
    """The numbers of a port map, page by page."""
    return (ports[at : at + _PAGE_PORTS] for at in range(0, len(ports), _PAGE_PORTS))
