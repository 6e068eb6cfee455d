# SPDX-License-Identifier: Apache-2.0
"""Writes heads of frames as a pcap file, with nanoseconds, for tcpdump and Wireshark."""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from farmd.model.errors import FarmError

_MAGIC_NS = 0xA1B23C4D
_ETHERNET = 1


class PcapFile:
    """An open pcap file; also a context manager."""

    def __init__(self, path: Path, head_bytes: int) -> None:
        try:
            self._file = path.open("wb")
        except OSError as error:
            cause = f"it cannot be written: {error.strerror}"
            raise FarmError(f"pcap file {path}", cause, "Name a file in a folder that you may write to") from error
        self._file.write(struct.pack("=IHHiIII", _MAGIC_NS, 2, 4, 0, 0, head_bytes, _ETHERNET))

    def write(self, at_ns: int, head: bytes, length: int) -> None:
        """Add a frame of `length` bytes, received at `at_ns` (CLOCK_REALTIME), of which `head` is the beginning."""
        self._file.write(struct.pack("=IIII", at_ns // 10**9, at_ns % 10**9, len(head), max(length, len(head))) + head)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
