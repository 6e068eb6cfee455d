# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of links, features and routes, in namespaces of our own."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from farmd.model.errors import KernelError
from farmd.net import linkstate, offloads
from tests.unit.namespaces import Namespace

pytestmark = pytest.mark.root


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    with Namespace() as here, Namespace() as there:
        here.wire("eth0", there, "eth0")
        yield here, there


def test_a_link_is_up_only_with_its_other_end(pair: tuple[Namespace, Namespace]) -> None:
    here, there = pair
    assert here.run(linkstate.states)["eth0"].up
    there.ip("link set eth0 down")
    assert not here.run(linkstate.states)["eth0"].up


def test_promiscuity_and_accepted_addresses(pair: tuple[Namespace, Namespace]) -> None:
    here, _ = pair
    mac = bytes.fromhex("02fa12000001")
    assert mac not in here.run(linkstate.states)["eth0"].accepted
    here.shell(f"bridge fdb add {mac.hex(':')} dev eth0 self permanent")
    here.ip("link set eth0 promisc on")
    state = here.run(linkstate.states)["eth0"]
    assert mac in state.accepted
    assert state.promiscuous


def test_an_address_may_be_on_several_links(pair: tuple[Namespace, Namespace]) -> None:
    here, _ = pair
    here.ip("addr add 192.0.2.10/32 dev lo")
    here.ip("addr add 192.0.2.10/24 dev eth0")
    assert set(here.run(linkstate.addresses)[ip_address("192.0.2.10")]) == {"lo", "eth0"}


def test_the_way_to_a_peer(pair: tuple[Namespace, Namespace]) -> None:
    here, _ = pair
    here.ip("addr add 192.0.2.1/24 dev eth0")
    here.ip("route add 198.51.100.0/24 via 192.0.2.254")
    assert here.run(linkstate.next_hop, ip_address("192.0.2.2")) == ("eth0", True)
    assert here.run(linkstate.next_hop, ip_address("198.51.100.7")) == ("eth0", False)
    with pytest.raises(KernelError, match=r"route to 203\.0\.113\.1"):
        here.run(linkstate.next_hop, ip_address("203.0.113.1"))


@pytest.mark.parametrize("state", ["on", "off"])
def test_features_are_what_ethtool_shows(pair: tuple[Namespace, Namespace], state: str) -> None:
    here, _ = pair
    here.shell(f"ethtool -K eth0 rxvlan {state} gro {state}")
    features = here.run(offloads.features, "eth0")
    assert features["rx-vlan-hw-parse"] is (state == "on")
    assert features["rx-gro"] is (state == "on")
    assert features["large-receive-offload"] is False
    assert features["rx-gro-hw"] is False


def test_queues(pair: tuple[Namespace, Namespace]) -> None:
    here, _ = pair
    here.ip("link add many0 numrxqueues 4 numtxqueues 4 type veth peer name many1")
    assert here.run(offloads.receive_queues, "many0") == 4
    assert here.run(offloads.receive_queues, "gone") is None
    assert here.run(offloads.features, "gone") == {}
