# SPDX-License-Identifier: Apache-2.0
"""What one node shows of itself and of the others."""

from __future__ import annotations

from farmd.membership.commands import NodeStatus, PeerStatus, Phase
from farmd.membership.peers import Peer
from farmd.membership.settings import NEVER_NS
from farmd.membership.state import State
from farmd.model.nodes import MemberState, NodeId


class Register:
    """The state of every member and since when it lasts."""

    def __init__(self, now_ns: int) -> None:
        self._born_ns = now_ns
        self._since: dict[NodeId, tuple[MemberState, int]] = {}

    def note(self, state: State, now_ns: int) -> None:
        """Look at every member again."""
        for node in sorted(state.settings.everyone):
            now = _member_state(state, now_ns, node)
            if self._since.get(node, (None, 0))[0] is not now:
                self._since[node] = (now, now_ns)

    def status(self, state: State, now_ns: int) -> NodeStatus:
        """A frozen picture."""
        self.note(state, now_ns)
        return NodeStatus(
            view=state.view,
            started=state.started,
            started_ns=state.started_ns,
            phase=_phase(state, now_ns),
            deadline_ns=state.lease.deadline_ns,
            exclusive=not state.alone,
            planes=state.planes,
            peers=tuple(self._peer(state, now_ns, node) for node in sorted(state.settings.everyone)),
        )

    def _peer(self, state: State, now_ns: int, node: NodeId) -> PeerStatus:
        kind, since_ns = self._since[node]
        if node == state.me:
            leased = state.opened and state.lease.deadline_ns > now_ns
            return PeerStatus(
                node, kind, since_ns, None, True, state.boot, state.view.ballot, leased, state.established, state.held
            )
        peer = state.peers[node]
        last = peer.last
        return PeerStatus(
            node=node,
            state=kind,
            since_ns=since_ns,
            last_heard_ns=None if peer.heard_ns == NEVER_NS else peer.heard_ns,
            hears_me=state.alive(now_ns, node),
            boot=peer.boot,
            ballot=peer.ballot,
            leased=last is not None and last.leased,
            established=last.established if last else 0,
            held=last.held if last else 0,
        )


def _phase(state: State, now_ns: int) -> Phase:
    if state.halted:
        return Phase.CLOSED
    if state.leaving:
        return Phase.LEAVING
    if state.serves and state.started:
        return Phase.SERVING if state.lease.deadline_ns > now_ns or not state.is_node else Phase.WAITING
    if state.is_node and state.started:
        return Phase.JOINING
    return Phase.SERVING if state.started else Phase.WAITING


def _member_state(state: State, now_ns: int, node: NodeId) -> MemberState:
    peer = state.peers.get(node)
    if peer is not None and not _present(state, now_ns, peer):
        if peer.left:
            return MemberState.LEFT
        if peer.heard_ns == NEVER_NS and node not in state.view.members:
            return MemberState.UNSEEN
        failed = peer.failed or node in state.view.members or node in state.settings.witnesses
        return MemberState.FAILED if failed else MemberState.UNSEEN
    if node in state.settings.witnesses:
        return MemberState.UP
    if state.unfit if peer is None else peer.last is not None and peer.last.unfit:
        return MemberState.UNFIT
    if node not in state.view.members or not state.started:
        return MemberState.JOINING
    if node not in state.view.drained:
        return MemberState.UP
    said = state if peer is None else peer.last
    drained = said is not None and said.counted and not said.established
    return MemberState.DRAINED if drained else MemberState.DRAINING


def _present(state: State, now_ns: int, peer: Peer) -> bool:
    """Heard within a promise's length (before that, silence is not failure)."""
    return not peer.left and now_ns - peer.heard_ns <= state.promise_ns
