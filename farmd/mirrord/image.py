# SPDX-License-Identifier: Apache-2.0
"""Image mode: one file is replicated, and the ext4 in it is mounted over the directory while this node is primary.

    DIRECTORY/farmd.image --- FUSE at FOLDER/mount ---> loop device, direct I/O ---> ext4 mounted at DIRECTORY

Every block that ext4 writes, and every flush, goes through the mirror's file system: an fsync in the image is a flush
of the loop device, that is an fsync of the file, which returns when both disks have it. Small files cost no round trip
of their own. After a failover the journal of ext4 recovers what was under way, as after a power loss.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import subprocess
from pathlib import Path

from farmd.mirror.spread import top
from farmd.mirrord.mounts import POINT
from farmd.model.errors import BadRequest, FarmError, KernelError, Refused

FILE = "farmd.image"
BLOCK_BYTES = 4096
OPTIONS = "errors=remount-ro"
_NOATIME, _DETACH = 1024, 2
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_AUTOCLEAR, _DIRECT_IO = 4, 16
_FS_IOC_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2
_CONFIG = struct.Struct("=II40xIIII64s64x32x16x64x")
"""struct loop_config of <linux/loop.h>; the fields that stay zero are padding here."""
_TRIES = 20


def make(directory: Path, size_bytes: int) -> None:
    """A sparse image with an empty ext4 in `directory`; one that is there already stays. Raises FarmError."""
    path = directory / FILE
    others = {each.name for each in directory.iterdir()} - {FILE, "lost+found"}
    if others:
        step = "Choose an empty directory; copy the files into the mirror after its promotion"
        raise Refused(str(directory), f"it holds {sorted(others)[0]}, which the image would hide", step)
    if path.exists():
        return
    new = path.with_suffix(".new")
    try:
        with new.open("xb") as file:
            file.truncate(size_bytes)
        # What lazy initialisation writes later would all go to the peer; in a sparse file the zeros are there already.
        extended = "lazy_itable_init=0,lazy_journal_init=0"
        command = ["mkfs.ext4", "-q", "-F", "-b", str(BLOCK_BYTES), "-E", extended, str(new)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        new.rename(path)
    except FileNotFoundError as error:
        raise FarmError("mkfs.ext4", "it is not installed", "apt-get install e2fsprogs") from error
    except subprocess.CalledProcessError as error:
        raise KernelError(str(path), f"mkfs.ext4 failed ({error.stderr.strip()})", "See its words") from error
    except OSError as error:
        raise BadRequest(
            str(path), f"it cannot be made ({error.strerror})", "Free space, or a smaller image"
        ) from error
    finally:
        new.unlink(missing_ok=True)


class Image:
    """The image of one mirror: its loop device and its mount. Every method may block; none needs the event loop."""

    def __init__(self, directory: Path, folder: Path) -> None:
        self._directory = directory
        self.point = folder / POINT
        """Where the mirror's own file system is mounted."""
        self.point.mkdir(mode=0o700, exist_ok=True)

    def mount(self) -> None:
        """Let applications in; the journal is recovered. Raises KernelError."""
        device = self._attach()
        try:
            _mount(device, self._directory)
        finally:
            os.close(device)  # if the mount failed, the device goes with its last user

    def unmount(self) -> None:
        """Everything is written and the directory free again. Raises KernelError while somebody is in."""
        while self.is_mounted():
            _umount(self._directory, 0)

    def drop(self) -> None:
        """At once: open files answer errors from now on, and nothing more is written."""
        while self.is_mounted():
            with contextlib.suppress(OSError):
                fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
                finally:
                    os.close(fd)
            _umount(self._directory, _DETACH)

    def is_mounted(self) -> bool:
        """Whether what is mounted at the directory is this image, also one whose file system below is dead."""
        kind, source, _ = top(self._directory)
        if kind != "ext4" or not source.startswith("/dev/loop"):
            return False
        try:
            behind = Path(f"/sys/block/{Path(source).name}/loop/backing_file").read_text().strip()
        except OSError:
            return False
        # The path is shortened once the mirror's own mount is gone.
        return behind in (str(self.point / FILE), f"/{FILE}")

    def _attach(self) -> int:
        """A loop device on the image, open; it vanishes with its last user."""
        try:
            file = os.open(self.point / FILE, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except FileNotFoundError as error:
            step = "Put it back, or create the mirror anew with --image"
            raise KernelError(f"{self._directory}/{FILE}", "the image is not there", step) from error
        try:
            return _loop(file)
        finally:
            os.close(file)


def _loop(file: int) -> int:
    with open("/dev/loop-control", "rb", buffering=0) as control:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            flags = _AUTOCLEAR | _DIRECT_IO
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, _CONFIG.pack(file, BLOCK_BYTES, 0, 0, 0, flags, FILE.encode()))
                return device
            except OSError as error:
                os.close(device)
                last = error  # EBUSY: somebody else took it
    raise KernelError("the image's loop device", f"it cannot be set up ({last.strerror})", "See `losetup -a`") from last


def _mount(device: int, directory: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.readlink(f"/proc/self/fd/{device}").encode()
    if libc.mount(path, os.fsencode(directory), b"ext4", _NOATIME, OPTIONS.encode()):
        cause = f"the file system in it cannot be mounted ({os.strerror(ctypes.get_errno())})"
        raise KernelError(f"{directory}/{FILE}", cause, "See the kernel's log; `e2fsck -f` on the image tells more")


def _umount(directory: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(directory), flags):
        cause = os.strerror(ctypes.get_errno())
        raise KernelError(str(directory), f"it cannot be unmounted ({cause})", "Stop the programs that use it")
