# SPDX-License-Identifier: Apache-2.0
"""The engine's part in delivery `directed`: routes into the filter, MAC addresses from node to node, announcements.

Nodes tell each other their MAC addresses themselves, once a second and at once to a node whose own have changed. (The
first message of a node that has just started is not believed until it has shown that it is no replay.) The
kernel's neighbour table would know them too, but only on links that carry heartbeats, and after a NIC was replaced it
believes in the old one for half a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from farmd.daemon.announcer import Announcer
from farmd.membership.commands import WriteRoutes
from farmd.membership.messages import Macs, Message
from farmd.model.buckets import NO_OWNERS
from farmd.model.config import FarmConfig
from farmd.model.nodes import NodeId
from farmd.model.rules import Address
from farmd.net.linkaddress import mac_of

if TYPE_CHECKING:
    import socket

    from farmd.dataplane.routes import RouteControl

_EVERY_S = 1.0
_SEARCHING_EVERY_S = 0.2
"""While some node is unknown: a farm that has just formed should not wait."""

Send = Callable[[Message, NodeId | None], None]


class Directed:
    """One node's knowledge of where the others are."""

    def __init__(
        self,
        config: FarmConfig,
        routes: RouteControl,
        interfaces: Sequence[str],
        ask: socket.socket,
        send: Send,
        serves: Callable[[], bool],
    ) -> None:
        """`interfaces` in the order of farm.toml; `ask`: any socket; `serves`: whether this node has a lease."""
        self._groups = len(config.groups)
        self._others = {member.id for member in config.nodes if member.id != config.me.id}
        self._routes = routes
        self._interfaces = interfaces
        self._ask = ask
        self._send = send
        self._known: dict[NodeId, tuple[bytes, ...]] = {}
        self._serves = serves
        self._announcer = Announcer(config.vips, interfaces, serves)
        self._timer: asyncio.TimerHandle | None = None

    def configure(self, vips: Sequence[Address], interfaces: Sequence[str]) -> None:
        """The daemon says what farm.toml has now: both may change while the engine runs."""
        self._announcer.stop()
        self._interfaces = interfaces
        self._announcer = Announcer(vips, interfaces, self._serves)
        self._tell(None)

    def forget_routes(self) -> None:
        """Send nothing on until a view says to whom."""
        for group in range(self._groups):
            self._routes.write(group, NO_OWNERS, NO_OWNERS)

    def start(self) -> None:
        """Begin to tell the others where this node is."""
        self._tell(None)
        pause_s = _EVERY_S if self._others <= self._known.keys() else _SEARCHING_EVERY_S
        self._timer = asyncio.get_running_loop().call_later(pause_s, self.start)

    def stop(self) -> None:
        """Fall silent; the filter keeps what it has."""
        self._announcer.stop()
        if self._timer is not None:
            self._timer.cancel()

    def write(self, command: WriteRoutes) -> None:
        """A view has started."""
        for group, (owners, following) in enumerate(zip(command.owners, command.following, strict=True)):
            self._routes.write(group, owners, following)

    def announce(self) -> None:
        """Tell neighbours that the VIPs are here."""
        self._announcer.announce()

    def learn(self, sender: NodeId, message: Macs) -> None:
        """A node says where it is. One that is new, or has changed, does not know about us yet either."""
        if self._known.get(sender) == message.macs:
            return
        for place, mac in enumerate(message.macs[: len(self._interfaces)]):
            self._routes.write_mac(place, sender, mac)
        self._known[sender] = message.macs
        self._tell(sender)

    def _tell(self, to: NodeId | None) -> None:
        self._send(Macs(tuple(mac_of(name, self._ask) for name in self._interfaces)), to)
