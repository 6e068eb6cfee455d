# SPDX-License-Identifier: Apache-2.0
"""Hears Neighbour Solicitations for IPv6 VIPs on a real network.

They are sent to the VIP's solicited-node group (RFC 4291, 2.7.1). The kernel joins that group for its interface's own
addresses only, and the VIP is on lo: without a membership the NIC's multicast filter, and a switch that snoops MLD,
keep the solicitations away from the filter that would answer them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv6Address

from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts
from farmd.model.rules import Address

_PREFIX = IPv6Address("ff02::1:ff00:0").packed[:13]


def group_of(vip: IPv6Address) -> IPv6Address:
    """The solicited-node group of an address."""
    return IPv6Address(_PREFIX + vip.packed[13:])


def join(vips: Sequence[Address], interfaces: Sequence[InterfaceFacts]) -> socket.socket | None:
    """Join the groups of all IPv6 VIPs on every interface; the membership lasts as long as the socket that is returned.

    None if there is no IPv6 VIP. Raises KernelError.
    """
    groups = sorted({group_of(vip) for vip in vips if isinstance(vip, IPv6Address)})
    if not groups:
        return None
    member = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    for facts in interfaces:
        for group in groups:
            try:
                request = group.packed + struct.pack("=I", facts.ifindex)
                member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
            except OSError as error:
                member.close()
                step = "Switch IPv6 on for this interface, or remove the IPv6 VIPs"
                cause = f"it cannot join {group}: {error.strerror}"
                raise KernelError(f"interface {facts.name}", cause, step) from error
    return member
