# SPDX-License-Identifier: Apache-2.0
"""What the entries of `farm.toml` mean to each other: names that exist, numbers used once, a farm that can work."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from farmd.model.config import MAX_VOTERS, Delivery, Profile
from farmd.model.farmshape import FarmFile, MemberTable, RuleTable, suggestion
from farmd.model.nodes import Role
from farmd.model.positions import Part, Path
from farmd.model.rules import MAX_GROUPS, Address, Affinity, Protocol, ports_text

DEFAULT_GROUP = "default"
"""The group that exists in every farm, at index 0."""

_ANY = {4: IPv4Address(0), 6: IPv6Address(0)}
"""What a program listens on that listens everywhere, by version."""

_V = TypeVar("_V", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong, and where: `path` in the file's tree, its key or its value."""

    path: Path
    cause: str
    next_step: str
    part: Part = Part.VALUE


def findings(file: FarmFile, host_name: str) -> list[Finding]:
    """Everything wrong with a file whose shape is right. `host_name` names this node if `[node]` does not."""
    return [
        *_members(file),
        *_addresses(file),
        *_this_node(file, host_name),
        *_voters(file),
        *_profile(file),
        *_virtual_mac(file),
        *_vips(file),
        *_groups(file),
        *_rules(file),
        *_health(file),
    ]


def group_names(file: FarmFile) -> list[str]:
    """All groups in index order: `default`, then the others as written."""
    return [DEFAULT_GROUP, *(group.name for group in file.group if group.name != DEFAULT_GROUP)]


def default_voters(members: Sequence[MemberTable]) -> list[str]:
    """Who votes unless the file says so: everybody, or in a large farm the witnesses and the lowest-numbered nodes."""
    ranked = sorted(members, key=lambda member: (member.role is not Role.WITNESS, member.number))
    return [member.name for member in ranked[:MAX_VOTERS]]


def _repeated(entries: Iterable[tuple[Path, _V, str]]) -> Iterator[tuple[Path, _V, str]]:
    """Of entries (path, value, owner), those whose value came before; with the owner that had it first."""
    first: dict[_V, str] = {}
    for path, value, owner in entries:
        if value in first:
            yield path, value, first[value]
        else:
            first[value] = owner


def _unknown_member(path: Path, name: str, known: Sequence[str], part: Part = Part.VALUE) -> Finding:
    listed = f"The members are {', '.join(known)}."
    return Finding(path, f'there is no member "{name}"', suggestion(name, known, listed), part)


def _members(file: FarmFile) -> Iterator[Finding]:
    names = ((("member", i, "name"), member.name, "") for i, member in enumerate(file.member))
    for path, name, _ in _repeated(names):
        yield Finding(path, f'two members are named "{name}"', "Give each member a name of its own.")
    numbers = ((("member", i, "number"), member.number, member.name) for i, member in enumerate(file.member))
    taken = {member.number for member in file.member}
    free = min(set(range(len(taken) + 1)) - taken)
    for path, number, owner in _repeated(numbers):
        yield Finding(path, f'{number} is already the number of "{owner}"', f"Take a free one, such as {free}.")
    if all(member.role is Role.WITNESS for member in file.member):
        yield Finding(("member", 0, "role"), "every member is a witness", 'Give at least one the role "node".')


def _addresses(file: FarmFile) -> Iterator[Finding]:
    entries = [
        (("member", i, "addresses", j), address, member.name)
        for i, member in enumerate(file.member)
        for j, address in enumerate(member.addresses)
    ]
    for path, address, owner in _repeated(entries):
        yield Finding(path, f'{address} is already an address of "{owner}"', "Give each member its own addresses.")
    expected = [address.version for address in file.member[0].addresses]
    for path, address, _ in entries:
        place = int(path[3])
        if place < len(expected) and address.version != expected[place]:
            first = file.member[0]
            cause = f'{address} is IPv{address.version}, but "{first.name}" has IPv{expected[place]} in this place'
            yield Finding(path, cause, "List the addresses of one network in the same place at every member.")


def _this_node(file: FarmFile, host_name: str) -> Iterator[Finding]:
    known = [member.name for member in file.member]
    name = file.node.name or host_name
    me = next((member for member in file.member if member.name == name), None)
    if me is None and file.node.name:
        yield _unknown_member(("node", "name"), name, known)
    elif me is None:
        step = f'Add name = "..." to [node]: one of {", ".join(known)}.'
        yield Finding(("node",), f'this host is named "{name}", and no member is', step, Part.KEY)
    elif me.role is Role.WITNESS and file.node.interfaces:
        step = "Remove interfaces: only nodes filter."
        yield Finding(("node", "interfaces"), f'"{name}" is a witness, which has no filter', step, Part.KEY)
    for path, interface, _ in _repeated((("node", "interfaces", i), n, "") for i, n in enumerate(file.node.interfaces)):
        yield Finding(path, f'interface "{interface}" is listed twice', "Remove one of the two.")


