# SPDX-License-Identifier: Apache-2.0
"""The TCP sockets that live behind the VIPs, by the kernel's sock_diag.

The dump is decoded here rather than by pyroute2, which takes far longer for the attributes that nobody reads; a node
that drains asks twice a second, and it may have tens of thousands of sockets.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from farmd.model.errors import KernelError
from farmd.model.rules import Address

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST_DUMP = 0x301
_RECEIVE_BYTES = 1 << 16
_HEADER = struct.Struct("=IHHII")
"""`struct nlmsghdr`: length, type, flags, sequence number, port."""
_QUERY = struct.Struct("=BBBxI48x")
"""`struct inet_diag_req_v2`: family, protocol, extensions, states; the socket id stays zero, which matches all."""
_ANSWER = struct.Struct("!4xHH16s16s")
"""The start of `struct inet_diag_msg` after family and state: ports and addresses, in network order."""
_MAPPED = bytes(10) + b"\xff\xff"


class SocketState(StrEnum):
    """TCP states of a socket that has a peer."""

    ESTABLISHED = "established"
    SYN_SENT = "syn-sent"
    SYN_RECEIVED = "syn-received"
    FIN_WAIT_1 = "fin-wait-1"
    FIN_WAIT_2 = "fin-wait-2"
    TIME_WAIT = "time-wait"
    """Closed on both sides: the kernel only keeps the tuple for late segments."""
    CLOSE_WAIT = "close-wait"
    LAST_ACK = "last-ack"
    CLOSING = "closing"


_STATES = {
    1: SocketState.ESTABLISHED,
    2: SocketState.SYN_SENT,
    3: SocketState.SYN_RECEIVED,
    4: SocketState.FIN_WAIT_1,
    5: SocketState.FIN_WAIT_2,
    6: SocketState.TIME_WAIT,
    8: SocketState.CLOSE_WAIT,
    9: SocketState.LAST_ACK,
    11: SocketState.CLOSING,
    12: SocketState.SYN_RECEIVED,  # the kernel's own number for a half-open connection without a full socket
}
_ALL_STATES = sum(1 << number for number in _STATES)


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP socket whose local address is a VIP. Ports are in host order."""

    vip: Address
    vport: int
    client: Address
    cport: int
    state: SocketState

    @property
    def lingering(self) -> bool:
        """In TIME_WAIT: no connection any more for people, but its last segments may still come."""
        return self.state is SocketState.TIME_WAIT


def connections(vips: Collection[Address]) -> list[Connection]:
    """Every TCP socket of this network namespace that has a peer and whose local address is one of `vips`.

    Half-open and TIME_WAIT sockets are in, listening ones are not. A dump is not a snapshot: a connection that opens or
    closes meanwhile may or may not be in. Raises KernelError.
    """
    found: list[Connection] = []
    # A server that listens on [::] for both families has IPv4 connections on IPv6 sockets, as mapped addresses.
    wanted: dict[bytes, Address] = {vip.packed.ljust(16, b"\0"): vip for vip in vips if vip.version == 4}
    if wanted:
        _collect(socket.AF_INET, wanted, found)
    mapped: dict[bytes, Address] = {_MAPPED + vip.packed: vip for vip in vips if vip.version == 4}
    wanted_v6 = mapped | {vip.packed: vip for vip in vips if vip.version == 6}
    if wanted_v6 and socket.has_ipv6:
        _collect(socket.AF_INET6, wanted_v6, found)
    return found


def _collect(family: int, vips: dict[bytes, Address], found: list[Connection]) -> None:
    unpack, states = _ANSWER.unpack_from, _STATES
    clients: dict[bytes, Address] = {}
    for data, start in dump(family, socket.IPPROTO_TCP, _ALL_STATES):
        vport, cport, local, remote = unpack(data, start)
        vip = vips.get(local)
        if vip is None:
            continue
        state = states.get(data[start + 1])
        if state is None:
            continue
        client = clients.get(remote)
        if client is None:
            client = clients[remote] = _client(vip, remote)
        found.append(Connection(vip, vport, client, cport, state))


def _client(vip: Address, remote: bytes) -> Address:
    if vip.version == 6:
        return IPv6Address(remote)
    return IPv4Address(remote[12:] if remote.startswith(_MAPPED) else remote[:4])


def dump(family: int, protocol: int, states: int) -> Iterator[tuple[bytes, int]]:
    """(buffer, offset of an inet_diag_msg in it) for every socket of `family` and `protocol` in one of `states`.

    `states` has a bit for each of the kernel's TCP states. Raises KernelError.
    """
    query = _QUERY.pack(family, protocol, 0, states)
    request = _HEADER.pack(_HEADER.size + len(query), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + query
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
            link.send(request)
            while True:
                data = link.recv(_RECEIVE_BYTES)
                start = 0
                while start + _HEADER.size <= len(data):
                    length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data, start)
                    if kind == _NLMSG_DONE:
                        return
                    if kind == _NLMSG_ERROR:
                        code = -struct.unpack_from("=i", data, start + _HEADER.size)[0]
                        raise OSError(code, os.strerror(code))
                    yield data, start + _HEADER.size
                    start += (length + 3) & ~3
    except OSError as error:
        raise _refused(error) from error


def _refused(error: OSError) -> KernelError:
    subject = "TCP sockets behind the VIPs"
    if error.errno in (errno.ENOENT, errno.EPROTONOSUPPORT):
        return KernelError(subject, "this kernel has no sock_diag for TCP", "Load it: modprobe tcp_diag.")
    return KernelError(subject, f"they cannot be listed: {(error.strerror or str(error)).lower()}", "See `ss -tn`.")
