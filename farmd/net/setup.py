# SPDX-License-Identifier: Apache-2.0
"""Makes this network namespace ready to serve the farm's VIPs, and puts it back.

A VIP is on every node at once, so the one thing that must never happen is that a node tells its neighbours its own MAC
address for it. The filter answers for the VIPs; the kernel must keep quiet:

- IPv4: the VIP is a /32 on lo with scope host, so that it is never picked as the source of an ARP request or of a
  connection, not even while the interface has lost its own address. `arp_ignore=1` stops replies for addresses of
  other interfaces, `arp_announce=2` stops requests that mention them.
- IPv6: the VIP is a /128 on lo. Linux answers a Neighbour Solicitation only for addresses of the interface it came in
  by, so lo's are never answered for. No duplicate address detection, which would fail by design, and preferred
  lifetime 0, so that it is not picked as a source either.
- `rp_filter`: strict reverse-path filtering silently drops clients whose way back leads through another interface;
  where it is on, the interface gets the loose form.
- The NIC must let frames for the virtual MAC in, by its unicast or, in delivery `multicast`, its multicast filter.
  Delivery `directed` has no virtual MAC.

Where a load balancer outside decides (delivery `external`) there is no virtual MAC, and a VIP is on lo only if
farm.toml says that packets come with it as their destination (`on_host`). The settings are the same then: the balancer
answers for the VIP, and the kernel must keep quiet. A VIP that some interface has already is left as it is.

Every function may be called again at any time.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from ipaddress import ip_address
from typing import Any

from farmd.model.config import Delivery, FarmConfig
from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts
from farmd.model.nodes import Role
from farmd.model.rules import Address
from farmd.net import sysctl
from farmd.net.netlink import attempt, talk
from farmd.net.record import FILE, Record, discard, load, save

_IFF_UP = 0x1
_IFF_PROMISC = 0x100
_NTF_SELF = 0x02
_NUD_PERMANENT = 0x80
_IFA_F_NODAD = 0x02
_SCOPE_HOST = 254
_FOREVER = 0xFFFFFFFF
_GONE = {errno.ENODEV, errno.ENOENT, errno.EADDRNOTAVAIL}
_NO_FILTER = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC, errno.ENOMEM}
_RP_STRICT, _RP_LOOSE = 1, 2


class Acceptance(StrEnum):
    """How an interface comes to let frames for the virtual MAC in."""

    UNICAST_FILTER = "unicast-filter"
    """The address is in the NIC's unicast filter: the host sees no other foreign frames."""
    MULTICAST_FILTER = "multicast-filter"
    """The same for a group address."""
    OWN_MAC = "own-mac"
    """Nothing to let in: VIPs are at the interface's own address."""
    PROMISCUOUS = "promiscuous"
    """The NIC has no unicast filter to spare, or is promiscuous anyway: the host sees all frames."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` arrived at: interface -> how it accepts the virtual MAC, and what it changed this time, in words."""

    acceptance: dict[str, Acceptance]
    changes: tuple[str, ...]


def apply(config: FarmConfig, interfaces: Sequence[InterfaceFacts]) -> Applied:
    """VIPs on lo, settings, virtual MAC accepted on `interfaces`. A witness needs nothing.

    Only changes what is not right yet, and takes back what an earlier call did for VIPs, a virtual MAC or interfaces
    that the farm no longer has. Raises KernelError; what was done until then stays, is recorded, and is no harm.
    """
    if config.me.role is Role.WITNESS:
        return Applied({}, ())
    work = _Work(config, load(config.state_dir), [])
    _settings(work, interfaces)
    talk("VIPs on lo", lambda route: _addresses(route, work))
    if not config.filters:
        talk("virtual MAC", lambda route: _forget_macs(route, work, set()))
        talk("promiscuous mode", lambda route: _not_promiscuous(route, work))
        return Applied({}, tuple(work.changes))
    talk("virtual MAC", lambda route: _forget_macs(route, work, {facts.name for facts in interfaces}))
    acceptance = {}
    for facts in interfaces:
        acceptance[facts.name] = talk(f"interface {facts.name}", partial(_accept, work=work, facts=facts))
    return Applied(acceptance, tuple(work.changes))


