# SPDX-License-Identifier: Apache-2.0
"""The file system in which kernel objects are pinned."""

from __future__ import annotations

import os
from pathlib import Path

from farmd.dataplane._libbpf import lib
from farmd.dataplane.kernel import kernel_error
from farmd.model.errors import KernelError

BPFFS = Path("/sys/fs/bpf")


def prepare(pin_dir: Path) -> None:
    """Make sure that `pin_dir` exists, on a bpffs, for root only. Mounts one at /sys/fs/bpf if it is to be there."""
    if pin_dir.is_relative_to(BPFFS) and lib.farm_is_bpffs(os.fsencode(BPFFS)) == 0:
        error = lib.farm_mount_bpffs(os.fsencode(BPFFS))
        if error < 0:
            raise kernel_error(
                str(BPFFS), error, "a bpffs cannot be mounted", "Mount it: `mount -t bpf bpf /sys/fs/bpf`"
            )
    try:
        pin_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError(
            str(pin_dir),
            f"the folder for pinned objects cannot be made: {error.strerror}",
            "Run farmd as root, and set `pin_dir` to a folder below /sys/fs/bpf whose name has no dot",
        ) from error
    if lib.farm_is_bpffs(os.fsencode(pin_dir)) != 1:
        raise KernelError(str(pin_dir), "it is not on a bpffs", "Set `pin_dir` to a folder below /sys/fs/bpf")
