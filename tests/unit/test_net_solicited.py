# SPDX-License-Identifier: Apache-2.0
"""Solicitations for IPv6 VIPs reach this host's interface."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest

from farmd.model.errors import KernelError
from farmd.net import interfaces, solicited
from tests.unit.namespaces import Namespace


def test_the_group_is_the_one_that_neighbours_ask() -> None:
    """The example of RFC 4291, 2.7.1."""
    assert solicited.group_of(IPv6Address("4037::01:800:200e:8c6c")) == IPv6Address("ff02::1:ff0e:8c6c")


def test_without_an_ipv6_vip_there_is_nothing_to_join() -> None:
    assert solicited.join([ip_address("10.1.0.100")], ()) is None


@pytest.mark.root
def test_the_interface_hears_the_group_for_as_long_as_the_socket_lives() -> None:
    with Namespace() as host:
        host.ip("link add eth0 type veth peer name eth1")
        host.ip("link set eth0 up")
        facts = host.run(interfaces.facts, ["eth0"])
        member = host.run(solicited.join, [ip_address("fd01::12:3456")], facts)
        assert member is not None
        with member:
            assert "ff0200000000000000000001ff123456" in host.run(Path("/proc/thread-self/net/igmp6").read_text)
        assert "ff0200000000000000000001ff123456" not in host.run(Path("/proc/thread-self/net/igmp6").read_text)


@pytest.mark.root
def test_an_interface_that_is_gone_is_named() -> None:
    with Namespace() as host:
        host.ip("link add eth0 type veth peer name eth1")
        facts = host.run(interfaces.facts, ["eth0"])
        host.ip("link del eth0")
        with pytest.raises(KernelError, match="interface eth0: it cannot join ff02::1:ff00:1"):
            host.run(solicited.join, [ip_address("fd01::1")], facts)