def retire(config: FarmConfig) -> None:
    """Take VIPs that the farm no longer has off lo: before the filter forgets them, or this host would answer for them.

    Raises KernelError.
    """
    work = _Work(config, load(config.state_dir), [])
    talk("VIPs on lo", lambda route: _drop_addresses(route, work, _retired(work)))


def remove(config: FarmConfig, interfaces: Sequence[InterfaceFacts] = ()) -> tuple[str, ...]:
    """Undoes what `apply` is known to have changed; says what was undone.

    A setting that someone has changed since is left alone. If the record is lost, the VIPs are taken off lo, the
    virtual MAC off `interfaces`, and settings stay.
    """
    work = _Work(config, load(config.state_dir), [])
    if not (config.state_dir / FILE).exists():
        work.record.addresses.extend(map(str, config.vips))
        work.record.macs.extend((facts.name, config.virtual_mac.hex(":")) for facts in interfaces)
    addresses = [ip_address(text) for text in work.record.addresses]
    talk("VIPs on lo", lambda route: _drop_addresses(route, work, addresses))
    talk("virtual MAC", lambda route: _forget_macs(route, work, set()))
    talk("promiscuous mode", lambda route: _not_promiscuous(route, work))
    for name, (found, ours) in work.record.settings.items():
        if sysctl.read(name) == ours:
            sysctl.write(name, found)
            work.changes.append(f"{sysctl.spoken(name)} is {found} again")
    discard(config.state_dir)
    return tuple(work.changes)


@dataclass(frozen=True, slots=True)
class _Work:
    """What every step needs. Steps note a change in `record` and save it before they make it."""

    config: FarmConfig
    record: Record
    changes: list[str]

    def save(self) -> None:
        save(self.record, self.config.state_dir)


def _settings(work: _Work, interfaces: Sequence[InterfaceFacts]) -> None:
    wanted: list[tuple[str, int]] = []
    if any(vip.version == 4 for vip in work.config.host_vips):
        for name in ("all", *(facts.name for facts in interfaces)):
            wanted += [(f"ipv4/conf/{name}/arp_ignore", 1), (f"ipv4/conf/{name}/arp_announce", 2)]
        # The kernel takes the higher of `all` and the interface, so a strict `all` can be loosened for one interface.
        everywhere = sysctl.read("ipv4/conf/all/rp_filter")
        for facts in interfaces:
            name = f"ipv4/conf/{facts.name}/rp_filter"
            if max(everywhere or 0, sysctl.read(name) or 0) == _RP_STRICT:
                wanted.append((name, _RP_LOOSE))
    for name, least in wanted:
        found = sysctl.read(name)
        if found is not None and found < least:
            original = work.record.settings.get(name, (found, least))[0]
            work.record.settings[name] = (original, least)
            work.save()
            sysctl.write(name, least)
            work.changes.append(f"{sysctl.spoken(name)} is {least}, was {found}")


def _addresses(route: Any, work: _Work) -> None:
    links = {int(link["index"]): link for link in route.get_links()}
    lo = next(index for index, link in links.items() if link.get("ifname") == "lo")
    present: set[Address] = set()
    for message in route.get_addr():
        address = ip_address(message.get("local") or message.get("address"))
        if int(message["index"]) == lo or not work.config.filters:
            present.add(address)
        elif address in work.config.vips:
            name = links[int(message["index"])].get("ifname")
            cause = f"it is configured on {name}, so the kernel would tell this node's own MAC address for it"
            raise KernelError(f"VIP {address}", cause, f"Remove it there: ip address del {address} dev {name}.")
    _drop_addresses(route, work, _retired(work))
    if not links[lo]["flags"] & _IFF_UP:
        route.link("set", index=lo, state="up")
    for vip in work.config.host_vips:
        if vip in present:
            continue
        if str(vip) not in work.record.addresses:
            work.record.addresses.append(str(vip))
            work.save()
        _add_address(route, lo, vip)
        work.changes.append(f"VIP {vip} is on lo")


def _retired(work: _Work) -> list[Address]:
    return [ip_address(text) for text in work.record.addresses if ip_address(text) not in work.config.host_vips]


