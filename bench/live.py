# SPDX-License-Identifier: Apache-2.0
"""Frames at full speed from many clients, without a sender that would build a socket buffer for each.

The kernel runs `farm_send` (bench/live.bpf.c) under BPF_F_TEST_XDP_LIVE_FRAMES and hands every frame to a cable, as a
network card's driver would. What the receiver saves by deciding before there is a socket buffer can be seen only so.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from farmd.dataplane.kernel import Loaded, Program, load
from farmd.model.errors import FarmError

CLIENTS = 65536
"""How many clients a load has, as in bench/live.bpf.c: more than a first-level cache holds."""
SOURCE = Path(__file__).with_name("live.bpf.c")
_LIVE_FRAMES = 1 << 1
"""BPF_F_TEST_XDP_LIVE_FRAMES in <linux/bpf.h>."""
_SUMS = struct.Struct("=IIII")
_IP_AT, _TCP_AT, _TCP_END = 14, 34, 54


class _Options(ctypes.Structure):
    """struct bpf_test_run_opts in <bpf/bpf.h>."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class Sender:
    """Sends to one interface after another. Leaving it as a context unloads it."""

    def __init__(self) -> None:
        self._loaded = _load()
        self._memory = self._loaded.maps["farm_load"].memory()
        self._libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)

    @property
    def bare_drop(self) -> Program:
        """The receiver that looks at nothing and drops everything."""
        return self._loaded.programs["farm_bare_drop"]

    def send(self, ifindex: int, frame: bytes, clients: bytes, count: int) -> int:
        """Send `frame` `count` times from `clients` in turn; the nanoseconds that one took, receiver's part included.

        Runs in the namespace of `ifindex`, the sending end of a cable, on this thread's CPU, where the receiver works
        as well. The kernel takes the time, and leaves out what it needs to begin and to end. `clients`: CLIENTS IPv4
        addresses, packed.
        """
        if len(clients) != 4 * CLIENTS:
            raise ValueError(f"a load has {CLIENTS} clients, not {len(clients) / 4}")
        head = _SUMS.pack(ifindex, 0, *fixed_sums(frame))
        self._memory[: len(head)] = head
        self._memory[len(head) : len(head) + len(clients)] = clients
        options = _Options(ctypes.sizeof(_Options), frame, data_size_in=len(frame), repeat=count, flags=_LIVE_FRAMES)
        error = self._libbpf.bpf_prog_test_run_opts(self._loaded.programs["farm_send"].fd, ctypes.byref(options))
        if error:
            number = ctypes.get_errno()
            raise FarmError("live frames", os.strerror(number), "They need Linux 5.18 or newer, and root")
        return int(options.duration)

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._memory.close()
        self._loaded.close()


def fixed_sums(frame: bytes) -> tuple[int, int]:
    """The sums (RFC 1071) over what does not change in an IPv4 TCP frame without options: header, and segment.

    Without client and checksums, and in the order of bytes in which this machine adds.
    """
    ip, tcp = bytearray(frame[_IP_AT:_TCP_AT]), bytearray(frame[_TCP_AT:_TCP_END])
    ip[10:16] = bytes(6)  # its checksum and the client
    tcp[16:18] = bytes(2)
    pseudo = ip[16:20] + struct.pack(">HH", ip[9], len(tcp))
    return _folded(ip), _folded(pseudo + tcp)


def _folded(data: bytes | bytearray) -> int:
    total: int = sum(struct.unpack(f"={len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def packed(clients: Sequence[int]) -> bytes:
    """IPv4 addresses as they lie in packets."""
    return struct.pack(f">{len(clients)}I", *clients)


def _load() -> Loaded:
    clang = shutil.which("clang")
    if clang is None:
        raise FarmError("the sender of frames", "clang is missing", "Install it: apt-get install clang")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "live.bpf.o"
        command = [clang, "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror", "-c", str(SOURCE)]
        # Debian keeps <asm/types.h> there.
        command += [f"-I{path.parent.parent}" for path in Path("/usr/include").glob("*-linux-gnu/asm/types.h")][:1]
        subprocess.run([*command, "-o", str(target)], check=True)
        return load(target, {}, ("farm_send", "farm_bare_drop"))
