# SPDX-License-Identifier: Apache-2.0
"""Which members the next view should have (rule 4). Pure questions about a node's memory; nothing is changed here.

A member is *quiet* when some heartbeats are missing, a *suspect* when our promise to it is nearly over, and *gone* when
so few voters may still stand by it that it cannot renew its lease. Only the gone are left out, so a node that one voter
cannot hear but a majority can stays in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from farmd.membership.asking import Wishes
from farmd.membership.messages import PreVoteReply
from farmd.membership.settings import FAR_NS, NEVER_NS
from farmd.membership.state import State
from farmd.model.nodes import NodeId


@dataclass(slots=True)
class Poll:
    """What voters answered to one question: their view, and until when each of them stands by whom (our clock)."""

    replies: dict[NodeId, PreVoteReply] = field(default_factory=dict)
    until_ns: dict[NodeId, dict[NodeId, int]] = field(default_factory=dict)

    def add(self, now_ns: int, voter: NodeId, reply: PreVoteReply) -> None:
        """Take in an answer; its remaining times run from now, which is late and therefore safe."""
        self.replies[voter] = reply
        self.until_ns[voter] = {node: now_ns + microseconds * 1000 for node, microseconds in reply.remaining}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The members to propose, not before the given time."""

    members: frozenset[NodeId]
    wishes: Wishes
    not_before_ns: int

    def changes(self, state: State) -> bool:
        """The adopted view is not like this yet."""
        return self.members != state.view.members or self.wishes.differ(state.view)


def wanted(state: State, now_ns: int, wishes: Wishes, poll: Poll | None) -> Wanted:
    """The wanted view. Without a poll nobody is gone except who said goodbye, so it tells only whether to ask."""
    members = state.view.members
    left = frozenset(node for node in members if node != state.me and state.peers[node].left)
    gone, not_before_ns = left, NEVER_NS
    if poll is not None:
        voted, not_before_ns = _gone(state, now_ns, members - left, poll)
        gone |= voted
    stay = _fit(state, now_ns, members - gone - wishes.leaving)
    calm = not any(_quiet(state, now_ns, node) for node in stay)
    forced = bool(gone) or not state.started
    joiners = _joiners(state, now_ns, stay) - wishes.leaving if calm or forced or not stay else frozenset()
    if not calm and not forced:
        return Wanted(members, _unchanged(state), not_before_ns)
    return Wanted(stay | joiners, wishes, not_before_ns)


def _fit(state: State, now_ns: int, members: frozenset[NodeId]) -> frozenset[NodeId]:
    """Without those that clients cannot reach; if they can reach nobody, leaving anybody out would gain nothing."""
    unfit = state.unfit_nodes(now_ns)
    return members - unfit or members if unfit else members


def _unchanged(state: State) -> Wishes:
    """While a member is quiet nothing is changed that can wait: its promise would hold up everybody's lease."""
    return Wishes(state.view.drained, state.view.weights, frozenset(), ())


def ahead(state: State, now_ns: int) -> bool:
    """A voter that we hear has adopted a newer view than we have, and nobody brought it to us.

    The view of a peer that serves alone does not count: it comes back by way of its hold-down.
    """
    settle_ns = state.heartbeat_ns
    return any(
        peer.ballot > state.view.ballot
        and not (peer.last is not None and peer.last.alone)
        and not peer.left
        and state.alive(now_ns, node)
        and node in state.settings.voters
        for node, peer in state.peers.items()
    ) and (now_ns - state.adopted_ns >= settle_ns)


def next_suspicion_ns(state: State, now_ns: int) -> int:
    """When the first member becomes a suspect if it stays silent."""
    return min((_suspect_ns(state, node) for node in state.view.members if node != state.me), default=FAR_NS)