def _add_address(route: Any, lo: int, vip: Address) -> None:
    call: dict[str, Any]
    if vip.version == 4:
        call = {"family": socket.AF_INET, "prefixlen": 32, "scope": _SCOPE_HOST}
    elif sysctl.read("ipv6/conf/lo/disable_ipv6") == 0:
        quiet = {"flags": _IFA_F_NODAD, "preferred": 0, "valid": _FOREVER}
        call = {"family": socket.AF_INET6, "prefixlen": 128, **quiet}
    else:
        step = "Switch it on: sysctl net.ipv6.conf.lo.disable_ipv6=0, or remove this VIP."
        raise KernelError(f"VIP {vip}", "IPv6 is switched off on lo", step)
    attempt(lambda: route.addr("add", index=lo, address=str(vip), **call), {errno.EEXIST})


def _drop_addresses(route: Any, work: _Work, addresses: Sequence[Address]) -> None:
    lo = route.link_lookup(ifname="lo")[0]
    for address in addresses:
        call = partial(route.addr, "del", index=lo, address=str(address), prefixlen=address.max_prefixlen)
        if attempt(call, _GONE) == 0:
            work.changes.append(f"VIP {address} is no longer on lo")
        if str(address) in work.record.addresses:
            work.record.addresses.remove(str(address))
            work.save()


def _accept(route: Any, *, work: _Work, facts: InterfaceFacts) -> Acceptance:
    """Puts the virtual MAC into the NIC's filter. Linux itself goes promiscuous on a NIC that has none."""
    virtual = _virtual_mac(work.config)
    if virtual is None:
        return Acceptance.OWN_MAC
    if facts.mac == virtual:
        cause = "its own MAC address is the farm's virtual MAC, so switches would learn it"
        raise KernelError(f"interface {facts.name}", cause, "Change virtual_mac in farm.toml, or the interface's.")
    entry = (facts.name, virtual.hex(":"))
    known = entry in work.record.macs
    if not known:
        work.record.macs.append(entry)
        work.save()
    code = attempt(partial(_filter_entry, route, "add", facts.ifindex, entry[1]), _NO_FILTER | {errno.EEXIST})
    if code and not known:
        work.record.macs.remove(entry)
        work.save()
    if code == 0:
        work.changes.append(f"{facts.name} accepts {entry[1]}")
    link = route.get_links(facts.ifindex)[0]
    if code in _NO_FILTER and not link["flags"] & _IFF_PROMISC:
        work.record.promiscuous.append(facts.name)
        work.save()
        route.link("set", index=facts.ifindex, flags=_IFF_PROMISC, change=_IFF_PROMISC)
        work.changes.append(f"{facts.name} is promiscuous: it has no room in a unicast filter")
    promiscuous = code in _NO_FILTER or bool(link.get("promiscuity"))
    if promiscuous:
        return Acceptance.PROMISCUOUS
    return Acceptance.MULTICAST_FILTER if virtual[0] & 1 else Acceptance.UNICAST_FILTER


def _virtual_mac(config: FarmConfig) -> bytes | None:
    return None if config.delivery is Delivery.DIRECTED else config.virtual_mac


def _filter_entry(route: Any, verb: str, ifindex: int, mac: str) -> None:
    route.fdb(verb, ifindex=ifindex, lladdr=mac, flags=_NTF_SELF, state=_NUD_PERMANENT)


def _forget_macs(route: Any, work: _Work, interfaces: set[str]) -> None:
    """Takes back what was done for another virtual MAC, or for an interface that is not among `interfaces`."""
    for name, mac in work.record.macs.copy():
        if name in interfaces and bytes.fromhex(mac.replace(":", "")) == _virtual_mac(work.config):
            continue
        for ifindex in route.link_lookup(ifname=name):
            if attempt(partial(_filter_entry, route, "del", ifindex, mac), _GONE) == 0:
                work.changes.append(f"{name} no longer accepts {mac}")
        work.record.macs.remove((name, mac))
        work.save()


def _not_promiscuous(route: Any, work: _Work) -> None:
    for name in work.record.promiscuous:
        for ifindex in route.link_lookup(ifname=name):
            route.link("set", index=ifindex, flags=0, change=_IFF_PROMISC)
            work.changes.append(f"{name} is no longer promiscuous")
