# SPDX-License-Identifier: Apache-2.0
"""What an interface's driver does by itself, as `ethtool -k` and `ethtool -l` show it."""

from __future__ import annotations

import array
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _GCHANNELS = 0x1B, 0x37, 0x3A, 0x3C
_SET_FEATURES = 4
_NAME_BYTES = 32
_ON_NOW = 2
"""Of a block's four words (available, requested, active, never changed), which one we want."""
GRO, TX_CHECKSUM = 0x2C, 0x17
"""ETHTOOL_SGRO and ETHTOOL_STXCSUM, for `switch`."""
_OLD_NAMES = {"rx-lro": "large-receive-offload"}


def features(interface: str) -> dict[str, bool]:
    """Feature -> whether it is on, by the kernel's names ("rx-gro-hw"); LRO as "large-receive-offload".

    Empty if the interface is gone or its driver does not say.
    """
    try:
        names = _feature_names(interface)
        blocks = (len(names) + 31) // 32
        raw = _ask(interface, struct.pack("=II", _GFEATURES, blocks) + bytes(16 * blocks))
    except OSError:
        return {}
    active = [struct.unpack_from("=4I", raw, 8 + 16 * block)[_ON_NOW] for block in range(blocks)]
    return {
        _OLD_NAMES.get(name, name): bool(active[number // 32] >> number % 32 & 1)
        for number, name in enumerate(names)
        if name
    }


def receive_queues(interface: str) -> int | None:
    """How many queues the driver receives on; None if it does not say."""
    try:
        raw = _ask(interface, struct.pack("=9I", _GCHANNELS, *[0] * 8))
    except OSError:
        return None
    *_maxima, receive, _transmit, _other, combined = struct.unpack("=9I", raw)
    return int(receive + combined) or None


def switch(interface: str, feature: int, on: bool) -> None:
    """Switch a feature (`GRO`, `TX_CHECKSUM`) on or off. OSError if the driver refuses."""
    _ask(interface, struct.pack("=II", feature, on))


def _feature_names(interface: str) -> list[str]:
    raw = _ask(interface, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _SET_FEATURES, 0))
    count = struct.unpack_from("=I", raw, 16)[0]
    raw = _ask(interface, struct.pack("=III", _GSTRINGS, _SET_FEATURES, count) + bytes(_NAME_BYTES * count))
    texts = (raw[12 + _NAME_BYTES * number :][:_NAME_BYTES] for number in range(count))
    return [text.split(b"\0")[0].decode(errors="replace") for text in texts]


def _ask(interface: str, command: bytes) -> bytes:
    """The command's buffer after the kernel has filled it in."""
    buffer = array.array("B", command)
    request = struct.pack("16sP", interface.encode(), buffer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ask:
        fcntl.ioctl(ask, _SIOCETHTOOL, request)
    return buffer.tobytes()
