# SPDX-License-Identifier: Apache-2.0
"""Which process has a UDP port of this namespace."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from farmd.model.rules import Address

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process; `words` is its command line."""

    pid: int
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """The program and its first arguments, as short as a message wants it."""
        return " ".join((Path(self.words[0]).name, *self.words[1:3])) if self.words else "unknown"


def find(address: Address, port: int) -> Holder | None:
    """Who has `port` on `address` or on all addresses; None if nobody, or we may not see who."""
    table = _PROC / "thread-self" / "net" / ("udp" if address.version == 4 else "udp6")
    try:
        inodes = sockets(table.read_text().splitlines(), address, port)
    except OSError:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in _PROC.iterdir():
        if process.name.isdigit() and wanted & set(_open_files(process)):
            try:
                words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            except OSError:
                continue
            return Holder(int(process.name), tuple(word.decode(errors="replace") for word in words))
    return None


def sockets(lines: Iterable[str], address: Address, port: int) -> list[int]:
    """Inodes of the sockets in the lines of /proc/net/udp or udp6 that are bound there or to any address."""
    packed = address.packed
    words = struct.unpack(f">{len(packed) // 4}I", packed)
    # The kernel prints each 32-bit word of the address as a number of this machine.
    there = "".join(f"{int.from_bytes(word.to_bytes(4, 'big'), 'little'):08X}" for word in words)
    places = {f"{there}:{port:04X}", f"{'0' * len(there)}:{port:04X}"}
    rows = (line.split() for line in lines)
    return [int(row[9]) for row in rows if len(row) > 9 and row[1] in places]


def _open_files(process: Path) -> list[str]:
    try:
        return [os.readlink(file) for file in (process / "fd").iterdir()]
    except OSError:  # it ended, or is not ours to look at
        return []
