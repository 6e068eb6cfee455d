# SPDX-License-Identifier: Apache-2.0
"""The data plane's pure parts: tables, planes, hash and names. Needs what `cext/build.py` compiles, but no root."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farmd.dataplane import hash as native
from farmd.dataplane import planes, tables
from farmd.dataplane._libbpf import ffi, lib
from farmd.dataplane.reasons import REASONS, VERDICTS, Reason, Verdict, verdict_of
from farmd.model import siphash
from farmd.model.buckets import BUCKETS, plane_of
from farmd.model.config import Delivery
from farmd.model.interfaces import InterfaceFacts
from farmd.model.nodes import NodeId
from farmd.model.planes import CLOSED, Planes
from farmd.model.rules import Address, Affinity, Protocol, Rule
from tests.unit import farms

KEYS = st.binary(min_size=16, max_size=16)
PLANE = st.integers(0, (1 << 4096) - 1)
ETH0 = InterfaceFacts("eth0", 7, bytes(range(6)), "veth", "veth", 1500)


@given(KEYS, st.sampled_from(Affinity), st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(0, 65535))
def test_the_fast_hash_is_the_models(
    key: bytes, affinity: Affinity, client: IPv4Address | IPv6Address, port: int
) -> None:
    assert native.bucket_of(key, affinity, client, port) == siphash.bucket_of(key, affinity, client, port)


def test_the_fast_hash_refuses_a_wrong_key() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        native.bucket_of(bytes(15), Affinity.CLIENT_IP, ip_address("1.2.3.4"), 0)


@given(PLANE, PLANE, PLANE)
def test_planes_survive_the_kernels_form(own: int, held: int, fresh: int) -> None:
    value = Planes(own=own, held=held, fresh=fresh)
    assert planes.decode(planes.encode(value)) == value


@pytest.mark.parametrize("bucket", [0, 1, 63, 64, 2047, 4095])
def test_each_bucket_has_its_byte(bucket: int) -> None:
    state = planes.encode(Planes(own=1 << bucket, held=0, fresh=1 << bucket))
    assert len(state) == 4096
    assert {number: byte for number, byte in enumerate(state) if byte} == {bucket: lib.FARM_OWN | lib.FARM_FRESH}
    assert planes.encode(Planes(held=1 << bucket))[bucket] == lib.FARM_HELD


@given(PLANE, PLANE, PLANE)
def test_a_directed_farm_sends_on_what_is_not_plainly_its_nodes(own: int, held: int, fresh: int) -> None:
    value = Planes(own=own, held=held, fresh=fresh)
    plain = planes.encode(value)
    sent_on = bytes(state if state == lib.FARM_OWN else state | lib.FARM_SEND_ON for state in plain)
    assert planes.encode(value, directed=True) == sent_on


@given(st.lists(st.integers(0, 63) | st.just(255), min_size=1, max_size=70), st.integers(0, 63))
def test_the_fast_share_is_the_models(pattern: list[int], node: int) -> None:
    owners = (bytes(pattern) * BUCKETS)[:BUCKETS]
    assert planes.plane_of(owners, NodeId(node)) == plane_of(owners, NodeId(node))


def test_the_fast_share_refuses_half_an_owner_map() -> None:
    with pytest.raises(ValueError, match="4096 bytes"):
        planes.plane_of(bytes(4095), NodeId(0))


def test_the_twin_in_memory() -> None:
    twin: planes.FilterControl = planes.MemoryPlanes()
    assert twin.read(3) == CLOSED
    twin.write(3, Planes(own=5))
    twin.renew(100)
    assert (twin.read(3), twin.lease_left_ns()) == (Planes(own=5), 100)


def test_reasons_are_those_of_the_filter() -> None:
    named = {
        number: name.removeprefix("FARM_").lower().replace("_", "-")
        for number, name in ffi.typeof("enum farm_reason").elements.items()
        if number not in (lib.FARM_NOT_VIP, lib.FARM_UNDECIDED)
    }
    assert {number: reason.value for number, reason in enumerate(REASONS) if reason} == named


def test_verdicts_are_those_of_the_filter() -> None:
    for number, reason in enumerate(REASONS):
        if reason is None:
            continue
        expected = "pass" if number < lib.FARM_FIRST_ANSWER else "tx" if number < lib.FARM_FIRST_DROP else "drop"
        assert verdict_of(reason) == expected
    assert verdict_of(Reason.ACCEPT_COOKIE) is Verdict.PASS
    assert VERDICTS == {0: "aborted", 1: "drop", 2: "pass", 3: "tx"}


def look_up(raw: bytes, vip: Address, protocol: Protocol, port: int) -> tuple[int, int, int]:
    """What the filter finds in a table: numbers of VIP and rule, and the probes that it took. After `table.h`."""
    table = ffi.from_buffer("struct farm_table *", raw)
    number, probes = 0, 0
    if vip.version == 4:
        home = tables.ipv4_home(table.ipv4_seed, tables.ipv4_word(vip))
        slots = [(slot.address, slot.vip) for slot in table.ipv4_vips[home : home + lib.FARM_PROBES]]
    else:
        home = tables.ipv6_home(table.ipv6_seed, tables.ipv6_words(vip))
        slots = [(tuple(slot.address.words), slot.vip) for slot in table.ipv6_vips[home : home + lib.FARM_PROBES]]
    for address, at in slots:
        probes += 1
        if not at or address == (tables.ipv4_word(vip) if vip.version == 4 else tables.ipv6_words(vip)):
            number = at
            break
    if not number:
        return 0, 0, probes
    page = table.services[tables.service_of(number, protocol)].pages[port // lib.FARM_PAGE_PORTS]
    found = table.pages[page].rules[port % lib.FARM_PAGE_PORTS]
    assert table.rules[found].number == found
    return number, found, probes


def full_farm(draw: random.Random) -> tuple[tuple[Address, ...], tuple[Rule, ...]]:
    """As many VIPs and rules as fit, at random; some of the rules up to the next one's port, or near it."""
    four = {ip_address(draw.getrandbits(32)) for _ in range(128)}
    six = {ip_address(draw.getrandbits(128)) for _ in range(400)}
    vips = tuple(sorted(four, key=int)) + tuple(sorted(six, key=int))[: 256 - len(four)]
    places: set[tuple[Address, Protocol, int]] = set()
    while len(places) < 1000:
        places.add((draw.choice(vips), draw.choice(list(Protocol)), draw.randrange(1, 65536)))
    ordered = sorted(places, key=lambda place: (int(place[0]), place[1], place[2]))
    rules = []
    for index, (vip, protocol, port) in enumerate(ordered, 1):
        following = ordered[index][2] if ordered[index : index + 1] and ordered[index][:2] == (vip, protocol) else 65536
        end = following - 1
        last = draw.choice([None, None, end, draw.randint(port, end)])
        fit = [affinity for affinity in Affinity if fits(affinity, vip, protocol)]
        rules.append(Rule(index, f"r{index}", vip, protocol, port, draw.choice(fit), draw.randrange(16), last))
    return vips, tuple(rules)


