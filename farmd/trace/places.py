# SPDX-License-Identifier: Apache-2.0
"""Where the client of a sampled frame belongs: bucket, group and owner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from farmd.client import Client
from farmd.model.config import FarmConfig
from farmd.model.errors import FarmError
from farmd.model.rules import Affinity, Rule
from farmd.trace.packets import Packet

_BY_ADDRESS = ("arp", "nd", "icmp")
"""What no rule can name, and the owner of the client's bucket answers all the same."""
_REMEMBERED_NS = 1_000_000_000
"""How long an owner is believed: buckets move."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client belongs: bucket, group, and the owner's name; None = not known."""

    bucket: int | None = None
    group: str | None = None
    owner: str | None = None


class Places:
    """Asks the daemon for bucket and owner, and remembers the answers for a second."""

    def __init__(self, config: FarmConfig, client: Client, clock_ns: Callable[[], int]) -> None:
        self._config = config
        self._client = client
        self._clock_ns = clock_ns
        self._known: dict[tuple[object, ...], tuple[int, Place]] = {}

    def of(self, packet: Packet, rule: Rule | None) -> Place:
        """Where the sender of a packet to a VIP belongs; an empty `Place` if the daemon does not answer."""
        if rule is None and packet.protocol in _BY_ADDRESS:
            rule = self._steers_by_address(packet)
        if rule is None or rule.affinity is Affinity.PACKET_ID:  # a `Packet` does not tell its identification
            return Place()
        port = packet.source_port if rule.affinity is Affinity.CLIENT_IP_PORT else None
        key = (packet.source, port, rule.index)
        now = self._clock_ns()
        if key not in self._known or now - self._known[key][0] > _REMEMBERED_NS:
            self._known[key] = (now, self._ask(packet, port, rule))
        return self._known[key][1]

    def _ask(self, packet: Packet, port: int | None, rule: Rule) -> Place:
        try:
            answer = self._client.explain(str(packet.source), port, str(rule.vip), rule.port, rule.protocol).data
        except FarmError:
            return Place()
        return Place(answer["bucket"], answer["group"], answer["owner"])

    def _steers_by_address(self, packet: Packet) -> Rule | None:
        """A rule that steers as the filter steers what has no rule: by client-ip, in group 0; if there is one."""
        for rule in self._config.rules:
            if rule.vip.version == packet.source.version and rule.group == 0 and rule.affinity is Affinity.CLIENT_IP:
                return rule
        return None
