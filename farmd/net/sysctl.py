# SPDX-License-Identifier: Apache-2.0
"""Settings below /proc/sys/net: always those of the network namespace of the process that looks."""

from __future__ import annotations

from pathlib import Path

from farmd.model.errors import KernelError

_ROOT = Path("/proc/sys/net")


def read(name: str) -> int | None:
    """The number in a setting such as `ipv4/conf/all/arp_ignore`; None if this kernel or namespace has none."""
    try:
        return int((_ROOT / name).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise KernelError(spoken(name), f"it cannot be read: {error}", "Check that /proc is mounted.") from error


def write(name: str, value: int) -> None:
    """Sets a setting. Raises KernelError if it cannot be written."""
    try:
        (_ROOT / name).write_text(f"{value}\n")
    except OSError as error:
        cause = f"it cannot be set to {value}: {(error.strerror or str(error)).lower()}"
        step = f"Run as root, or set {spoken(name)}={value} in /etc/sysctl.d where /proc/sys is read-only."
        raise KernelError(f"setting {spoken(name)}", cause, step) from error


def spoken(name: str) -> str:
    """The setting as sysctl(8) spells it; a dot in an interface's name becomes a slash there."""
    return "net." + "/".join(part.replace("/", ".") for part in name.replace(".", "\0").split("\0"))