def fits(affinity: Affinity, vip: Address, protocol: Protocol) -> bool:
    """farm.toml takes `packet-id` for UDP over IPv4 only."""
    return affinity is not Affinity.PACKET_ID or (vip.version == 4 and protocol is Protocol.UDP)


@pytest.mark.parametrize("number", range(4))
def test_a_full_table_finds_everything_and_nothing_else(number: int) -> None:
    draw = random.Random(number)
    vips, rules = full_farm(draw)
    raw = tables.encode(replace(farms.config(), vips=vips, rules=rules), farms.KEY, [ETH0])

    for rule in rules:
        for port in (rule.ports[0], rule.ports[-1], draw.choice(rule.ports)):
            vip, found, _ = look_up(raw, rule.vip, rule.protocol, port)
            assert (vip, found) == (vips.index(rule.vip) + 1, rule.index)
    for _ in range(2000):
        place = (draw.choice(vips), draw.choice(list(Protocol)), draw.randrange(1, 65536))
        named = [r.index for r in rules if (r.vip, r.protocol) == place[:2] and place[2] in r.ports]
        assert [look_up(raw, *place)[1]] == (named or [0])
    for _ in range(2000):
        assert look_up(raw, ip_address(draw.getrandbits(32)), Protocol.TCP, 80)[:2] == (0, 0)


