# SPDX-License-Identifier: Apache-2.0
"""The shape of `farm.toml` for pydantic: tables, keys, types and ranges, each entry taken by itself.

`farmd.model.farmfile` imports this when it reads a file, so that commands which read none do not pay for pydantic.
What entries mean to each other is checked in `farmd.model.farmcheck`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from farmd.model.config import (
    HEALTH_PORT,
    MEMBERSHIP_PORT,
    METRICS_PORT,
    TIMINGS,
    AttachMode,
    Delivery,
    Listen,
    Profile,
)
from farmd.model.nodes import MAX_NODES, MAX_WEIGHT, Role
from farmd.model.rules import ALL_PORTS, MAX_RULES, MAX_VIPS, Address, Affinity, Protocol

MAX_ADDRESSES = 4
"""Heartbeat networks of one member."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-])[0-9A-Fa-f]{2}(\1[0-9A-Fa-f]{2}){4}")

_T = TypeVar("_T", bound=str)


def refuse(what: str, next_step: str) -> PydanticCustomError:
    """The error of a validator: `what` follows the key's name ("is ..."), `next_step` is a sentence."""
    return PydanticCustomError("farm", "{what}", {"what": what, "next_step": next_step})


def suggestion(word: str, known: Sequence[str], otherwise: str) -> str:
    """`Did you mean "..."?` if something known is close to `word`, else the sentence `otherwise`."""
    close = get_close_matches(word, known, n=1, cutoff=0.6) or [name for name in known if name.lower() == word.lower()]
    return f'Did you mean "{close[0]}"?' if close else otherwise


def quoted(words: Sequence[str]) -> str:
    """`"a", "b" and "c"`."""
    marked = [f'"{word}"' for word in words]
    return marked[0] if len(marked) == 1 else f"{', '.join(marked[:-1])} and {marked[-1]}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise refuse(f"is {shown(value)}, not a string", "Write it in quotes.")
    return value


def shown(value: object) -> str:
    """`value` as the file would say it, shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    return str(value)


def _choice(kind: Callable[[str], _T], known: Sequence[str]) -> PlainValidator:
    def check(value: object) -> _T:
        word = _text(value)
        if word not in known:
            listed = f"It can be {quoted(known)}." if len(known) == 1 else f"It is one of {quoted(known)}."
            raise refuse(f"is {shown(word)}", suggestion(word, known, listed))
        return kind(word)

    return PlainValidator(check)


def _address(value: object) -> Address:
    text = _text(value)
    try:
        address = ip_address(text)
    except ValueError:
        hint = "Leave out the prefix length." if "/" in text else 'Write one such as "192.0.2.7" or "2001:db8::7".'
        raise refuse(f"is {shown(text)}, not an IP address", hint) from None
    if isinstance(address, IPv6Address) and (address.scope_id or address.ipv4_mapped):
        hint = "Write a plain global or unique local address."
        raise refuse(f"is {shown(text)}, an address with a scope or a mapped IPv4 address", hint)
    if address.is_multicast or address.is_unspecified or address.is_loopback or address == _BROADCAST:
        raise refuse(f"is {text}, which no host on a network can have", "Write a unicast address.")
    return address


_BROADCAST = IPv4Address(0xFFFFFFFF)


def _mac(value: object) -> bytes:
    text = _text(value)
    if not _MAC.fullmatch(text):
        raise refuse(f"is {shown(text)}, not a MAC address", 'Write six bytes such as "02:fa:00:00:00:01".')
    mac = bytes.fromhex(re.sub("[:-]", "", text))
    if not any(mac) or mac == b"\xff" * 6:
        raise refuse(f"is {text}, which no farm can have", 'Write one such as "02:fa:00:00:00:01".')
    return mac


def _name(value: object) -> str:
    text = _text(value)
    if not _NAME.fullmatch(text):
        hint = "Use up to 63 letters, digits, dots, hyphens and underscores, a letter or digit first."
        raise refuse(f"is {shown(text)}, which cannot be a name", hint)
    return text


def _interface(value: object) -> str:
    text = _text(value)
    if not _INTERFACE.fullmatch(text) or text in {".", ".."}:
        raise refuse(f"is {shown(text)}, which cannot be an interface", "See `ip link` for the names on this machine.")
    return text


def _path(value: object) -> str:
    text = _text(value)
    if not text or "\0" in text:
        raise refuse(f"is {shown(text)}, which cannot be a path", "Write the path of a file, or leave the key out.")
    return text


def _listen(value: object) -> Listen:
    text = _text(value)
    host, _, port = text.rpartition(":")
    hint = 'Write an address and a port, such as "127.0.0.1:4805" or "[::1]:4805".'
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise refuse(f"is {shown(text)}, not an IP address and a port", hint) from None
    if bracketed != (address.version == 6) or address.is_multicast:
        raise refuse(f"is {shown(text)}, not an IP address and a port", hint)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise refuse(f"is {shown(text)}, which has no port from 1 to 65535", hint)
    return Listen(address, int(port))


def _ports(value: object) -> range:
    hint = f'Write a port from 1 to {ALL_PORTS[-1]}, a range such as "8000-8099", or "any".'
    if value == "any":
        return ALL_PORTS
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= ALL_PORTS[-1]:
        return range(value, value + 1)
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise refuse(f"is {shown(value)}, which names no ports", hint)
    first, last = int(match[1]), int(match[2])
    if not 1 <= first <= last <= ALL_PORTS[-1]:
        raise refuse(f"is {shown(value)}, which is no range of ports from 1 to {ALL_PORTS[-1]}, lower end first", hint)
    return range(first, last + 1)


Name = Annotated[str, PlainValidator(_name)]
FilePath = Annotated[str, PlainValidator(_path)]
OneAddress = Annotated[Address, PlainValidator(_address)]
Port = Annotated[int, Field(ge=1, le=65535)]
Weight = Annotated[int, Field(ge=0, le=MAX_WEIGHT)]


class Table(BaseModel):
    """A TOML table: unknown keys and values of another type are errors, and nothing changes after reading."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class FarmTable(Table):
    """`[farm]`: what all nodes share."""

    name: Name
    key_file: FilePath = "farm.key"
    profile: Annotated[Profile, _choice(Profile, tuple(Profile))] = Profile.EXCLUSIVE
    timing: Annotated[str, _choice(str, tuple(TIMINGS))] = "default"
    delivery: Annotated[Delivery, _choice(Delivery, tuple(Delivery))] = Delivery.FLOOD
    virtual_mac: Annotated[bytes | None, PlainValidator(_mac)] = None
    gateway: Annotated[Address | None, PlainValidator(_address)] = None
    port: Port = MEMBERSHIP_PORT
    voters: Annotated[list[Name], Field(min_length=1)] | None = None
    drop_without_rule: bool = True
    drain_deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3600.0


