# SPDX-License-Identifier: Apache-2.0
"""Does the gateway answer on the link that clients' packets come by?

Asked on the wire with ARP or Neighbour Discovery, not with an echo request: routers limit or filter those, and the
kernel's neighbour table goes on believing in a gateway for half a minute after it has gone.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts
from farmd.model.rules import Address
from farmd.net import neighbour

ATTEMPTS = 3
"""Questions asked within one timeout, evenly spaced: one lost frame is not a lost gateway."""
_FRAME_BYTES = 2048


async def reachable(
    gateway: Address, interface: InterfaceFacts, timeout_s: float, source: Address | None = None
) -> bool:
    """Whether `gateway` answers on `interface` within `timeout_s`; returns as soon as it does.

    `source` is an address of this node, asked with so that the gateway can check it; one of the other family, or None,
    asks without. An interface that is down or gone reaches nothing. Raises KernelError if raw sockets are refused.
    """
    question, answers, protocol = _question(gateway, interface, source)
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as link:
            link.bind((interface.name, protocol))
            return await _ask(link, question, answers, timeout_s)
    except PermissionError as error:
        step = "Run as root, or with CAP_NET_RAW."
        raise KernelError(f"gateway {gateway}", "this process may not open raw sockets", step) from error
    except OSError:
        return False


def _question(
    gateway: Address, interface: InterfaceFacts, source: Address | None
) -> tuple[bytes, Callable[[bytes], bool], int]:
    """The frame to send, how to know an answer, and the EtherType to listen for."""
    if isinstance(gateway, IPv4Address):
        asker = source if isinstance(source, IPv4Address) else None
        frame = neighbour.arp_request(interface.mac, asker, gateway)
        return frame, lambda answer: neighbour.is_arp_reply(answer, gateway), neighbour.ETH_P_ARP
    asker_v6 = source if isinstance(source, IPv6Address) else None
    frame = neighbour.solicitation(interface.mac, asker_v6, gateway)
    return frame, lambda answer: neighbour.is_advertisement(answer, gateway), neighbour.ETH_P_IPV6


async def _ask(link: socket.socket, question: bytes, answers: Callable[[bytes], bool], timeout_s: float) -> bool:
    loop = asyncio.get_running_loop()
    for _ in range(ATTEMPTS):
        await loop.sock_sendall(link, question)
        try:
            async with asyncio.timeout(timeout_s / ATTEMPTS):
                while not answers(await loop.sock_recv(link, _FRAME_BYTES)):
                    pass
        except TimeoutError:
            continue
        return True
    return False