@pytest.mark.parametrize("vips", ["neighbours", "subnets"])
def test_orderly_farms_fit_as_well(vips: str) -> None:
    """256 addresses in a row and ports in a row, as people write them."""
    step = 1 if vips == "neighbours" else 256
    four = tuple(ip_address(0x0A000000 + step * number) for number in range(128))
    six = tuple(ip_address((0x2001 << 112) + step * number) for number in range(128))
    rules = tuple(
        Rule(index + 1, f"r{index}", (four + six)[index % 256], Protocol.TCP, 80 + index // 256, Affinity.CLIENT_IP, 0)
        for index in range(1000)
    )
    raw = tables.encode(replace(farms.config(), vips=four + six, rules=rules), farms.KEY, [ETH0])
    for rule in rules:
        assert look_up(raw, rule.vip, rule.protocol, rule.port)[1] == rule.index


def test_the_rest_of_the_table() -> None:
    config = replace(farms.config(), drop_without_rule=False)
    table = ffi.from_buffer("struct farm_table *", tables.encode(config, farms.KEY, [ETH0]))
    key = ffi.from_buffer("uint64_t[2]", farms.KEY)
    assert (table.hash.v2, table.hash.v3) == (key[0] ^ 0x6C7967656E657261, key[1] ^ 0x7465646279746573)
    assert bytes(table.interfaces[0].announced) == config.virtual_mac
    assert (table.accept_without_rule, table.directed) == (1, 0)
    assert (table.interfaces[0].ifindex, bytes(table.interfaces[0].mac)) == (7, ETH0.mac)
    assert table.interfaces[1].ifindex == 0


def test_the_table_of_a_directed_farm() -> None:
    config = replace(farms.config(), delivery=Delivery.DIRECTED, me=farms.config().members[2])
    table = ffi.from_buffer("struct farm_table *", tables.encode(config, farms.KEY, [ETH0]))
    assert (table.directed, table.node) == (1, 2)
    assert bytes(table.interfaces[0].announced) == ETH0.mac
    assert table.marker.to_bytes(4, "little") == tables.marker("test")
    assert tables.marker("test")[0] & 3 == 2  # unicast, and nobody's by a manufacturer
    assert tables.marker("test") != tables.marker("other")


def test_later_fragments_have_a_rule_where_all_rules_agree() -> None:
    def rule(index: int, protocol: Protocol, port: int, affinity: Affinity, group: int) -> Rule:
        return Rule(index, f"r{index}", farms.VIP4, protocol, port, affinity, group)

    same = rule(1, Protocol.UDP, 1, Affinity.CLIENT_IP, 2), rule(2, Protocol.UDP, 2, Affinity.CLIENT_IP, 2)
    assert orphan_of(same) == 1
    assert orphan_of((*same, rule(3, Protocol.UDP, 3, Affinity.CLIENT_IP, 1))) == 0
    assert orphan_of((*same, rule(3, Protocol.UDP, 3, Affinity.CLIENT_NETWORK, 2))) == 0
    assert orphan_of((*same, rule(3, Protocol.TCP, 3, Affinity.CLIENT_IP_PORT, 2))) == 1
    for affinity, expected in zip(Affinity, (1, 0, 1, 1), strict=True):
        assert orphan_of((rule(1, Protocol.UDP, 1, affinity, 2),)) == expected


def orphan_of(rules: tuple[Rule, ...]) -> int:
    """The rule of UDP's later fragments."""
    raw = tables.encode(replace(farms.config(), rules=rules), farms.KEY, [ETH0])
    table = ffi.from_buffer("struct farm_table *", raw)
    number = next(number for number, vip in enumerate(farms.config().vips, 1) if vip == farms.VIP4)
    return int(table.orphans[tables.service_of(number, Protocol.UDP)])


def test_the_worst_rules_fit() -> None:
    """1000 ranges that each begin and end in a page that is like no other, and fill pages between."""
    vips = tuple(ip_address(f"10.0.{number}.1") for number in range(125))
    rules = tuple(
        Rule(
            index, f"r{index}", vips[(index - 1) % 125], Protocol.UDP, at + index % 60, Affinity.CLIENT_IP, 0, at + 8100
        )
        for index, at in enumerate([8192 * (n // 125) + 1 for n in range(1000)], 1)
    )
    raw = tables.encode(replace(farms.config(), vips=vips, rules=rules), farms.KEY, [ETH0])
    for rule in rules[::37]:
        for port, expected in ((rule.ports[0], rule.index), (rule.ports[-1], rule.index), (rule.ports[-1] + 1, 0)):
            assert look_up(raw, rule.vip, rule.protocol, port)[1] == expected
    table = ffi.from_buffer("struct farm_table *", raw)
    used = max(page for service in table.services for page in service.pages)
    assert 2500 < used <= 3 * len(rules) < lib.FARM_PAGE_ROOM


def test_a_rule_for_any_port_takes_one_page() -> None:
    rule = Rule(1, "all", farms.VIP4, Protocol.TCP, 0, Affinity.CLIENT_IP, 0, 65535)
    raw = tables.encode(replace(farms.config(), rules=(rule,)), farms.KEY, [ETH0])

    assert {look_up(raw, farms.VIP4, Protocol.TCP, port)[1] for port in (0, 1, 127, 128, 443, 65535)} == {1}
    assert look_up(raw, farms.VIP4, Protocol.UDP, 80)[1] == 0
    table = ffi.from_buffer("struct farm_table *", raw)
    assert {page for service in table.services for page in service.pages} == {0, 1}


@pytest.mark.parametrize(
    ("changes", "interfaces"),
    [
        ({"vips": tuple(ip_address(number) for number in range(257))}, 1),
        ({"virtual_mac": bytes(5)}, 1),
        ({}, 9),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], interfaces: int) -> None:
    with pytest.raises(ValueError, match=r"too many|bytes"):
        tables.encode(replace(farms.config(), **changes), farms.KEY, [ETH0] * interfaces)  # type: ignore[arg-type]


def test_addresses_and_ports_are_compared_as_they_lie_in_packets() -> None:
    assert tables.ipv4_word(ip_address("10.77.0.100")).to_bytes(4, "little") == bytes([10, 77, 0, 100])
    assert tables.ipv6_words(farms.VIP6) == struct.unpack("<QQ", farms.VIP6.packed)
    assert [tables.service_of(vip, protocol) for vip in (1, 256) for protocol in Protocol] == [0, 1, 510, 511]
