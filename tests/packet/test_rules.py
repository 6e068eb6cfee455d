# SPDX-License-Identifier: Apache-2.0
"""Affinities and port ranges: the filter's rule and bucket, for every way in which a packet can come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from farmd.dataplane.reasons import Verdict
from farmd.model.buckets import ALL_BUCKETS
from farmd.model.rules import Affinity, Protocol, Rule
from farmd.model.siphash import bucket_of
from tests.packet.rig import CLIENT4, CLIENT6, CLIENT_MAC, KEY, VIP4, VIP6, VIRTUAL_MAC, Rig, expect
from tests.unit import farms

pytestmark = pytest.mark.root

CPORT = 41000
IDENT = 0x1267
LOST_IDENT = 0x2267
"""Of fragments whose first one the filter has never seen: it remembers, from one test to the next."""
GROUP = 1
TAGS = {"untagged": (), "802.1Q": (Dot1Q(vlan=7),), "QinQ": (Dot1AD(vlan=7), Dot1Q(vlan=8))}
FORMS = ("fast lane", "options", "first fragment", "lost fragment", "icmp error")
NUMBERS = {4: 1, 6: 2}
CLIENTS = {4: CLIENT4, 6: CLIENT6}


def rules(affinity: Affinity, protocol: Protocol, port: int = 80, last_port: int | None = None) -> tuple[Rule, ...]:
    """One rule a VIP, number 1 of IPv4 and number 2 of IPv6. `packet-id` is for IPv4 only."""
    four = Rule(1, "four", farms.VIP4, protocol, port, affinity, GROUP, last_port)
    six = Rule(2, "six", farms.VIP6, protocol, port, affinity, GROUP, last_port)
    return (four,) if affinity is Affinity.PACKET_ID else (four, six)


@pytest.fixture
def farm(rig: Rig) -> Iterator[Callable[..., None]]:
    """Puts rules in force."""

    def configure(made: tuple[Rule, ...], **changes: object) -> None:
        config = replace(rig.config, rules=made, **changes)  # type: ignore[arg-type]
        rig.run(rig.filter.configure, config, KEY, [rig.facts])

    yield configure
    rig.reset()


def frame_of(
    form: str,
    version: int,
    protocol: Protocol,
    tags: str = "untagged",
    *,
    client: str | None = None,
    port: int = 80,
    cport: int = CPORT,
    ident: int = IDENT,
) -> bytes:
    """A packet of a client to a VIP, in one of `FORMS`."""
    client = client or CLIENTS[version]
    transport: Packet = TCP(sport=cport, dport=port, flags="S")
    if protocol is Protocol.UDP:
        transport = UDP(sport=cport, dport=port) / Raw(bytes(24))
    ether: Packet = Ether(dst=VIRTUAL_MAC, src=CLIENT_MAC)
    for tag in TAGS[tags]:
        ether /= tag.copy()
    make = _ipv4 if version == 4 else _ipv6
    return bytes(ether / make(form, client, transport, ident))


def _ipv4(form: str, client: str, transport: Packet, ident: int) -> Packet:
    ip = IP(src=client, dst=VIP4, id=ident)
    number = 6 if isinstance(transport, TCP) else 17
    if form == "options":
        ip.options = [IPOption_NOP()] * 4
    if form == "first fragment":
        ip.flags = "MF"
    if form == "lost fragment":
        return IP(src=client, dst=VIP4, id=ident, frag=100, proto=number) / Raw(bytes(32))
    if form == "icmp error":
        ours = IP(src=VIP4, dst=client, id=999) / _turned(transport)
        return IP(src="10.77.0.254", dst=VIP4, id=ident) / ICMP(type=3, code=4) / Raw(bytes(ours)[:28])
    return ip / transport


def _ipv6(form: str, client: str, transport: Packet, ident: int) -> Packet:
    ip = IPv6(src=client, dst=VIP6)
    number = 6 if isinstance(transport, TCP) else 17
    if form == "options":
        return ip / IPv6ExtHdrDestOpt() / transport
    if form == "first fragment":
        return ip / IPv6ExtHdrFragment(id=ident, m=1) / transport
    if form == "lost fragment":
        return ip / IPv6ExtHdrFragment(id=ident, offset=100, nh=number) / Raw(bytes(32))
    if form == "icmp error":
        ours = IPv6(src=VIP6, dst=client) / _turned(transport)
        return IPv6(src="fd77::fe", dst=VIP6) / ICMPv6PacketTooBig() / Raw(bytes(ours)[:48])
    return ip / transport


def _turned(transport: Packet) -> Packet:
    if isinstance(transport, TCP):
        return TCP(sport=transport.dport, dport=transport.sport)
    return UDP(sport=transport.dport, dport=transport.sport) / Raw(bytes(24))


def expect_bucket(rig: Rig, frame: bytes, affinity: Affinity, client: str, extra: int, rule: int) -> None:
    """The frame is accepted if this very bucket is ours, and dropped if all the others are."""
    bit = 1 << bucket_of(KEY, affinity, ip_address(client), extra)
    rig.state("own", buckets=bit, groups=(GROUP,))
    expect(rig.judge(frame), frame, "accept-own", rule)
    rig.state("own", buckets=ALL_BUCKETS ^ bit, groups=(GROUP,))
    expect(rig.judge(frame), frame, "drop-not-owner", rule)


ROWS = [
    (version, affinity, protocol, form, tags)
    for version in (4, 6)
    for affinity in Affinity
    for protocol in Protocol
    for form in FORMS
    for tags in TAGS
    if affinity is not Affinity.PACKET_ID or (version == 4 and protocol is Protocol.UDP)
]


@pytest.mark.parametrize(("version", "affinity", "protocol", "form", "tags"), ROWS)
def test_the_bucket_is_that_of_the_affinity(
    rig: Rig, farm: Callable[..., None], version: int, affinity: Affinity, protocol: Protocol, form: str, tags: str
) -> None:
    farm(rules(affinity, protocol))
    ident = LOST_IDENT if form == "lost fragment" else IDENT
    frame = frame_of(form, version, protocol, tags, ident=ident)
    hashed = {Affinity.CLIENT_IP_PORT: CPORT, Affinity.PACKET_ID: ident}.get(affinity, 0)
    if affinity is Affinity.PACKET_ID and form == "icmp error":
        hashed = 0  # the only id that it tells is the server's: by address
    if affinity is Affinity.CLIENT_IP_PORT and form == "lost fragment":
        expect(rig.judge(frame), frame, "drop-fragment-unknown")  # only the first one has ports
        return

    expect_bucket(rig, frame, affinity, CLIENTS[version], hashed, NUMBERS[version])


@pytest.mark.parametrize("form", ["fast lane", "options"])
@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("198.51.100.1", "198.51.100.255", True),
        ("198.51.100.1", "198.51.101.1", False),
        ("2001:db8:7:7::1", "2001:db8:7:7:ffff:ffff:ffff:ffff", True),
        ("2001:db8:7:7::1", "2001:db8:7:8::1", False),
    ],
)
def test_a_network_stays_together(
    rig: Rig, farm: Callable[..., None], one: str, other: str, together: bool, form: str
) -> None:
    farm(rules(Affinity.CLIENT_NETWORK, Protocol.TCP))
    version = ip_address(one).version
    rig.state("own", buckets=1 << bucket_of(KEY, Affinity.CLIENT_NETWORK, ip_address(one), 0), groups=(GROUP,))

    for client, reason in ((one, "accept-own"), (other, "accept-own" if together else "drop-not-owner")):
        frame = frame_of(form, version, Protocol.TCP, client=client, cport=40000 + together)
        expect(rig.judge(frame), frame, reason, NUMBERS[version])


def test_datagrams_of_one_port_spread_by_their_ids(rig: Rig, farm: Callable[..., None]) -> None:
    farm(rules(Affinity.PACKET_ID, Protocol.UDP))
    rig.state("own", buckets=(1 << 2048) - 1, groups=(GROUP,))

    told = [rig.judge(frame_of("fast lane", 4, Protocol.UDP, ident=ident)).verdict for ident in range(400)]

    assert 120 < told.count(Verdict.PASS) < 280  # of 200; half of the buckets are ours


@pytest.mark.parametrize(("state", "first", "lost"), [
    ("own", "accept-own", "accept-own"),
    ("own+fresh", "accept-fresh-new", "drop-fragment-unknown"),
    ("held", "drop-held-new", "drop-fragment-unknown"),
    ("none", "drop-not-owner", "drop-not-owner"),
])  # fmt: skip
@pytest.mark.parametrize("affinity", [Affinity.PACKET_ID, Affinity.CLIENT_NETWORK])
def test_fragments_of_a_bucket_that_moves(
    rig: Rig, farm: Callable[..., None], state: str, first: str, lost: str, affinity: Affinity
) -> None:
    """In transition a fragment alone goes nowhere: the first one may have gone to the other node."""
    farm(rules(affinity, Protocol.UDP))
    rig.state(state)
    beginning = frame_of("first fragment", 4, Protocol.UDP, ident=0x4444)
    alone = frame_of("lost fragment", 4, Protocol.UDP, ident=0x5555)
    after = frame_of("lost fragment", 4, Protocol.UDP, ident=0x4444)

    expect(rig.judge(alone), alone, lost, 1)
    expect(rig.judge(beginning), beginning, first, 1)
    expect(rig.judge(after), after, first, 1)


EDGES = [1, 126, 127, 128, 129, 8000, 8050, 8099, 65535]
RANGES = {
    "one port": (8050, None),
    "a range": (8000, 8099),
    "from a page's first port": (128, 255),
    "to a page's last port": (1, 127),
    "over many pages": (100, 60000),
    "all but 0": (1, 65535),
    "any": (0, 65535),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("form", ["fast lane", "options", "first fragment", "icmp error"])
@pytest.mark.parametrize("name", RANGES)
def test_a_rule_names_its_ports_and_no_others(
    rig: Rig, farm: Callable[..., None], name: str, form: str, protocol: Protocol, version: int
) -> None:
    first, last = RANGES[name]
    (rule, *_) = made = rules(Affinity.CLIENT_IP, protocol, first, last)
    farm(made)
    edges = {port for edge in (rule.ports[0], rule.ports[-1]) for port in (edge - 1, edge, edge + 1)}

    for port in sorted({*EDGES, *edges} & set(range(65536))):
        frame = frame_of(form, version, protocol, port=port, ident=port)
        named = port in rule.ports
        expect(rig.judge(frame), frame, *(("accept-own", NUMBERS[version]) if named else ("drop-no-rule", 0)))
        other = frame_of(form, version, next(p for p in Protocol if p is not protocol), port=port, ident=port)
        expect(rig.judge(other), other, "drop-no-rule")


def test_ranges_of_one_service_lie_side_by_side(rig: Rig, farm: Callable[..., None]) -> None:
    """Each by its own affinity and group; what is between them has no rule, and goes where farm.toml says."""
    farm(
        (
            Rule(1, "a", farms.VIP4, Protocol.TCP, 100, Affinity.CLIENT_IP, 0, 199),
            Rule(2, "b", farms.VIP4, Protocol.TCP, 200, Affinity.CLIENT_NETWORK, 1, 300),
            Rule(3, "c", farms.VIP4, Protocol.TCP, 302, Affinity.CLIENT_IP_PORT, 1, 65535),
        ),
        drop_without_rule=False,
    )
    rig.state("own", groups=(1,))
    expected = {99: 0, 100: 1, 199: 1, 200: 2, 300: 2, 301: 0, 302: 3, 65535: 3}

    for port, rule in expected.items():
        frame = frame_of("fast lane", 4, Protocol.TCP, port=port)
        expect(rig.judge(frame), frame, "drop-not-owner" if rule in (0, 1) else "accept-own", rule)
