# SPDX-License-Identifier: Apache-2.0
"""C against the oracle in pure Python: the hash, the bucket that the kernel uses, and the layout of what they share."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from farmd.dataplane._libbpf import ffi, lib
from farmd.dataplane.filter import OBJECT
from farmd.dataplane.kernel import declared_maps
from farmd.model.buckets import BUCKETS
from farmd.model.planes import Planes
from farmd.model.rules import Affinity, Protocol, Rule, RuleBook
from farmd.model.siphash import bucket_of
from tests.packet.rig import CLIENT6, CLIENT_MAC, KEY, VIP4, VIP6, VIRTUAL_MAC, Rig
from tests.unit.test_dataplane import full_farm

pytestmark = pytest.mark.root

KEYS = st.binary(min_size=16, max_size=16)
PORTS = st.integers(0, 65535)
CLIENTS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=KEYS, client=CLIENTS, port=PORTS, by_port=st.booleans())
def test_the_kernel_uses_the_oracles_bucket(
    rig: Rig, key: bytes, client: IPv4Address | IPv6Address, port: int, by_port: bool
) -> None:
    affinity = Affinity.CLIENT_IP_PORT if by_port else Affinity.CLIENT_IP
    ip = IP(src=str(client), dst=VIP4) if client.version == 4 else IPv6(src=str(client), dst=VIP6)
    tcp = TCP(sport=port, dport=8080 if by_port else 80, flags="S")
    frame = bytes(Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC) / ip / tcp)
    bit = 1 << bucket_of(key, affinity, client, port)
    rig.run(rig.filter.configure, rig.config, key, [rig.facts])

    rig.control.write(int(by_port), Planes(own=bit))
    assert rig.run(rig.filter.probe, frame).reason == "accept-own"
    rig.control.write(int(by_port), Planes(own=((1 << BUCKETS) - 1) ^ bit))
    assert rig.run(rig.filter.probe, frame).reason == "drop-not-owner"


def test_the_kernel_finds_every_rule_of_a_full_table(rig: Rig) -> None:
    """256 VIPs and 1000 rules, so that some lie three slots from home; and no rule that is not there."""
    vips, rules = full_farm(random.Random(1))
    rig.run(rig.filter.configure, replace(rig.config, vips=vips, rules=rules), KEY, [rig.facts])
    for group in range(16):
        rig.control.write(group, Planes(own=(1 << BUCKETS) - 1))

    for rule in rules:
        told = rig.run(rig.filter.probe, _frame_for(rule))
        assert (told.reason, told.rule) == ("accept-own", rule.index)
    book = RuleBook(rules)
    for rule in rules:
        for port in (rule.ports[0] - 1, rule.ports[-1], rule.ports[-1] + 1, rule.port ^ 0x80, rule.port ^ 0x8000):
            if 0 <= port <= 65535:
                named = book.find(rule.vip, rule.protocol, port)
                told = rig.run(rig.filter.probe, _frame_for(replace(rule, port=port)))
                assert (told.reason, told.rule) == ("accept-own", named.index) if named else ("drop-no-rule", 0)


def _frame_for(rule: Rule) -> bytes:
    ip = IP(src="198.51.100.7", dst=str(rule.vip)) if rule.vip.version == 4 else IPv6(src=CLIENT6, dst=str(rule.vip))
    ports = (TCP if rule.protocol is Protocol.TCP else UDP)(sport=41000, dport=rule.port)
    return bytes(Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC) / ip / ports)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("farm_active", "struct farm_active"),
        ("farm_tables", "struct farm_table[FARM_GENERATIONS]"),
        ("farm_planes", "struct farm_planes[FARM_GROUPS]"),
        ("farm_counters", "struct farm_counts"),
        ("farm_fragments", "struct farm_outcome"),
        ("farm_lease", "unsigned long long"),
    ],
)
def test_both_compilers_lay_structs_out_alike(name: str, values: str) -> None:
    """What the filter's BTF says of a map's value, against what the C compiler says of the type."""
    assert declared_maps(OBJECT)[name].value_size == ffi.sizeof(values)


def test_map_sizes() -> None:
    shapes = declared_maps(OBJECT)
    assert ffi.sizeof("struct farm_fragment") == shapes["farm_fragments"].key_size
    assert ffi.sizeof("struct farm_planes") == BUCKETS == lib.FARM_BUCKETS
    assert shapes["farm_counters"].max_entries == lib.FARM_RULES + 1 == lib.FARM_COUNTERS
    assert lib.FARM_VIP_SLOTS == (1 << 64 - lib.FARM_VIP_SHIFT) + lib.FARM_PROBES - 1
    assert lib.FARM_RULE_ROOM > lib.FARM_RULES
    assert lib.FARM_PAGES * lib.FARM_PAGE_PORTS == 65536
    assert lib.FARM_PAGE_PORTS == 1 << lib.FARM_PAGE_SHIFT
    assert lib.FARM_PAGE_ROOM > 3 * lib.FARM_RULES
    assert lib.FARM_SERVICES == 2 * lib.FARM_VIPS
    assert lib.FARM_UNDECIDED <= lib.FARM_REASONS
