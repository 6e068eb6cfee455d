# SPDX-License-Identifier: Apache-2.0
"""The engine's UDP sockets: one for each of this node's addresses, that is one for each heartbeat network.

Every datagram goes to every address of a peer, unicast: multicast heartbeats die behind a switch that snoops IGMP
without a querier, minutes after everything looked fine. The receiver's replay check drops the copy that comes second.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from farmd.model.config import FarmConfig
from farmd.model.errors import KernelError
from farmd.model.nodes import NodeId

_RECEIVE_BUFFER = 1 << 20
_LARGEST_DATAGRAM = 65535
_DSCP_CS6 = 0xC0
"""Network control (RFC 2474): switches that know priorities let heartbeats pass before the flood."""
_SO_PRIORITY = 6
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
"""From linux/in.h and linux/in6.h; Python does not name them."""
_BACKLOG_LIMIT = 10_000
"""Datagrams thrown away at most after a stall, so that a flood cannot keep us from ever starting again."""

Address = tuple[Any, ...]
"""A socket address as the socket module has it: (host, port), and two more numbers for IPv6."""


class Transport:
    """Sends sealed datagrams to peers and reads what came in; never blocks."""

    def __init__(self, config: FarmConfig) -> None:
        """Open the sockets.

        Raises:
            KernelError: an address or the port cannot be had.
        """
        self.send_errors = 0
        self._sockets = [_open(str(address), config.port) for address in config.me.addresses]
        self._routes: dict[NodeId, list[tuple[socket.socket, Address]]] = {
            member.id: [
                (own, (str(address), config.port))
                for own, address in zip(self._sockets, member.addresses, strict=False)
            ]
            for member in config.members
            if member.id != config.me.id
        }

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """For the event loop's readers."""
        return tuple(self._sockets)

    def send(self, datagram: bytes, to: NodeId | None) -> None:
        """Send to one peer, or to all (None), over every network. A network that is down is the protocol's business."""
        for peer in self._routes if to is None else (to,):
            for own, address in self._routes.get(peer, ()):
                self._send(own, address, datagram)

    def reply(self, own: socket.socket, address: Address, datagram: bytes) -> None:
        """Send to where a datagram came from."""
        self._send(own, address, datagram)

    def receive(self, own: socket.socket, limit: int) -> Iterator[tuple[bytes, Address]]:
        """Up to `limit` waiting datagrams of one socket, each with its source."""
        for _ in range(limit):
            try:
                yield own.recvfrom(_LARGEST_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                continue  # An ICMP error of an earlier send, reported here.

    def drop_backlog(self) -> int:
        """Throw away everything that waits, and count it: after a stall it is old news (DESIGN 5, rule 8)."""
        return sum(1 for own in self._sockets for _ in self.receive(own, _BACKLOG_LIMIT))

    def close(self) -> None:
        """Close the sockets."""
        for own in self._sockets:
            own.close()

    def _send(self, own: socket.socket, address: Address, datagram: bytes) -> None:
        try:
            own.sendto(datagram, address)
        except OSError:
            self.send_errors += 1


def _open(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    own = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _SO_PRIORITY)
        # The address may come later than we do (a slow link at boot): that is a silent network, not a reason to fail.
        if family == socket.AF_INET6:
            own.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _DSCP_CS6)
        else:
            own.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            own.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _DSCP_CS6)
        own.bind((address, port))
    except OSError as error:
        own.close()
        raise KernelError(
            f"membership socket {address} port {port}",
            error.strerror or str(error),
            "See who uses the port with `ss -ulnp`, or give the farm another `port` in farm.toml",
        ) from error
    return own