def _voters(file: FarmFile) -> Iterator[Finding]:
    known = [member.name for member in file.member]
    here: Path = ("farm", "voters")
    if file.farm.voters is None:
        witnesses = sum(member.role is Role.WITNESS for member in file.member)
        if witnesses > MAX_VOTERS:
            yield Finding(("member",), f"there are {witnesses} witnesses", f"A farm has at most {MAX_VOTERS} voters.")
        return
    for i, name in enumerate(file.farm.voters):
        if name not in known:
            yield _unknown_member((*here, i), name, known)
    for path, name, _ in _repeated(((*here, i), name, "") for i, name in enumerate(file.farm.voters)):
        yield Finding(path, f'"{name}" is listed twice', "Remove one of the two.")
    if len(file.farm.voters) > MAX_VOTERS:
        cause = f"there are {len(file.farm.voters)} voters, more than {MAX_VOTERS}"
        yield Finding(here, cause, "Name an odd number of members, or leave voters out.", Part.KEY)
    for i, member in enumerate(file.member):
        if member.role is Role.WITNESS and member.name not in file.farm.voters:
            step = "Add it to voters in [farm], or remove the member."
            yield Finding(("member", i, "role"), f'"{member.name}" is a witness but no voter, so it does nothing', step)


def _profile(file: FarmFile) -> Iterator[Finding]:
    if file.farm.profile is not Profile.AVAILABLE:
        return
    here: Path = ("farm", "profile")
    nodes = sum(member.role is Role.NODE for member in file.member)
    witnesses = len(file.member) - nodes
    if nodes != 2 or witnesses:
        count = f"{nodes} node{'s' if nodes != 1 else ''}"
        count += f" and {witnesses} witness{'es' if witnesses != 1 else ''}" if witnesses else ""
        step = 'Use profile = "exclusive": with a majority to be had, it loses nothing.'
        step = 'Add the second node, or use profile = "exclusive".' if len(file.member) < 2 else step
        yield Finding(here, f'profile "available" is for exactly two nodes and no witness, not {count}', step)
    if file.farm.gateway is None:
        step = 'Add gateway = "...", the router that clients\' packets come through.'
        yield Finding(here, 'profile "available" needs a gateway to tell a dead peer from a cut-off self', step)


def _virtual_mac(file: FarmFile) -> Iterator[Finding]:
    mac, delivery = file.farm.virtual_mac, file.farm.delivery
    if mac is None:
        return
    here: Path = ("farm", "virtual_mac")
    text, group = mac.hex(":"), bool(mac[0] & 1)
    if delivery is Delivery.MULTICAST and not group:
        step = f"Take one whose first byte is odd, such as {mac[0] | 1:02x}."
        yield Finding(here, f'{text} is no group address, which delivery "multicast" needs', step)
    elif delivery is Delivery.FLOOD and group:
        step = f'Take one whose first byte is even, such as {mac[0] & 0xFE:02x}, or delivery = "multicast".'
        yield Finding(here, f'{text} is a group address, and delivery "flood" needs a unicast one', step)
    elif delivery is Delivery.DIRECTED:
        step = "Remove it: VIPs resolve to the nodes' own addresses."
        yield Finding(here, 'delivery "directed" has no virtual MAC', step, Part.KEY)


def _vips(file: FarmFile) -> Iterator[Finding]:
    entries = [(("vip", i, "address"), vip.address, "") for i, vip in enumerate(file.vip)]
    for path, address, _ in _repeated(entries):
        yield Finding(path, f"VIP {address} is listed twice", "Remove one of the two.")
    owners = {address: member.name for member in file.member for address in member.addresses}
    for path, address, _ in entries:
        if address in owners and file.farm.delivery is not Delivery.EXTERNAL:
            step = "A VIP is an address that no host has by itself."
            yield Finding(path, f'VIP {address} is an address of member "{owners[address]}"', step)
        if address.is_link_local:
            yield Finding(path, f"VIP {address} is link-local", "Take an address that clients can route to.")
        if address == file.farm.gateway:
            yield Finding(path, f"VIP {address} is the gateway's address", "Take an address that no host has.")
    for i, vip in enumerate(file.vip):
        if vip.on_host is not None and file.farm.delivery is not Delivery.EXTERNAL:
            cause = f'"on_host" is for delivery "external"; with "{file.farm.delivery}" a VIP is on every node'
            yield Finding(("vip", i, "on_host"), cause, 'Remove it, or set delivery = "external".', Part.KEY)
    if file.farm.gateway in owners:
        step = "Name the router that clients' packets come through."
        cause = f'the gateway is member "{owners[file.farm.gateway]}"'
        yield Finding(("farm", "gateway"), cause, step)


