# SPDX-License-Identifier: Apache-2.0
"""How messages travel in the simulator: handed over as they are, or sealed and opened by the real wire."""

from __future__ import annotations

import random

from farmd.membership.keys import KeyRing
from farmd.membership.messages import Message
from farmd.membership.wire import Channel, Dropped, DropReason
from farmd.model.nodes import BootId, NodeId


class Wiring:
    """One channel for each incarnation if `real`, else nothing but a pass-through."""

    def __init__(self, real: bool, rng: random.Random, everyone: frozenset[NodeId]) -> None:
        self._real = real
        self._random = rng
        self._everyone = everyone
        self._channels: dict[NodeId, Channel] = {}
        self._ring = KeyRing({1: rng.randbytes(32)}, 1, rng.randbytes(16))

    def boot(self, name: NodeId, boot: BootId) -> None:
        """A new incarnation starts with a new channel."""
        if self._real:
            self._channels[name] = Channel(
                self._ring, "sim", name, boot, self._everyone, nonce=lambda: self._random.getrandbits(64)
            )

    def seal(self, sender: NodeId, message: Message) -> Message | bytes:
        return self._channels[sender].seal(message) if self._real else message

    def open(self, receiver: NodeId, item: Message | bytes, now_ns: int) -> tuple[Message | None, bytes | None]:
        """The message, and a datagram to send back, if any."""
        if not isinstance(item, bytes):
            return item, None
        result = self._channels[receiver].open(item, now_ns)
        if isinstance(result, Dropped):
            assert result.reason not in (DropReason.FORGED, DropReason.MALFORMED, DropReason.FOREIGN), result.reason
            return None, result.reply
        return result.message, None
