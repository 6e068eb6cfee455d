# SPDX-License-Identifier: Apache-2.0
"""The interfaces of this network namespace, by netlink: /sys may belong to another namespace."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from ipaddress import ip_address
from typing import Any

from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts
from farmd.model.rules import Address
from farmd.net.netlink import talk

_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 3
_DRVINFO = struct.Struct("=I32s32s32s32s32s12sIIIII")
"""`struct ethtool_drvinfo`: the command, then the driver's name."""


def facts(wanted: Sequence[str] | Sequence[Address]) -> tuple[InterfaceFacts, ...]:
    """The interfaces that `wanted` names, or that have its addresses: in its order, each once.

    Raises KernelError for a name that does not exist and for an address that no interface has.
    """
    links = {link.name: link for link in every()}
    holders: dict[Address, list[int]] = {}
    if any(not isinstance(item, str) for item in wanted):
        holders = talk("network addresses", lambda route: _holders(route.get_addr()))
    found = (_by_name(item, links) if isinstance(item, str) else _by_address(item, holders, links) for item in wanted)
    return tuple(dict.fromkeys(found))


def _by_name(name: str, links: Mapping[str, InterfaceFacts]) -> InterfaceFacts:
    if name in links:
        return links[name]
    close = get_close_matches(name, links, n=1)
    hint = f'Did you mean "{close[0]}"?' if close else f"There are: {', '.join(sorted(links)) or 'none'}."
    raise KernelError(f"interface {name}", "there is none of this name in this network namespace", hint)


def _by_address(
    address: Address, holders: Mapping[Address, list[int]], links: Mapping[str, InterfaceFacts]
) -> InterfaceFacts:
    indexes = holders.get(address, [])
    for link in links.values():
        if link.ifindex in indexes:
            return link
    cause = "no interface of this network namespace has it"
    raise KernelError(f"address {address}", cause, "Configure it, or correct this member's addresses in farm.toml.")


def every() -> tuple[InterfaceFacts, ...]:
    """Facts about all Ethernet-like interfaces, by index; loopback and tunnels without a MAC address are left out."""
    links = talk("network interfaces", lambda route: list(route.get_links()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ask:
        facts = [_facts(link, ask) for link in links if len(_mac(link)) == 6 and link.get("ifname") != "lo"]
    return tuple(sorted(facts, key=lambda fact: fact.ifindex))


def _facts(link: Any, ask: socket.socket) -> InterfaceFacts:
    name = str(link.get("ifname"))
    return InterfaceFacts(
        name=name,
        ifindex=int(link["index"]),
        mac=_mac(link),
        kind=str(link.get(("linkinfo", "kind")) or ""),
        driver=_driver(name, ask),
        mtu=int(link.get("mtu")),
    )


def _mac(link: Any) -> bytes:
    return bytes.fromhex(str(link.get("address") or "").replace(":", ""))


def _driver(name: str, ask: socket.socket) -> str:
    """The driver as `ethtool -i` shows it; "" if the interface does not say."""
    info = array.array("B", _DRVINFO.pack(_ETHTOOL_GDRVINFO, *[b""] * 6, *[0] * 5))
    request = struct.pack("16sP", name.encode(), info.buffer_info()[0])
    try:
        fcntl.ioctl(ask, _SIOCETHTOOL, request)
    except OSError:
        return ""
    driver: bytes = _DRVINFO.unpack(info.tobytes())[1]
    return driver.rstrip(b"\0").decode(errors="replace")


def _holders(messages: Iterable[Any]) -> dict[Address, list[int]]:
    """Address -> indexes of the interfaces that have it."""
    holders: dict[Address, list[int]] = {}
    for message in messages:
        # On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is ours.
        text = message.get("local") or message.get("address")
        if text:
            holders.setdefault(ip_address(text), []).append(int(message["index"]))
    return holders
