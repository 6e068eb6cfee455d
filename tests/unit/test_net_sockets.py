# SPDX-License-Identifier: Apache-2.0
"""Sockets behind a VIP, as sock_diag tells them."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from farmd.net.sockets import Connection, SocketState, connections
from tests.unit.namespaces import Namespace

pytestmark = pytest.mark.root

VIP4, VIP6, OTHER = ip_address("10.1.0.100"), ip_address("fd01::100"), ip_address("10.1.0.9")


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as host:
        for address in (VIP4, OTHER, "10.1.0.1"):
            host.ip(f"address add {address}/32 dev lo")
        for six in (VIP6, "fd01::1"):
            host.ip(f"address add {six}/128 dev lo nodad")
        yield host


class Service:
    """A listening socket in `host`, and pairs of connected sockets."""

    def __init__(self, host: Namespace, address: str, *, both_families: bool = False) -> None:
        self._host = host
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._open: list[socket.socket] = []
        self.listener = host.run(
            socket.create_server, (address, 0), family=family, dualstack_ipv6=both_families, backlog=128
        )
        self._open.append(self.listener)
        self.port: int = self.listener.getsockname()[1]

    def connect(self, to: str, source: str) -> tuple[socket.socket, socket.socket]:
        """The client's and the server's end."""
        client = self._host.run(socket.create_connection, (to, self.port), 5, (source, 0))
        server, _ = self.listener.accept()
        self._open += [client, server]
        return client, server

    def close(self) -> None:
        for each in self._open:
            each.close()


def test_a_connection_is_seen_from_its_vip_and_a_listener_is_not(host: Namespace) -> None:
    service = Service(host, str(VIP4))
    with contextlib.closing(service):
        client, _ = service.connect(str(VIP4), "10.1.0.1")
        cport = client.getsockname()[1]

        found = host.run(connections, [VIP4, VIP6])

    assert found == [Connection(VIP4, service.port, ip_address("10.1.0.1"), cport, SocketState.ESTABLISHED)]


def test_ipv6_and_mapped_ipv4_connections_of_one_listener(host: Namespace) -> None:
    service = Service(host, "::", both_families=True)
    with contextlib.closing(service):
        service.connect(str(VIP6), "fd01::1")
        service.connect(str(VIP4), "10.1.0.1")
        service.connect(str(OTHER), "10.1.0.1")

        found = host.run(connections, [VIP4, VIP6])

    assert sorted((str(each.vip), str(each.client)) for each in found) == [
        ("10.1.0.100", "10.1.0.1"),
        ("fd01::100", "fd01::1"),
    ]
    assert {each.vport for each in found} == {service.port}
    assert {each.state for each in found} == {SocketState.ESTABLISHED}


def test_only_the_vips_asked_for_are_listed(host: Namespace) -> None:
    service = Service(host, str(VIP4))
    with contextlib.closing(service):
        service.connect(str(VIP4), "10.1.0.1")

        assert host.run(connections, [VIP6]) == []
        assert host.run(connections, [OTHER]) == []
        assert host.run(connections, []) == []


def test_time_wait_is_told_apart(host: Namespace) -> None:
    service = Service(host, str(VIP4))
    with contextlib.closing(service):
        client, server = service.connect(str(VIP4), "10.1.0.1")
        server.close()
        client.close()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            states = [each.state for each in host.run(connections, [VIP4])]
            if states == [SocketState.TIME_WAIT]:
                break

        (lingering,) = host.run(connections, [VIP4])

    assert lingering.state is SocketState.TIME_WAIT
    assert lingering.lingering


def test_a_half_closed_connection_is_alive(host: Namespace) -> None:
    service = Service(host, str(VIP4))
    with contextlib.closing(service):
        client, _ = service.connect(str(VIP4), "10.1.0.1")
        client.shutdown(socket.SHUT_WR)

        (half,) = host.run(connections, [VIP4])

    assert half.state is SocketState.CLOSE_WAIT
    assert not half.lingering


def test_a_connection_nobody_accepted_yet_counts(host: Namespace) -> None:
    service = Service(host, str(VIP4))
    with contextlib.closing(service):
        client = host.run(socket.create_connection, (str(VIP4), service.port), 5, ("10.1.0.1", 0))
        with client:
            (waiting,) = host.run(connections, [VIP4])

    assert waiting.state is SocketState.ESTABLISHED


def test_more_sockets_than_one_netlink_answer_holds(host: Namespace) -> None:
    service = Service(host, str(VIP4))
    with contextlib.closing(service):
        pairs = [service.connect(str(VIP4), "10.1.0.1") for _ in range(700)]

        found = host.run(connections, [VIP4])

        expected = {client.getsockname()[1] for client, _ in pairs}

    assert {each.cport for each in found} == expected
    assert len(found) == 700
