# SPDX-License-Identifier: Apache-2.0
"""What a mirror is told, as values. Nothing here reads a file; `checked` says everything that is wrong at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from farmd.mirror.acks import Mode

MAX_DIRECTORIES = 16


class ArbiterKind(StrEnum):
    """Who decides whose data counts (see `farmd.mirror.arbiter`)."""

    OPERATOR = "operator"
    WITNESS = "witness"


@dataclass(frozen=True, slots=True)
class Directory:
    """A replicated directory and what in it stays on its node."""

    path: PurePosixPath
    not_replicated: tuple[PurePosixPath, ...] = ()
    """Relative to `path`; each with all below it."""
    not_replicated_patterns: tuple[str, ...] = ()
    """Regular expressions that match a whole path relative to `path`."""

    def replicates(self, relative: bytes) -> bool:
        """Whether the entry at `relative` (any bytes, without a leading slash) is part of the mirror."""
        for path in self.not_replicated:
            excluded = str(path).encode(errors="surrogateescape")
            if relative == excluded or relative.startswith(excluded + b"/"):
                return False
        patterns = (pattern.encode(errors="surrogateescape") for pattern in self.not_replicated_patterns)
        return not any(re.fullmatch(pattern, relative, re.DOTALL) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a resync may go. Rates in bytes a second."""

    ceiling_bytes_s: int = 0
    """0: as fast as the link and the disks are."""
    floor_bytes_s: int = 4 << 20
    """It never gets slower than this, however busy applications are, or it would not end."""
    slowdown: float = 2.0
    """How many times as long as without it applications' changes and syncs may take through a resync."""


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """What both nodes must agree on; what one node is told of itself is `farmd.model.mirrorfile.MirrorConfig`."""

    name: str
    directories: tuple[Directory, ...]
    mode: Mode = Mode.STRICT
    max_lag_bytes: int = 64 << 20
    """Mode ASYNC: how far the peer may be behind before operations wait."""
    max_lag_s: float = 5.0
    peer_timeout_s: float = 3.0
    """A peer that answers nothing for this long is lost."""
    hold_timeout_s: float = 30.0
    """With neither peer nor arbiter for this long, operations fail instead of hanging on."""
    arbiter: ArbiterKind = ArbiterKind.OPERATOR
    pace: Pace = Pace()
    hot_zones: int = 1024
    """16 MiB each: what is compared at most after a primary crashed."""
    max_zones: int = 65_536


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a mirror's configuration: where, what, and what to do."""

    key: str
    cause: str
    next_step: str


def checked(config: MirrorPolicy) -> tuple[Fault, ...]:
    """Everything that is wrong; empty if the configuration can be used."""
    faults = [*_directories(config.directories), *_numbers(config)]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", config.name):
        faults.append(Fault("name", f'"{config.name}" is no name', "Use letters, digits, dots, dashes, underscores."))
    return tuple(faults)


def _directories(directories: tuple[Directory, ...]) -> list[Fault]:
    faults = []
    if not 0 < len(directories) <= MAX_DIRECTORIES:
        faults.append(Fault("directories", f"{len(directories)} directories", f"Name 1 to {MAX_DIRECTORIES}."))
    for number, directory in enumerate(directories):
        key = f"directories[{number}]"
        path = directory.path
        if not path.is_absolute() or path == PurePosixPath("/") or ".." in path.parts:
            faults.append(Fault(key, f"{path} is not an absolute path of a directory", "Write it from / on."))
        for other in directories[:number]:
            if path.is_relative_to(other.path) or other.path.is_relative_to(path):
                faults.append(Fault(key, f"{path} and {other.path} overlap", "Replicate the outer one only."))
        for excluded in directory.not_replicated:
            if excluded.is_absolute() or not excluded.parts or ".." in excluded.parts:
                text = f"{excluded} does not lie below {path}"
                faults.append(Fault(f"{key}.not_replicated", text, "Write it relative to the directory."))
        for pattern in directory.not_replicated_patterns:
            try:
                re.compile(pattern.encode(errors="surrogateescape"))
            except re.error as error:
                text = f'"{pattern}" is no regular expression: {error}'
                faults.append(Fault(f"{key}.not_replicated_patterns", text, "Correct it, or name a path instead."))
    return faults


def _numbers(config: MirrorPolicy) -> list[Fault]:
    pace = config.pace
    wrong = [
        ("max_lag_bytes", config.max_lag_bytes > 0, "must be above 0"),
        ("max_lag_s", config.max_lag_s > 0, "must be above 0"),
        ("peer_timeout_s", 0.1 <= config.peer_timeout_s <= 60, "must be 0.1 to 60"),
        ("hold_timeout_s", config.hold_timeout_s > config.peer_timeout_s, "must be above peer_timeout_s"),
        ("hot_zones", 16 <= config.hot_zones <= 16_384, "must be 16 to 16384"),
        ("max_zones", config.max_zones >= 2 * config.hot_zones, "must be at least twice hot_zones"),
        ("pace.floor_bytes_s", pace.floor_bytes_s > 0, "must be above 0, or a resync may never end"),
        (
            "pace.ceiling_bytes_s",
            pace.ceiling_bytes_s == 0 or pace.ceiling_bytes_s >= pace.floor_bytes_s,
            "must be 0 (no limit) or at least pace.floor_bytes_s",
        ),
        ("pace.slowdown", 1 < pace.slowdown <= 100, "must be above 1 and at most 100"),
    ]
    return [Fault(key, text, "See the comments in the example.") for key, right, text in wrong if not right]
