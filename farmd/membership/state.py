# SPDX-License-Identifier: Apache-2.0
"""All that one node remembers, and the questions that its parts ask of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from farmd.membership.commands import Command, Event, EventType, Happened
from farmd.membership.flap import HoldDown
from farmd.membership.messages import Start
from farmd.membership.peers import Peer
from farmd.membership.requests import RequestId
from farmd.membership.settings import NEVER_NS, Settings
from farmd.membership.support import Lease, Promises
from farmd.model.buckets import NO_OWNERS, PlaneOf
from farmd.model.config import Profile
from farmd.model.nodes import BootId, NodeId, Role
from farmd.model.planes import CLOSED, Planes
from farmd.model.view import NO_BALLOT, Ballot, View


@dataclass(slots=True, eq=False)
class State:
    """The memory of a node. `out` collects the commands of the event that is being handled, in order."""

    settings: Settings
    boot: BootId
    born_ns: int
    plane_of: PlaneOf
    me: NodeId = field(init=False)
    peers: dict[NodeId, Peer] = field(init=False)
    promises: Promises = field(init=False)
    lease: Lease = field(init=False)
    hold_down: HoldDown = field(init=False)
    contact_ns: int = field(init=False)
    """With the next two, read on every heartbeat, so computed once."""
    promise_ns: int = field(init=False)
    heartbeat_ns: int = field(init=False)
    seq: int = 0
    out: list[Command] = field(default_factory=list)

    # The view that was adopted.
    view: View = field(init=False)
    adopted_ns: int = field(init=False)
    shares: tuple[int, ...] = field(init=False)
    contested: tuple[int, ...] = field(init=False)
    """Buckets that open as `fresh`; none once they have settled."""
    answered: tuple[RequestId, ...] = ()
    started: bool = False
    started_ns: int | None = None
    start: Start | None = None
    """The START of the adopted view, to be passed on to those who missed it."""
    last_started: View | None = None
    failed_heard_ns: int | None = None
    """When a member that this view gave up was last heard; None once our share is open."""

    # Voting.
    voting: bool = False
    """A voter whose restart wait is over."""
    clear: bool = False
    clear_at_ns: int = NEVER_NS
    reserved: Ballot = NO_BALLOT
    """The highest ballot that this voter agreed to or adopted."""
    top_counter: int = 0

    # Serving.
    planes: tuple[Planes, ...] = field(init=False)
    written_deadline_ns: int = 0
    opened: bool = False
    """Our share of the adopted view is open."""
    lost: bool = False
    """The lease ran out while serving, which people were told."""
    holding: bool = False
    """It may have connections of buckets that moved away."""
    fresh: bool = False
    """Another live node may have connections of buckets that are ours now."""
    held_since_ns: int = NEVER_NS
    counted: bool = False
    """The next two were counted under the adopted view."""
    established: int = 0
    held: int = 0

    # Leaving, being of no use to clients, and serving alone.
    leaving: bool = False
    halted: bool = False
    unfit: bool = False
    """Clients cannot reach this node, though peers can: its service network is down."""
    alone: bool = False
    gateway: bool = False
    gateway_since_ns: int = NEVER_NS
    """Since when it has been reached without a break."""

    def __post_init__(self) -> None:
        settings, groups = self.settings, len(self.settings.weights)
        self.me = settings.me
        self.peers = {node: Peer(node) for node in sorted(settings.everyone - {settings.me})}
        self.promises = Promises(settings.timing.promise_ns)
        self.lease = Lease(settings.timing.lease_ns, settings.majority)
        self.hold_down = HoldDown(settings.timing)
        self.contact_ns = settings.contact_ns
        self.promise_ns = settings.timing.promise_ns
        self.heartbeat_ns = settings.timing.heartbeat_ns
        self.view = View(NO_BALLOT, frozenset(), frozenset(), settings.weights, (NO_OWNERS,) * groups)
        self.adopted_ns = self.born_ns
        self.shares = self.contested = (0,) * groups
        self.planes = (CLOSED,) * groups

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

    def waits_outside(self, now_ns: int) -> bool:
        """The farm is served and led without this node, which then does not let itself in before its hold-down."""
        if not self.is_node or self.leaving or self.lease.deadline_ns > now_ns:
            return False
        return any(
            peer.last is not None
            and peer.last.leased
            and (peer.last.leads or peer.last.alone)
            and (not self.serves or peer.ballot > self.view.ballot)
            and self.alive(now_ns, node)
            for node, peer in self.peers.items()
        )

    def proposes(self, now_ns: int) -> bool:
        """This voter may change the view."""
        return self.leads(now_ns) and not self.waits_outside(now_ns)

    def unfit_nodes(self, now_ns: int) -> frozenset[NodeId]:
        """Nodes that say that clients cannot reach them."""
        peers = (node for node, peer in self.peers.items() if peer.last is not None and peer.last.unfit)
        return frozenset((*peers, self.me) if self.unfit else peers)

    def know(self, ballot: Ballot) -> None:
        """Remember the highest ballot counter seen anywhere, so that the next one is above it."""
        self.top_counter = max(self.top_counter, ballot.counter)

    def tell(self, kind: EventType, text: str, **data: object) -> None:
        """Let people know."""
        self.out.append(Happened(Event(kind, text, data)))

    def name(self, node: NodeId) -> str:
        """What people call `node`."""
        return self.settings.name(node)
