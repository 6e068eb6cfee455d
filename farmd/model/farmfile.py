# SPDX-License-Identifier: Apache-2.0
"""Reads `farm.toml`: text in, a `FarmConfig` or every problem of the file out.

In three steps, each of which reports all that it finds: TOML syntax (`tomllib` stops at the first error, so there is
one), shape (`farmshape`), meaning (`farmcheck`). Places are looked up only when there is something to report.
"""

from __future__ import annotations

import os
import re
import tomllib
from hashlib import sha256
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from farmd.model.config import TIMINGS, Delivery, FarmConfig, Listen, Member
from farmd.model.errors import ConfigError, Problem
from farmd.model.nodes import NodeId, Role
from farmd.model.positions import Place, Positions
from farmd.model.rules import Address, Group, Rule

if TYPE_CHECKING:
    from farmd.model.farmcheck import Finding
    from farmd.model.farmshape import FarmFile, RuleTable

MAX_BYTES = 1 << 20
"""A farm.toml with 64 members and 1000 rules has about 150 kB."""


def load(path: FilePath, *, host_name: str | None = None) -> FarmConfig:
    """The configuration in the file at `path`. Raises ConfigError, also for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unreadable(path, "there is no such file", "Write one, or name another with --config.") from None
    except OSError as error:
        cause = f"it cannot be read: {(error.strerror or str(error)).lower()}"
        raise _unreadable(path, cause, "Check its path and permissions.") from error
    if len(data) > MAX_BYTES:
        raise _unreadable(path, f"it has more than {MAX_BYTES >> 20} MiB", "Check that this is a farm.toml.")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        cause = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise ConfigError((Problem(str(path), line, column, cause, "Save the file as UTF-8."),)) from None
    return parse(text, path, host_name=host_name)


def parse(text: str, path: FilePath, *, host_name: str | None = None) -> FarmConfig:
    """The configuration that `text` describes; `path` is where it came from, and relative paths start at its folder.

    `host_name` is the name of this node if `[node]` does not give one; None asks the kernel. Raises ConfigError.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError((_syntax_problem(str(error), text, path),)) from None
    from pydantic import ValidationError

    from farmd.model.farmcheck import findings
    from farmd.model.farmshape import validate
    from farmd.model.farmwords import shape_findings

    host_name = os.uname().nodename if host_name is None else host_name
    try:
        file = validate(data)
    except ValidationError as error:
        raise _config_error(shape_findings(error, data), text, path) from None
    if found := findings(file, host_name):
        raise _config_error(found, text, path)
    return _config(file, path, host_name)


def virtual_mac(farm: str, delivery: Delivery = Delivery.FLOOD) -> bytes:
    """The MAC address that a farm's VIPs resolve to by default: locally administered, `02:fa:...`.

    In delivery `multicast` it is the group address beside it, `03:fa:...`.
    """
    first = b"\x03" if delivery is Delivery.MULTICAST else b"\x02"
    return first + b"\xfa" + sha256(farm.encode()).digest()[:4]


def _config(file: FarmFile, path: FilePath, host_name: str) -> FarmConfig:
    from farmd.model.farmcheck import default_voters, group_names

    farm, node = file.farm, file.node
    tables = sorted(file.member, key=lambda table: table.number)
    members = tuple(Member(NodeId(t.number), t.name, t.role, tuple(t.addresses), t.weight) for t in tables)
    ids = {member.name: member.id for member in members}
    names = group_names(file)
    overrides = {group.name: group.weights for group in file.group}
    serving = [member for member in members if member.role is Role.NODE]
    folder = path.absolute().parent
    return FarmConfig(
        path=path,
        farm=farm.name,
        key_file=folder / farm.key_file,
        profile=farm.profile,
        timing=TIMINGS[farm.timing],
        delivery=farm.delivery,
        virtual_mac=farm.virtual_mac or virtual_mac(farm.name, farm.delivery),
        gateway=farm.gateway,
        port=farm.port,
        me=next(member for member in members if member.name == (node.name or host_name)),
        members=members,
        voters=frozenset(ids[name] for name in farm.voters or default_voters(tables)),
        vips=tuple(vip.address for vip in file.vip),
        groups=tuple(Group(index, name) for index, name in enumerate(names)),
        rules=tuple(_rule(index, rule, names.index(rule.group)) for index, rule in enumerate(file.rule, start=1)),
        weights=tuple({m.id: overrides.get(name, {}).get(m.name, m.weight) for m in serving} for name in names),
        interfaces=tuple(node.interfaces),
        attach_mode=node.attach_mode,
        drop_without_rule=farm.drop_without_rule,
        drain_deadline_s=float(farm.drain_deadline_s),
        api_socket=folder / node.api_socket,
        engine_socket=folder / node.engine_socket,
        pin_dir=folder / node.pin_dir,
        state_dir=folder / node.state_dir,
        metrics=None if file.metrics is None else file.metrics.listen,
        health=_health(file),
        outside_vips=_outside_vips(file),
    )


def _rule(index: int, table: RuleTable, group: int) -> Rule:
    last = table.port[-1] if len(table.port) > 1 else None
    return Rule(index, table.name, table.vip, table.protocol, table.port[0], table.affinity, group, last)


def _health(file: FarmFile) -> Listen | None:
    from farmd.model.farmshape import HealthTable

    if file.health is not None:
        return file.health.listen
    return HealthTable().listen if file.farm.delivery is Delivery.EXTERNAL else None


def _outside_vips(file: FarmFile) -> frozenset[Address]:
    """Most balancers rewrite the destination or open connections of their own, so that is the default."""
    if file.farm.delivery is not Delivery.EXTERNAL:
        return frozenset()
    return frozenset(vip.address for vip in file.vip if not vip.on_host)


def _unreadable(path: FilePath, cause: str, next_step: str) -> ConfigError:
    return ConfigError((Problem(str(path), 0, 0, cause, next_step),))


def _syntax_problem(message: str, text: str, path: FilePath) -> Problem:
    """tomllib's sentence, its place moved to the front: "Expected '=' after a key ... (at line 3, column 1)"."""
    what, _, where = message.rpartition(" (at ")
    if match := re.fullmatch(r"line (\d+), column (\d+)\)", where):
        line, column = int(match[1]), int(match[2])
    else:
        lines = text.splitlines() or [""]
        line, column = len(lines), len(lines[-1]) + 1
    cause = f"this is not TOML: {(what or message)[0].lower()}{(what or message)[1:]}"
    return Problem(str(path), line, column, cause, "Correct the line; strings need quotes.")


def _config_error(found: list[Finding], text: str, path: FilePath) -> ConfigError:
    positions = _positions(text)
    problems = []
    for finding in found:
        place = positions.find(finding.path, finding.part) if positions else Place(0, 0)
        problems.append(Problem(str(path), place.line, place.column, finding.cause, finding.next_step))
    return ConfigError(tuple(sorted(problems, key=lambda problem: (problem.line, problem.column))))


def _positions(text: str) -> Positions | None:
    """None if this text is beyond the position finder, which reads TOML 1.0: better no place than no report."""
    try:
        return Positions(text)
    except (ImportError, ValueError):
        return None