def _groups(file: FarmFile) -> Iterator[Finding]:
    names = ((("group", i, "name"), group.name, "") for i, group in enumerate(file.group))
    for path, name, _ in _repeated(names):
        yield Finding(path, f'two groups are named "{name}"', "Give each group a name of its own.")
    if len(group_names(file)) > MAX_GROUPS:
        cause = f'there are more than {MAX_GROUPS} groups, the group "{DEFAULT_GROUP}" counted'
        yield Finding(("group", len(file.group) - 1), cause, "Let rules that move together share a group.")
    nodes = {member.name: member.weight for member in file.member if member.role is Role.NODE}
    witnesses = {member.name for member in file.member if member.role is Role.WITNESS}
    for i, group in enumerate(file.group):
        for name in group.weights:
            here: Path = ("group", i, "weights", name)
            if name in witnesses:
                yield Finding(here, f'"{name}" is a witness, which has no weight', "Remove it here.", Part.KEY)
            elif name not in nodes:
                yield _unknown_member(here, name, list(nodes), Part.KEY)
        if nodes and not any((nodes | group.weights).get(name) for name in nodes):
            step = "Give at least one node a weight above 0."
            yield Finding(("group", i, "weights"), f'every weight in group "{group.name}" is 0', step, Part.KEY)
    if nodes and not any(nodes.values()):
        step = "Give at least one node a weight above 0."
        yield Finding(("member", 0, "weight"), "every member's weight is 0, so nobody would serve", step)


def _rules(file: FarmFile) -> Iterator[Finding]:
    for path, name, _ in _repeated((("rule", i, "name"), rule.name, "") for i, rule in enumerate(file.rule)):
        yield Finding(path, f'two rules are named "{name}"', "Give each rule a name of its own.")
    yield from _overlaps(file)
    yield from _affinities(file)
    vips = [str(vip.address) for vip in file.vip]
    groups = group_names(file)
    for i, rule in enumerate(file.rule):
        if str(rule.vip) not in vips:
            step = f'Add a [[vip]] with address = "{rule.vip}".'
            yield Finding(("rule", i, "vip"), f"there is no VIP {rule.vip}", suggestion(str(rule.vip), vips, step))
        if rule.group not in groups:
            step = f'Add a [[group]] with name = "{rule.group}".'
            cause = f'there is no group "{rule.group}"'
            yield Finding(("rule", i, "group"), cause, suggestion(rule.group, groups, step))


def _overlaps(file: FarmFile) -> Iterator[Finding]:
    """Each rule that names a port of a rule before it."""
    before: dict[tuple[Address, Protocol], list[RuleTable]] = {}
    for i, rule in enumerate(file.rule):
        others = before.setdefault((rule.vip, rule.protocol), [])
        for other in others:
            if rule.port.start < other.port.stop and other.port.start < rule.port.stop:
                named = f"port{'s' * (len(other.port) > 1)} {ports_text(other.port)}"
                cause = f'rule "{other.name}" already names {rule.protocol} {named} of {rule.vip}'
                yield Finding(("rule", i, "port"), cause, "Remove one of the two, or change its port.")
                break
        others.append(rule)


def _affinities(file: FarmFile) -> Iterator[Finding]:
    for i, rule in enumerate(file.rule):
        if rule.affinity is not Affinity.PACKET_ID:
            continue
        here: Path = ("rule", i, "affinity")
        step = 'Use "client-ip-port", which places each connection on its own.'
        if rule.protocol is Protocol.TCP:
            cause = '"packet-id" is for UDP: it would tear TCP connections apart, each of whose packets has another id'
            yield Finding(here, cause, step)
        elif rule.vip.version == 6:
            yield Finding(here, '"packet-id" is for IPv4: IPv6 packets have no id', step)


def _health(file: FarmFile) -> Iterator[Finding]:
    if file.health is None:
        return
    place, here = file.health.listen, ("health", "listen")
    if file.metrics is not None and file.metrics.listen.port == place.port:
        addresses = {file.metrics.listen.address, place.address}
        if len(addresses) == 1 or any(address.is_unspecified for address in addresses):
            step = "Give one of the two another port."
            yield Finding(here, f"port {place.port} is that of [metrics] already", step)
    for rule in file.rule:
        if (
            rule.protocol is Protocol.TCP
            and place.port in rule.port
            and place.address in (rule.vip, _ANY[rule.vip.version])
        ):
            yield Finding(here, f'port {place.port} is that of rule "{rule.name}"', "Take a port that no rule has.")
