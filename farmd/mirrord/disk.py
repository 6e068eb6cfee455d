# SPDX-License-Identifier: Apache-2.0
"""What a node keeps over any crash: its record, its copy of the register, and a lock that says who runs it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

from farmd.mirror.arbiter import Register, decode_register, encode_register
from farmd.mirror.durable import sync_folder, write_all
from farmd.mirror.record import SLOT_BYTES, Record, RecordDamaged, decode_slots, encode_slot
from farmd.model.errors import FarmError, Refused

RECORDS = "records"
"""The folder of what passes have compared: the only one of a node's files that its receiving process may write."""


def records(folder: Path) -> int:
    """A descriptor of that folder, which is made."""
    path = folder / RECORDS
    path.mkdir(mode=0o700, exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class RecordFile:
    """The record's two slots, each written whole and durable before `write` returns."""

    def __init__(self, path: Path) -> None:
        """Open, or make. Raises FarmError if it is damaged."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC, 0o600)
        data = os.pread(self._fd, 2 * SLOT_BYTES, 0)
        try:
            found = decode_slots(data)
        except RecordDamaged as error:
            step = "Bring this node back as a new one: move its folder away, create it again, and start it"
            raise FarmError(str(path), f"the node's record is damaged ({error})", step) from error
        if not data:
            sync_folder(path.parent)
        self.record: Record | None = found[0] if found else None
        self._counter = found[1] if found else 0

    def write(self, record: Record) -> None:
        """Make `record` durable."""
        self._counter += 1
        write_all(self._fd, encode_slot(record, self._counter), (self._counter % 2) * SLOT_BYTES)
        self.record = record

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def read_register(path: Path, mirror: bytes) -> Register:
    """The register in `path`; a file that is not there is a mirror that never began. Raises FarmError."""
    try:
        return decode_register(mirror, path.read_bytes())
    except FileNotFoundError:
        return Register()
    except (OSError, ValueError) as error:
        step = "Find out what happened to that disk; then promote the right copy with --accept stale"
        raise FarmError(f"arbiter {path}", f"it cannot be read: {error}", step) from error


def write_register(path: Path, mirror: bytes, register: Register) -> None:
    """Replace the file as a whole, durably."""
    replace_file(path, encode_register(mirror, register))


def replace_file(path: Path, data: bytes) -> None:
    """Write, sync, rename, sync the folder."""
    new = path.with_name(f"{path.name}.new.{os.getpid()}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, path)
    sync_folder(path.parent)


def lock(path: Path, wait_s: float = 10.0) -> int:
    """The lock of this node's processes. The data path inherits it: an earlier one that still ends keeps it.

    So no process of an earlier run can touch the directory after this returns. Raises Refused after `wait_s`.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK or time.monotonic() > end:
                os.close(fd)
                name = path.parent.name
                raise Refused(f"mirror {name}", "it runs already", f"See `farmctl mirror status {name}`") from error
        time.sleep(0.05)
