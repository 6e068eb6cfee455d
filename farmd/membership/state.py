# SPDX-License-Identifier: Apache-2.0
"""All that one node remembers, and the questions that its parts ask of it."""

from __future__ import annotations

from farmd.membership.commands import Command, Event, EventType, Happened
from farmd.membership.flap import HoldDown
from farmd.membership.messages import Start
from farmd.membership.peers import Peer
from farmd.membership.requests import RequestId
from farmd.membership.settings import NEVER_NS, Settings
from farmd.membership.support import Lease, Promises
from farmd.model.buckets import NO_OWNERS
from farmd.model.config import Profile
from farmd.model.nodes import BootId, NodeId, Role
from farmd.model.planes import CLOSED, Planes
from farmd.model.view import NO_BALLOT, Ballot, View


class State:
    """The memory of a node. `out` collects the commands of the event that is being handled, in order."""

    def __init__(self, settings: Settings, boot: BootId, now_ns: int) -> None:
        groups = len(settings.weights)
        self.settings = settings
        self.me = settings.me
        self.boot = boot
        self.born_ns = now_ns
        # Read on every heartbeat, so computed once.
        self.contact_ns = settings.contact_ns
        self.promise_ns = settings.timing.promise_ns
        self.heartbeat_ns = settings.timing.heartbeat_ns
        self.out: list[Command] = []
        self.peers = {node: Peer(node) for node in sorted(settings.everyone - {settings.me})}
        self.promises = Promises(settings.timing.promise_ns)
        self.lease = Lease(settings.timing.lease_ns, settings.majority)
        self.hold_down = HoldDown(settings.timing)
        self.seq = 0
        # The view that was adopted.
        self.view = View(NO_BALLOT, frozenset(), frozenset(), settings.weights, (NO_OWNERS,) * groups)
        self.answered: tuple[RequestId, ...] = ()
        self.adopted_ns = now_ns
        self.started = False
        self.started_ns: int | None = None
        self.shares = (0,) * groups
        self.contested = (0,) * groups
        self.start: Start | None = None
        """The START of the adopted view, to be passed on to those who missed it."""
        self.last_started: View | None = None
        # Voting.
        self.voting = False
        self.clear = False
        self.clear_at_ns = NEVER_NS
        self.reserved: Ballot = NO_BALLOT
        self.top_counter = 0
        # Serving.
        self.planes: tuple[Planes, ...] = (CLOSED,) * groups
        self.written_deadline_ns = 0
        self.opened = False
        self.lost = False
        """The lease ran out while serving, which people were told."""
        self.holding = False
        """It may have connections of buckets that moved away."""
        self.fresh = False
        """Another live node may have connections of buckets that are ours now."""
        self.held_since_ns = NEVER_NS
        self.established = 0
        self.held = 0
        # Leaving, and serving alone.
        self.leaving = False
        self.halted = False
        self.alone = False
        self.gateway = False
        self.gateway_since_ns = NEVER_NS
        """Since when it has been reached without a break."""

    @property
    def serves(self) -> bool:
        """It is a member of the adopted view."""
        return self.me in self.view.members

    @property
    def is_node(self) -> bool:
        """It may serve at all."""
        return self.settings.role is Role.NODE

    @property
    def may_be_alone(self) -> bool:
        """The farm puts being available above being exclusive."""
        return self.settings.profile is Profile.AVAILABLE

    def alive(self, now_ns: int, node: NodeId) -> bool:
        """`node` hears us and we hear it."""
        return node == self.me or now_ns - self.peers[node].mutual_ns <= self.contact_ns

    def leads(self, now_ns: int) -> bool:
        """This voter hears a majority both ways (rule 4)."""
        if not self.voting or self.halted or self.alone_blocks(now_ns):
            return False
        voters = self.settings.voters
        return sum(self.alive(now_ns, node) for node in voters) >= self.settings.majority

    def alone_blocks(self, now_ns: int) -> bool:
        """It serves alone and its peer is not back."""
        return self.alone and not any(self.alive(now_ns, node) for node in self.peers)

    def know(self, ballot: Ballot) -> None:
        """Remember the highest ballot counter seen anywhere, so that the next one is above it."""
        self.top_counter = max(self.top_counter, ballot.counter)

    def tell(self, kind: EventType, text: str, **data: object) -> None:
        """Let people know."""
        self.out.append(Happened(Event(kind, text, data)))

    def name(self, node: NodeId) -> str:
        """What people call `node`."""
        return self.settings.name(node)
