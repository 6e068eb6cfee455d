# SPDX-License-Identifier: Apache-2.0
"""A disk whose power can fail: an ext4 of its own on a loop device.

`lose` is what xfstests calls "godown" without a log flush: the file system stops at once, as if the machine had gone.
Whatever was not synced (page cache, uncommitted journal) is gone at the next mount; what the kernel had written back by
itself stays, as on a real disk. A disk's own volatile cache is not simulated: an acknowledged flush is believed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


class Disk:
    """Mounted at `point` between `mount` and `unmount` or `lose`."""

    def __init__(self, image: Path, point: Path, size: str = "1G") -> None:
        self._image, self.point, self._size = image, point, size
        self.mounted = False

    def make(self) -> None:
        """A new, empty one."""
        self.point.mkdir()
        subprocess.run(["truncate", "-s", self._size, self._image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self._image], check=True)
        self.mount()

    def mount(self) -> None:
        """Plug it in; the journal is replayed."""
        subprocess.run(["mount", "-o", "loop", self._image, self.point], check=True)
        self.mounted = True

    def lose(self) -> None:
        """The power fails. Whoever still runs there gets errors; end them before, or the unmount fails."""
        fd = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)
        self.unmount()

    def unmount(self) -> None:
        """Take it away, and what dead processes left mounted on it."""
        if not self.mounted:
            return
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            place = line.split()[4]
            if place.startswith(f"{self.point}/"):
                subprocess.run(["umount", "-l", place], capture_output=True, check=False)
        end = time.monotonic() + 30
        while (done := subprocess.run(["umount", self.point], capture_output=True, text=True, check=False)).returncode:
            assert time.monotonic() < end, done.stderr
            time.sleep(0.05)
        self.mounted = False
