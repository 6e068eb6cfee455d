# SPDX-License-Identifier: Apache-2.0
"""Profile `available`: of two nodes without a witness, one that has lost the other serves everything.

It does so only while it reaches the gateway. Both may at once when only the link between them is cut, so `exclusive` is
False meanwhile.
"""

from __future__ import annotations

from farmd.membership.commands import EventType
from farmd.membership.messages import Propose
from farmd.membership.serving import adopt, close, direct, renew
from farmd.membership.settings import FAR_NS
from farmd.membership.state import State
from farmd.model.view import Ballot, successor


def step(state: State, now_ns: int) -> None:
    """Begin, go on or stop serving alone, as contact with the peer and the gateway demand."""
    if not state.may_be_alone or not state.is_node or state.leaving or state.halted:
        return
    if state.alone:
        if not state.gateway:
            state.alone = False
            close(state, now_ns)
            state.tell(EventType.ALONE_ENDED, "the gateway is out of reach: this node serves nothing", exclusive=True)
        return
    if state.gateway and now_ns >= lost_ns(state):
        _begin(state, now_ns)


def lost_ns(state: State) -> int:
    """When the peer counts as lost: nothing it may do rests on our promise any more, nor ours on its."""
    settings = state.settings
    if not state.may_be_alone or state.alone or not state.is_node:
        return FAR_NS
    # When our own link comes back, the gateway may answer before the peer is heard: silence counts only from then on.
    connected_ns = state.gateway_since_ns + settings.timing.promise_ns
    lost = max(state.born_ns + settings.restart_ns, state.lease.deadline_ns, connected_ns)
    for node, peer in state.peers.items():
        if peer.left:
            continue
        lost = max(lost, state.promises.until(node), peer.mutual_ns + settings.timing.promise_ns)
        if peer.last is not None and peer.last.alone:
            lost = max(lost, peer.heard_ns + settings.timing.promise_ns)
    return lost


def _begin(state: State, now_ns: int) -> None:
    ballot = Ballot(max(state.top_counter, state.view.ballot.counter) + 1, state.me, state.boot)
    members = frozenset({state.me})
    drained = state.view.drained - members
    adopt(state, now_ns, Propose(successor(state.view, ballot, members, drained=drained), True, ()))
    state.alone = True
    state.started, state.started_ns = True, now_ns
    direct(state, ())
    state.tell(EventType.ALONE_STARTED, "the other node is lost: this one serves everything", exclusive=False)
    extend(state, now_ns)


def extend(state: State, now_ns: int) -> None:
    """Renew the lease that rests on nobody's promise."""
    if state.alone:
        state.lease.self_made(now_ns + state.settings.timing.lease_ns)
        renew(state, now_ns)
