# SPDX-License-Identifier: Apache-2.0
"""What `setup.apply` changed on this machine, kept on disk so that `setup.remove` can put it back.

It is written before each change, so after a crash it may name a change that was not made, never the other way round.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from farmd.model.errors import KernelError

FILE = "net.json"


@dataclass(slots=True)
class Record:
    """Changes made in one network namespace."""

    addresses: list[str] = field(default_factory=list)
    """VIPs that we put on lo."""
    settings: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Setting -> (value found, value set)."""
    macs: list[tuple[str, str]] = field(default_factory=list)
    """(interface, MAC address) that we told the interface to accept."""
    promiscuous: list[str] = field(default_factory=list)
    """Interfaces that we made promiscuous."""


def load(folder: Path) -> Record:
    """The record in `folder`; an empty one if there is none, or none that can be read as a record."""
    try:
        data = json.loads((folder / FILE).read_text())
        return Record(
            addresses=[str(address) for address in data["addresses"]],
            settings={str(name): (int(old), int(new)) for name, (old, new) in data["settings"].items()},
            macs=[(str(interface), str(mac)) for interface, mac in data["macs"]],
            promiscuous=[str(interface) for interface in data["promiscuous"]],
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Record()


def save(record: Record, folder: Path) -> None:
    """Writes the record, whole or not at all. Raises KernelError if it cannot."""
    part = folder / (FILE + ".part")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(record), indent=1))
        part.replace(folder / FILE)
    except OSError as error:
        cause = f"it cannot be written: {(error.strerror or str(error)).lower()}"
        raise KernelError(str(folder / FILE), cause, "Check state_dir in farm.toml and its permissions.") from error


def discard(folder: Path) -> None:
    """Removes the record."""
    (folder / FILE).unlink(missing_ok=True)
