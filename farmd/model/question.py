# SPDX-License-Identifier: Apache-2.0
"""What `farmctl explain` can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from farmd.model.rules import Address, Protocol


class PacketKind(StrEnum):
    """Which packet of a client the question is about."""

    OPENING = "opening"
    """A TCP SYN, or a UDP datagram."""
    FOLLOWING = "following"
    """A later segment of a TCP connection; of UDP, another datagram."""
    FIRST_FRAGMENT = "first-fragment"
    """The first fragment of such a packet, the only one with ports."""
    LATER_FRAGMENT = "later-fragment"
    """A later fragment, after its first one."""
    LOST_FRAGMENT = "lost-fragment"
    """A later fragment whose first one was lost, or comes after it."""
    ICMP_ERROR = "icmp-error"
    """An ICMP error about what the VIP sent to the client: unreachable, packet too big."""
    ECHO = "echo"
    """A ping of the VIP."""


@dataclass(frozen=True, slots=True)
class Question:
    """A client, the service that it wants, and the packet. What is None is chosen by the one who answers."""

    client: Address
    port: int | None = None
    vip: Address | None = None
    vport: int | None = None
    """Comes with `vip`, but for an echo."""
    protocol: Protocol | None = None
    packet: PacketKind = PacketKind.OPENING
    identification: int | None = None
    """Of the IP header: what `packet-id` hashes, and what fragments of one packet share."""
