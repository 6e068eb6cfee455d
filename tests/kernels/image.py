# SPDX-License-Identifier: Apache-2.0
"""An initramfs: one static program, the modules that it needs, and the command that it is to run."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def closure(modules: Path, wanted: Sequence[str]) -> list[Path]:
    """The files of these modules and of all that they need, in the order of loading.

    `modules` is lib/modules/VERSION. Modules that are built into the kernel have no file; others must have one, else
    FileNotFoundError.
    """
    files = {_name(path): path for path in modules.rglob("*.ko")}
    builtin = {_name(Path(line)) for line in (modules / "modules.builtin").read_text().split()}
    order: list[Path] = []

    def visit(name: str) -> None:
        if name in builtin:
            return
        if name not in files:
            raise FileNotFoundError(f"{modules} has no module {name}")
        for other in depends(files[name]):
            visit(other)
        if files[name] not in order:
            order.append(files[name])

    for name in wanted:
        visit(name)
    return order


def depends(module: Path) -> list[str]:
    """The names of the modules that a module needs."""
    found = _DEPENDS.search(module.read_bytes())
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def archive(init: Path, modules: Sequence[Path], command: str) -> bytes:
    """A cpio archive in the format "newc", as the kernel unpacks it."""
    entries: list[tuple[str, int, bytes]] = [("modules", stat.S_IFDIR | 0o755, b"")]
    entries += [
        (f"modules/{number:03}-{module.name}", stat.S_IFREG | 0o644, module.read_bytes())
        for number, module in enumerate(modules)
    ]
    entries.append(("command", stat.S_IFREG | 0o644, command.encode()))
    entries.append(("init", stat.S_IFREG | 0o755, init.read_bytes()))
    return b"".join(_packed(entries))


def _name(path: Path) -> str:
    return path.stem.replace("-", "_")


def _packed(entries: Sequence[tuple[str, int, bytes]]) -> Iterator[bytes]:
    console = ("dev/console", stat.S_IFCHR | 0o600, b"")  # else the first process has no output
    folder = ("dev", stat.S_IFDIR | 0o755, b"")
    for number, (name, mode, data) in enumerate([folder, console, *entries, ("TRAILER!!!", 0, b"")], 1):
        device = (5, 1) if stat.S_ISCHR(mode) else (0, 0)
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
