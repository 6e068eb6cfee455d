# SPDX-License-Identifier: Apache-2.0
"""What a node is told about its farm before it starts, and the times that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from farmd.model.config import Profile, Timing
from farmd.model.nodes import NodeId, Role

FAR_NS = 1 << 62
"""Later than anything: the wake-up time of what has nothing to wait for."""
NEVER_NS = -FAR_NS
"""Earlier than anything: the time of what has not happened yet."""
RESTART_MARGIN_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """One node's place in its farm. Times in nanoseconds.

    `weights` has one `View.weights` entry a group: the configured weights, used until a view says otherwise.
    """

    me: NodeId
    role: Role
    voters: frozenset[NodeId]
    nodes: frozenset[NodeId]
    """Every member that may serve; not the witnesses."""
    witnesses: frozenset[NodeId]
    weights: tuple[bytes, ...]
    timing: Timing
    profile: Profile = Profile.EXCLUSIVE
    drain_deadline_ns: int = 3_600_000_000_000
    """After this long, connections of moved buckets are no longer kept."""
    directed: bool = False
    """Nodes send on to each other what is not theirs, so each must know who takes what (delivery `directed`)."""
    names: Mapping[NodeId, str] = field(default_factory=dict)
    """For the text of events; a node without a name is called by its number."""

    def __post_init__(self) -> None:
        if self.me not in self.everyone:
            raise ValueError(f"node {self.me} is not one of its own farm: {sorted(self.everyone)}")
        if not self.voters or not self.voters <= self.everyone:
            raise ValueError(f"voters must be members, and at least one: {sorted(self.voters)}")
        if not self.weights:
            raise ValueError("a farm has at least one group, so weights has at least one entry")

    @property
    def everyone(self) -> frozenset[NodeId]:
        """Serving members and witnesses."""
        return self.nodes | self.witnesses

    @property
    def majority(self) -> int:
        """How many voters are more than half of them."""
        return len(self.voters) // 2 + 1

    @property
    def contact_ns(self) -> int:
        """A peer that was not heard for this long is no longer listed as heard: about three heartbeats."""
        return self.timing.lease_ns * 3 // 5

    @property
    def restart_ns(self) -> int:
        """How long a voter stays silent after a start (rule 7)."""
        return self.timing.promise_ns + RESTART_MARGIN_NS

    @property
    def lead_ns(self) -> int:
        """How long before a promise runs out its node may be proposed away (rule 4): time for a round trip."""
        return self.timing.heartbeat_ns // 4

    @property
    def retry_ns(self) -> int:
        """Unanswered election messages are sent again after this long."""
        return self.timing.heartbeat_ns // 8

    def name(self, node: NodeId) -> str:
        """What people call `node`."""
        return self.names.get(node, f"node {node}")
