# SPDX-License-Identifier: Apache-2.0
"""The cage of the process that receives: a thin cover over `cext/mirror/confine.c`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import farmd
from farmd.model.errors import KernelError

SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ssl", "/proc")


def confine(root: int, records: int = -1, readable: tuple[Path, ...] = ()) -> None:
    """From now on this process writes only below the directories `root` and `records`, and sees little else.

    Both descriptors stay what they are, on mounts of their own; every other path but Python, the system's libraries
    and `readable` is gone. Only while there is one thread. Raises KernelError; the process must then end.
    """
    from farmd._mirrorfs import ffi, lib

    code = [Path(str(farmd.__file__)).parent, Path(sys.prefix), Path(sys.base_prefix)]
    places = {str(path) for path in (*map(Path, SYSTEM), *code, *readable) if path != Path("/")}
    lines = ffi.new("char[]", os.fsencode("\n".join(sorted(places, key=lambda path: (len(path), path)))))
    config = ffi.new("struct confine_config *")
    config.root, config.records, config.readable = root, records, lines
    error = ffi.new("char[]", 200)
    if lib.mirror_confine(config, error, 200) < 0:
        cause = ffi.string(error).decode(errors="replace")
        step = "The receiving side needs root and Linux 5.12 or newer; containers must allow mount namespaces"
        raise KernelError("the receiving process cannot be confined", cause, step)
