# SPDX-License-Identifier: Apache-2.0
"""Can clients reach this node? Asked because peers may still hear it by another heartbeat network.

Two signs say no: the service interface has no carrier, or nobody is heard on the service network (a member's first
address) while another network carries heartbeats as ever. A node that says no hands its buckets over at once, which is
quicker than being found dead, and better than serving nobody.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from farmd.model.config import FarmConfig, Timing
from farmd.model.nodes import Role
from farmd.net import interfaces

_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_IFREQ = struct.Struct("16sh22x")


def service_interfaces(config: FarmConfig) -> tuple[str, ...]:
    """The interfaces that clients come by; none on a witness."""
    if config.me.role is not Role.NODE:
        return ()
    return config.interfaces or tuple(facts.name for facts in interfaces.facts(config.me.addresses[:1]))


class ServiceWatch:
    """Watches carrier and heartbeats of the service network. Times are CLOCK_BOOTTIME nanoseconds."""

    def __init__(
        self, names: tuple[str, ...], networks: tuple[socket.socket, ...], timing: Timing, now_ns: int
    ) -> None:
        """`networks` are the engine's sockets, service network first; any of them may ask the kernel for flags."""
        self._names = names
        self._heard_ns = [now_ns] * len(networks)
        self._silence_ns = timing.lease_ns // 2
        self._lively_ns = 2 * timing.heartbeat_ns
        self._ask = networks[0]

    def heard(self, now_ns: int, network: int) -> None:
        """A peer's datagram came by this network; also a copy, which is not worth decrypting: no safety rests on it."""
        self._heard_ns[network] = now_ns

    def usable(self, now_ns: int) -> bool:
        """Whether clients can reach this node, as far as it can tell. A witness has no clients and is always usable."""
        if not self._names:
            return True
        return any(self._carrier(name) for name in self._names) and not self._silent(now_ns)

    def _silent(self, now_ns: int) -> bool:
        service_ns, *others_ns = self._heard_ns
        return now_ns - service_ns > self._silence_ns and any(now_ns - at <= self._lively_ns for at in others_ns)

    def _carrier(self, name: str) -> bool:
        try:
            answer = fcntl.ioctl(self._ask, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
        except OSError:
            return False  # The interface is gone.
        _, flags = _IFREQ.unpack(answer)
        return bool(flags & _IFF_UP and flags & _IFF_RUNNING)
