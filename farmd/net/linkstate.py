# SPDX-License-Identifier: Apache-2.0
"""How the links of this namespace stand: carrier, promiscuity, accepted addresses; and who has which IP address."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from farmd.model.rules import Address
from farmd.net.netlink import talk

_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_NTF_SELF = 0x02


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link now. `accepted` are the MACs in its filters besides its own."""

    up: bool
    promiscuous: bool
    accepted: frozenset[bytes]


def states() -> dict[str, LinkState]:
    """Every link of this namespace by name. Raises KernelError."""
    return talk("network interfaces", _states)


def addresses() -> dict[Address, tuple[str, ...]]:
    """Every address of this namespace and the interfaces that have it. Raises KernelError."""
    return talk("network addresses", _addresses)


def _states(route: Any) -> dict[str, LinkState]:
    filters: dict[int, set[bytes]] = {}
    for entry in route.fdb("dump"):
        mac = entry.get("lladdr")
        if entry["flags"] & _NTF_SELF and mac:
            filters.setdefault(int(entry["ifindex"]), set()).add(bytes.fromhex(str(mac).replace(":", "")))
    return {
        str(link.get("ifname")): LinkState(
            up=link["flags"] & (_IFF_UP | _IFF_LOWER_UP) == _IFF_UP | _IFF_LOWER_UP,
            promiscuous=bool(link.get("promiscuity")),
            accepted=frozenset(filters.get(int(link["index"]), ())),
        )
        for link in route.get_links()
    }


def _addresses(route: Any) -> dict[Address, tuple[str, ...]]:
    names = {int(link["index"]): str(link.get("ifname")) for link in route.get_links()}
    found: dict[Address, tuple[str, ...]] = {}
    for message in route.get_addr():
        text = message.get("local") or message.get("address")
        if text:
            address = ip_address(text)
            found[address] = (*found.get(address, ()), names[int(message["index"])])
    return found


def next_hop(address: Address) -> tuple[str, bool]:
    """The interface that packets to `address` leave by, and whether it is on that link itself. Raises KernelError."""
    return talk(f"route to {address}", lambda route: _next_hop(route, address))


def _next_hop(route: Any, address: Address) -> tuple[str, bool]:
    answer = route.route("get", dst=str(address))[0]
    link = route.get_links(int(answer.get("oif")))[0]
    return str(link.get("ifname")), answer.get("gateway") is None and answer.get("via") is None
