# SPDX-License-Identifier: Apache-2.0
"""Interfaces by netlink, in a namespace with known ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from farmd.model.errors import KernelError
from farmd.net.interfaces import every, facts
from tests.unit.namespaces import Namespace

pytestmark = pytest.mark.root

IP4, IP6 = ip_address("10.1.0.1"), ip_address("fd01::1")


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with Namespace() as host:
        host.ip("link add left mtu 1400 address 02:00:00:00:00:0a type veth peer name right")
        host.ip("link add br0 type bridge")
        host.ip(f"address add {IP4}/24 dev left")
        host.ip(f"address add {IP6}/64 dev left nodad")
        host.ip("address add 10.1.9.1 peer 10.1.9.2 dev right")
        yield host


def test_facts_are_those_of_this_namespace(host: Namespace) -> None:
    (left,) = host.run(facts, ["left"])

    assert (left.name, left.mac, left.kind, left.driver, left.mtu) == (
        "left",
        bytes.fromhex("02000000000a"),
        "veth",
        "veth",
        1400,
    )
    assert host.ip("-o link show left").startswith(f"{left.ifindex}: left@")


def test_every_interface_but_loopback_is_found(host: Namespace) -> None:
    found = {link.name: link.kind for link in host.run(every)}

    assert found | {"left": "veth", "right": "veth", "br0": "bridge"} == found
    assert "lo" not in found


def test_an_interface_is_found_by_its_addresses(host: Namespace) -> None:
    assert [link.name for link in host.run(facts, [IP6, IP4])] == ["left"]


def test_a_point_to_point_address_is_ours_not_the_peers(host: Namespace) -> None:
    assert [link.name for link in host.run(facts, [ip_address("10.1.9.1")])] == ["right"]
    with pytest.raises(KernelError, match=r"address 10\.1\.9\.2: no interface"):
        host.run(facts, [ip_address("10.1.9.2")])


def test_a_wrong_name_gets_a_suggestion(host: Namespace) -> None:
    with pytest.raises(KernelError, match=r'interface lefty: .* Did you mean "left"'):
        host.run(facts, ["lefty"])


def test_it_works_inside_an_event_loop(host: Namespace) -> None:
    async def ask() -> str:
        return facts(["left"])[0].name

    assert host.run(asyncio.run, ask()) == "left"
