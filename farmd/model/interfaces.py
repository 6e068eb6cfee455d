# SPDX-License-Identifier: Apache-2.0
"""What the data plane needs to know of a network interface."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InterfaceFacts:
    """One network interface of this namespace, as netlink tells it.

    `kind` is netlink's link kind ("veth", "bond", "vlan", ...), "" for a physical interface; `driver` the kernel
    driver's name, "" if there is none or it is unknown; `mac` has 6 bytes; `mtu` is in bytes, without the Ethernet
    header.
    """

    name: str
    ifindex: int
    mac: bytes
    kind: str
    driver: str
    mtu: int
