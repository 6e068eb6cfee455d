# SPDX-License-Identifier: Apache-2.0
"""Tells neighbours that the VIPs are at this node: delivery `directed`, after a member was lost.

A few rounds, because a frame may get lost and some neighbours ignore a change that follows too closely on another; in
small bursts, because the engine's loop must not be late and switches limit broadcasts.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address

from farmd.model.rules import Address
from farmd.net import neighbour
from farmd.net.linkaddress import mac_of

ROUNDS_S = (0.0, 0.3, 1.5)
"""When each round begins, after the first."""
_BURST = 16
_PAUSE_S = 0.005


class Announcer:
    """Sends gratuitous ARP and unsolicited Neighbour Advertisements for every VIP on every service interface."""

    def __init__(self, vips: Sequence[Address], interfaces: Sequence[str], may: Callable[[], bool]) -> None:
        """`may` says whether this node still serves: the rounds end when it does not."""
        self._vips = vips
        self._interfaces = interfaces
        self._may = may
        self._timers: list[asyncio.TimerHandle] = []

    def announce(self) -> None:
        """Begin anew, and return at once."""
        self.stop()
        loop = asyncio.get_running_loop()
        self._timers = [loop.call_later(delay_s, self._round) for delay_s in ROUNDS_S]

    def stop(self) -> None:
        """Send no more."""
        for timer in self._timers:
            timer.cancel()
        self._timers = []

    def _round(self) -> None:
        self._timers = [timer for timer in self._timers if timer.when() > asyncio.get_running_loop().time()]
        self._burst(announcements(self._vips, self._interfaces))

    def _burst(self, rest: Iterator[tuple[str, bytes]]) -> None:
        if not self._may():
            return
        with open_wire() as wire:
            for _, (interface, frame) in zip(range(_BURST), rest, strict=False):
                try:
                    wire.sendto(frame, (interface, 0))
                except OSError:
                    continue  # The interface is down or full: the next round comes.
            else:
                self._timers.append(asyncio.get_running_loop().call_later(_PAUSE_S, self._burst, rest))


def open_wire() -> socket.socket:
    """A socket that sends whole frames and receives none."""
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)


def announcements(vips: Sequence[Address], interfaces: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Every (interface, frame) of one round; interfaces that are gone are left out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ask:
        macs = {name: mac_of(name, ask) for name in interfaces}
    for name, mac in macs.items():
        for vip in vips if any(mac) else ():
            yield name, _frame(vip, mac)


def _frame(vip: Address, mac: bytes) -> bytes:
    if isinstance(vip, IPv4Address):
        return neighbour.arp_announcement(mac, vip)
    return neighbour.advertisement(mac, vip)
