# SPDX-License-Identifier: Apache-2.0
"""Disks whose power can fail: an ext4 of their own on a loop device.

`Disk` loses what the machine had not written. Its power fails by what xfstests calls "godown" without a log flush: the
file system stops at once. Page cache and uncommitted journal are gone at the next mount; what the kernel had written
back by itself stays. An acknowledged write is believed.

`VolatileDisk` also loses what was written and not flushed, for the disk has a write cache (`tests.mirror.volatile`):
any part of it, in any order.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from tests.mirror.volatile import BLOCK, GONE, NAME, READY

_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


class Disk:
    """Mounted at `point` between `mount` and `unmount` or `lose`."""

    def __init__(self, image: Path, point: Path, size: str = "1G") -> None:
        self.image, self.point, self._size = image, point, size
        self.mounted = False

    def make(self) -> None:
        """A new, empty one."""
        self.point.mkdir()
        subprocess.run(["truncate", "-s", self._size, self.image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-m", "0", self.image], check=True)
        self.mount()

    def mount(self) -> None:
        """Plug it in; the journal is replayed."""
        subprocess.run(["mount", "-o", "loop", self.image, self.point], check=True)
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
        unmount(self.point)
        self.mounted = False


class VolatileDisk(Disk):
    """Also what was not flushed is lost. If it `is_deaf`, flushes are not done and all of it is: a disk that lies."""

    def __init__(self, image: Path, point: Path, size: str = "1G", *, is_deaf: bool = False, seed: int = 0) -> None:
        super().__init__(image, point, size)
        self.is_deaf = is_deaf
        self._dice = random.Random(seed or None)
        self._server: subprocess.Popen[str] | None = None
        self._under = image.with_suffix(".fuse")

    def mount(self) -> None:
        """A process that serves it, the loop device, the file system."""
        self._under.mkdir(exist_ok=True)
        words = [sys.executable, "-m", "tests.mirror.volatile", str(self.image), str(self._under)]
        words += ["--seed", str(self._dice.randrange(1 << 32)), *(["--deaf"] if self.is_deaf else [])]
        here = Path(__file__).parents[2]
        self._server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=here, start_new_session=True)
        try:
            self._hear(READY)
            device = self._loop()
            try:
                subprocess.run(["mount", device, self.point], check=True)
            finally:
                subprocess.run(["losetup", "--detach", device], check=True)  # with the unmount, if it is mounted
        except BaseException:
            self._unplug()
            raise
        self.mounted = True

    def _loop(self) -> str:
        options = ["--find", "--show", "--direct-io=on", f"--sector-size={BLOCK}"]
        command = ["losetup", *options, str(self._under / NAME.decode())]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def lose(self) -> None:
        """First the disk's power, so that nothing flushes it any more, then the machine's."""
        assert self._server is not None
        self._server.send_signal(signal.SIGUSR1)
        self._hear(GONE)
        super().lose()

    def unmount(self) -> None:
        if self.mounted:
            sync_file_system(self.point)
        super().unmount()
        self._unplug()

    def _hear(self, word: str) -> None:
        assert self._server is not None
        assert self._server.stdout is not None
        assert self._server.stdout.readline().strip() == word

    def _unplug(self) -> None:
        if self._server is None:
            return
        unmount(self._under)
        try:
            self._server.wait(2)
        except subprocess.TimeoutExpired:  # a mount namespace that began meanwhile has it still
            self._server.kill()
            self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()
        self._server = None


def sync_file_system(point: Path) -> None:
    subprocess.run(["sync", "--file-system", point], capture_output=True, check=False)  # errors: its power is gone


def unmount(point: Path) -> None:
    """As soon as nobody uses it any more."""
    end = time.monotonic() + 30
    while (done := subprocess.run(["umount", point], capture_output=True, text=True, check=False)).returncode:
        assert time.monotonic() < end, done.stderr
        time.sleep(0.05)
