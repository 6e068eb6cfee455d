# SPDX-License-Identifier: Apache-2.0
"""An interface's hardware address, asked of the kernel without a netlink conversation: cheap enough for a loop."""

from __future__ import annotations

import fcntl
import socket
import struct

_SIOCGIFHWADDR = 0x8927
_IFREQ = struct.Struct("16sH6s16x")
_NONE = bytes(6)


def mac_of(name: str, ask: socket.socket) -> bytes:
    """The MAC address of interface `name`; six zeros if it is not there. `ask` is any socket of its namespace."""
    try:
        answer = fcntl.ioctl(ask, _SIOCGIFHWADDR, _IFREQ.pack(name.encode(), 0, _NONE))
    except OSError:
        return _NONE
    mac: bytes = _IFREQ.unpack(answer)[2]
    return mac
