# SPDX-License-Identifier: Apache-2.0
"""The flooding test's sockets and clock: a few small frames a second on one interface."""

from __future__ import annotations

import select
import socket
import struct
import time

from farmd.doctor.flood import ETHERTYPE, Kind, Tally, decode, encode
from farmd.model.config import FarmConfig
from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts

_EVERY_S = 0.2
_SOL_PACKET, _ADD_MEMBERSHIP, _MULTICAST, _UNICAST = 263, 1, 0, 3
"""PACKET_ADD_MEMBERSHIP with PACKET_MR_...: the NIC takes one more address while the socket is open."""


def run(config: FarmConfig, link: InterfaceFacts, seconds: float) -> Tally:
    """Send and listen on `link` for `seconds`. Raises KernelError."""
    tally = Tally(config.me.id)
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as wire:
            wire.bind((link.name, ETHERTYPE))
            kind = _MULTICAST if config.virtual_mac[0] & 1 else _UNICAST
            request = struct.pack("=iHH8s", link.ifindex, kind, 6, config.virtual_mac)
            wire.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, request)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for kind in Kind:
                    wire.send(encode(config, link.mac, tally.hail(kind)))
                _listen(config, wire, tally, time.monotonic() + _EVERY_S)
    except OSError as error:
        step = "Run as root, or with CAP_NET_RAW, while the interface is up"
        raise KernelError(f"interface {link.name}", f"the flooding test failed: {error.strerror}", step) from error
    return tally


def _listen(config: FarmConfig, wire: socket.socket, tally: Tally, until: float) -> None:
    while (left := until - time.monotonic()) > 0 and select.select([wire], [], [], left)[0]:
        hail = decode(config, wire.recv(2048))
        if hail is not None:
            tally.take(hail)