def _suspect_ns(state: State, node: NodeId) -> int:
    """Half a heartbeat before our promise to it is over; or when it has long had no lease though we do support it."""
    peer = state.peers[node]
    if peer.left:
        return NEVER_NS
    until_ns = max(state.promises.until(node), state.adopted_ns + state.promise_ns)
    silent_ns = until_ns - state.heartbeat_ns // 2
    if peer.idle_ns == NEVER_NS:
        return silent_ns
    return min(silent_ns, max(peer.idle_ns, state.adopted_ns) + state.promise_ns)


def _quiet(state: State, now_ns: int, node: NodeId) -> bool:
    """A heartbeat or two are missing."""
    if node == state.me:
        return False
    heartbeat_ns = state.heartbeat_ns
    return now_ns - max(state.peers[node].mutual_ns, state.adopted_ns) > 2 * heartbeat_ns + heartbeat_ns // 2


def _gone(state: State, now_ns: int, members: frozenset[NodeId], poll: Poll) -> tuple[frozenset[NodeId], int]:
    """The suspects that cannot renew, and when to propose without them.

    If another member is silent too, wait for it up to a heartbeat: causes are often common, and its promise would hold
    up the new view anyway (rule 6).
    """
    suspects = [node for node in members if node != state.me and _suspect_ns(state, node) <= now_ns]
    free_ns = {node: _free_ns(state, now_ns, node, poll) for node in suspects}
    heartbeat_ns = state.heartbeat_ns
    soon = [at for at in free_ns.values() if at <= now_ns + heartbeat_ns]
    if not soon:
        return frozenset(), NEVER_NS
    others = members - set(suspects) - {state.me}
    if any(_quiet(state, now_ns, node) for node in others):
        batch_ns = min(soon) + heartbeat_ns
        return frozenset(), max(max(soon), min(batch_ns, now_ns + state.settings.retry_ns))
    return frozenset(node for node, at in free_ns.items() if at <= now_ns + heartbeat_ns), max(soon)


def _free_ns(state: State, now_ns: int, node: NodeId, poll: Poll) -> int:
    """From when on fewer than a majority can stand by `node`, less the lead; FAR_NS if a majority may at any time."""
    settings = state.settings
    ends = []
    for voter in settings.voters:
        if voter == state.me:
            ends.append(state.promises.until(node))
        elif state.peers[voter].left:
            ends.append(NEVER_NS)
        elif voter == node or voter not in poll.replies:
            ends.append(FAR_NS)
        else:
            ends.append(poll.until_ns[voter].get(node, NEVER_NS))
    # The majority-th longest promise is the one that decides.
    deciding_ns = sorted(ends, reverse=True)[settings.majority - 1]
    return deciding_ns if deciding_ns == FAR_NS else deciding_ns - settings.lead_ns


def _joiners(state: State, now_ns: int, stay: frozenset[NodeId]) -> frozenset[NodeId]:
    """Nodes to let in: steadily heard for their hold-down, or at once if nobody serves."""
    settings = state.settings
    serving = bool(stay)
    outside = settings.nodes - stay - state.view.members if serving else settings.nodes - stay
    ripe = set()
    for node in outside:
        if node == state.me:
            if not state.leaving and not (serving and state.unfit):
                ripe.add(node)
            continue
        peer = state.peers[node]
        if peer.last is None or peer.left or peer.last.leaving or not state.alive(now_ns, node):
            continue
        if serving and peer.last.unfit:
            continue
        # Two that serve alone serve everything twice: the sooner they share, the better.
        both_alone = state.alone and peer.last.alone
        if not serving or both_alone or now_ns - peer.steady_ns >= state.hold_down.needed_ns(now_ns, node):
            ripe.add(node)
    if not serving and not _all_there(state, now_ns, ripe):
        return frozenset()
    return frozenset(ripe)


def _all_there(state: State, now_ns: int, ripe: set[NodeId]) -> bool:
    """The first view waits a little for every configured node, so that a farm that boots together starts together."""
    since_ns = state.born_ns + state.settings.restart_ns + 2 * state.settings.timing.lease_ns
    return ripe >= state.settings.nodes or now_ns >= since_ns