class NodeTable(Table):
    """`[node]`: the only part that differs between the nodes of a farm."""

    name: Annotated[str | None, PlainValidator(_name)] = None
    interfaces: list[Annotated[str, PlainValidator(_interface)]] = []
    attach_mode: Annotated[AttachMode, _choice(AttachMode, tuple(AttachMode))] = AttachMode.AUTO
    api_socket: FilePath = "/run/farmd/api.sock"
    engine_socket: FilePath = "/run/farmd/engine.sock"
    pin_dir: FilePath = "/sys/fs/bpf/farmd"
    state_dir: FilePath = "/var/lib/farmd"


class MemberTable(Table):
    """`[[member]]`: one server of the farm."""

    name: Name
    number: Annotated[int, Field(ge=0, lt=MAX_NODES)]
    addresses: Annotated[list[OneAddress], Field(min_length=1, max_length=MAX_ADDRESSES)]
    role: Annotated[Role, _choice(Role, tuple(Role))] = Role.NODE
    weight: Weight = 100


class VipTable(Table):
    """`[[vip]]`: an address that all nodes share."""

    address: OneAddress
    on_host: bool | None = None
    """Only with delivery external: whether packets reach the node with the VIP as their destination."""


class GroupTable(Table):
    """`[[group]]`: rules that share one bucket map, with weights of its own where it differs."""

    name: Name
    weights: dict[str, Weight] = {}


class RuleTable(Table):
    """`[[rule]]`: traffic that is shared out, and by what."""

    name: Name
    vip: OneAddress
    protocol: Annotated[Protocol, _choice(Protocol, tuple(Protocol))]
    port: Annotated[range, PlainValidator(_ports)]
    affinity: Annotated[Affinity, _choice(Affinity, tuple(Affinity))] = Affinity.CLIENT_IP
    group: Name = "default"


class MetricsTable(Table):
    """`[metrics]`: where Prometheus may ask; nowhere without this table."""

    listen: Annotated[Listen, PlainValidator(_listen)] = Listen(IPv4Address("127.0.0.1"), METRICS_PORT)


class HealthTable(Table):
    """`[health]`: where load balancers may ask; nowhere without this table, but for delivery external."""

    listen: Annotated[Listen, PlainValidator(_listen)] = Listen(IPv4Address(0), HEALTH_PORT)


class FarmFile(Table):
    """All of `farm.toml`."""

    farm: FarmTable
    node: NodeTable = NodeTable()
    member: Annotated[list[MemberTable], Field(min_length=1, max_length=MAX_NODES)]
    vip: Annotated[list[VipTable], Field(max_length=MAX_VIPS)] = []
    group: list[GroupTable] = []
    rule: Annotated[list[RuleTable], Field(max_length=MAX_RULES)] = []
    metrics: MetricsTable | None = None
    health: HealthTable | None = None


TABLES: dict[str, type[Table]] = {
    "farm": FarmTable,
    "node": NodeTable,
    "member": MemberTable,
    "vip": VipTable,
    "group": GroupTable,
    "rule": RuleTable,
    "metrics": MetricsTable,
    "health": HealthTable,
}


def known_keys(table: str | None) -> tuple[str, ...]:
    """The keys that `table` may have; of the whole file (None), the tables."""
    model: type[Table] = FarmFile if table is None else TABLES[table]
    return tuple(model.model_fields)


def validate(data: dict[str, Any]) -> FarmFile:
    """`data` as tables. Raises pydantic's ValidationError with every wrong entry."""
    return FarmFile.model_validate(data)
