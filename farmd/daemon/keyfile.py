# SPDX-License-Identifier: Apache-2.0
"""Read the farm's key file, and refuse one that others could have read or written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from farmd.membership.keys import KeyRing
from farmd.model.errors import ConfigError, Problem

_LARGEST = 65536


def read_key_file(path: Path) -> KeyRing:
    """The key ring in `path`.

    Raises:
        ConfigError: missing, unreadable, readable by others, or malformed.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_LARGEST)
    except FileNotFoundError as error:
        raise _wrong(
            path, "there is no such file", f"Make one with `farmctl keygen {path}` and copy it to every node"
        ) from error
    except OSError as error:
        raise _wrong(path, error.strerror or str(error), "Run farmd as a user who may read it") from error
    if mode & 0o077:
        raise _wrong(path, f"its mode {mode:04o} lets others read the farm's keys", f"Run `chmod 600 {path}`")
    return KeyRing.parse(raw.decode("ascii", "replace"), path)


def _wrong(path: Path, cause: str, next_step: str) -> ConfigError:
    return ConfigError((Problem(str(path), 0, 0, cause, next_step),))
