# SPDX-License-Identifier: Apache-2.0
"""What a new view means for people: who joined, left or failed, who is drained, whose weight changed."""

from __future__ import annotations

from farmd.membership.commands import EventType
from farmd.membership.settings import NEVER_NS
from farmd.membership.state import State
from farmd.model.nodes import NodeId
from farmd.model.view import View


def announce(state: State, now_ns: int) -> None:
    """The adopted view has started: tell what differs from the last one that did, and count failures (hold-down)."""
    view, before = state.view, state.last_started
    state.last_started = view
    members = sorted(view.members)
    names = ", ".join(state.name(node) for node in members) or "nobody"
    state.tell(EventType.VIEW_STARTED, f"view {view.epoch} started: {names}", epoch=view.epoch, members=members)
    if before is None:
        return
    for node in sorted(view.members - before.members):
        if node in state.peers:
            state.peers[node].failed = False
        state.tell(EventType.MEMBER_JOINED, f"{state.name(node)} joined", member=node, epoch=view.epoch)
    for node in sorted(before.members - view.members):
        _gone(state, now_ns, node)
    _changes(state, before, view)


def _gone(state: State, now_ns: int, node: NodeId) -> None:
    peer = state.peers.get(node)
    orderly = state.leaving if peer is None else peer.left or (peer.last is not None and peer.last.leaving)
    if orderly:
        state.tell(EventType.MEMBER_LEFT, f"{state.name(node)} left", member=node, epoch=state.view.epoch)
        return
    state.hold_down.failed(now_ns, node)
    if peer is not None:
        peer.failed = True
        if peer.heard_ns != NEVER_NS:
            state.failed_heard_ns = min(peer.heard_ns, state.failed_heard_ns or peer.heard_ns)
    unfit = state.unfit if peer is None else peer.last is not None and peer.last.unfit
    text = f"clients cannot reach {state.name(node)}" if unfit else f"{state.name(node)} failed"
    state.tell(EventType.MEMBER_FAILED, text, member=node, epoch=state.view.epoch)


def tell_failover(state: State, now_ns: int) -> None:
    """Our share is open: if somebody failed, say how long that took, from the last that was heard of them."""
    heard_ns, started_ns, state.failed_heard_ns = state.failed_heard_ns, state.started_ns, None
    if heard_ns is None or started_ns is None:
        return
    heard_ns = min(heard_ns, state.adopted_ns)  # We may still hear somebody whom the majority does not.
    phases = {
        "detect_ns": state.adopted_ns - heard_ns,
        "agree_ns": started_ns - state.adopted_ns,
        "program_ns": now_ns - started_ns,
    }
    text = f"takeover done {(now_ns - heard_ns) / 1e9:.3f} s after the last heartbeat"
    state.tell(EventType.FAILOVER_DONE, text, epoch=state.view.epoch, **phases)


def _changes(state: State, before: View, view: View) -> None:
    for node in sorted(view.drained - before.drained):
        state.tell(EventType.MEMBER_DRAINED, f"{state.name(node)} takes no new clients", member=node, epoch=view.epoch)
    for node in sorted(before.drained - view.drained):
        state.tell(EventType.MEMBER_READY, f"{state.name(node)} takes clients again", member=node, epoch=view.epoch)
    for group, (old, new) in enumerate(zip(before.weights, view.weights, strict=True)):
        if old == new:
            continue
        for number, (was, weight) in enumerate(zip(old, new, strict=True)):
            if was != weight:
                text = f"weight of {state.name(NodeId(number))} changed from {was} to {weight}"
                state.tell(EventType.WEIGHT_CHANGED, text, member=number, group=group, weight=weight, epoch=view.epoch)
