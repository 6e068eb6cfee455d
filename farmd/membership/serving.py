# SPDX-License-Identifier: Apache-2.0
"""What a node does with its planes and its lease: release, promise, start, open, renew, close.

Every function takes the node's state and the time, and appends commands. Rules by number are those of `core`.
"""

from __future__ import annotations

from farmd.membership.commands import Announce, EventType, Send, WriteLease, WritePlanes, WriteRoutes
from farmd.membership.messages import Heartbeat, Promise, Propose, Start
from farmd.membership.news import announce, tell_failover
from farmd.membership.settings import NEVER_NS
from farmd.membership.state import State
from farmd.model.nodes import BootId, NodeId
from farmd.model.planes import CLOSED, Planes, acquire, forget_held, release, settle
from farmd.model.routes import announcer, following


def beat(state: State, now_ns: int, to: NodeId | None = None) -> None:
    """Rule 1: send a heartbeat. `now_ns` was read before, so a lease may be counted from it."""
    state.seq += 1
    state.lease.sending(state.seq, now_ns)
    oldest = now_ns - state.contact_ns
    ballot = state.view.ballot
    heard = (peer.heard(ballot) for peer in state.peers.values() if peer.heard_ns >= oldest and not peer.left)
    message = Heartbeat(
        boot=state.boot,
        seq=state.seq,
        ballot=ballot,
        started=state.started,
        clear=state.clear,
        leads=state.proposes(now_ns),
        leased=state.opened and state.lease.deadline_ns > now_ns,
        holding=state.holding,
        alone=state.alone,
        leaving=state.leaving,
        unfit=state.unfit,
        counted=state.counted,
        established=state.established,
        held=state.held,
        heard=tuple(one for one in heard if one is not None),
    )
    state.out.append(Send(to, message))
    if state.voting:
        echo(state, now_ns, state.me, state.seq, state.clear)


def echo(state: State, now_ns: int, voter: NodeId, seq: int, clear: bool) -> None:
    """Rule 3: a voter (perhaps we ourselves) stands by our heartbeat `seq` under our view."""
    if state.serves and not state.leaving and state.lease.echoed(now_ns, voter, seq, clear):
        renew(state, now_ns)


def renew(state: State, now_ns: int) -> None:
    """Pass the deadline on to the kernel, and open what the view gives us if that is still to be done."""
    if state.lease.deadline_ns > state.written_deadline_ns:
        state.written_deadline_ns = state.lease.deadline_ns
        state.out.append(WriteLease(state.written_deadline_ns))
    open_share(state, now_ns)


def adopt(state: State, now_ns: int, proposal: Propose) -> None:
    """Rule 5: release what the view does not give us, then adopt it, then promise. Nothing is extended by this."""
    expire(state, now_ns)
    view = proposal.view
    shares = view.shares(state.me, state.plane_of)
    keep_nothing = state.leaving or (state.alone and state.me not in view.members)
    kept = tuple(
        CLOSED if keep_nothing else release(planes, share)
        for planes, share in zip(state.planes, shares, strict=True)
    )  # fmt: skip
    write(state, now_ns, kept)
    if state.alone:
        end_alone(state)
    state.view, state.answered, state.shares = view, proposal.answered, shares
    state.adopted_ns = now_ns
    state.started = state.opened = state.clear = state.counted = False
    state.start = None
    state.contested = (0,) * len(shares)
    state.reserved = max(state.reserved, view.ballot)
    state.know(view.ballot)
    state.lease.new_view()
    if state.leaving and not state.serves:
        close_lease(state)
    promise(state, view.ballot.proposer)
    check_clear(state, now_ns, announce=False)
    beat(state, now_ns)


def begin(state: State, now_ns: int, start: Start) -> None:
    """Rule 6: the view that we have adopted has started."""
    if start.ballot != state.view.ballot or state.started or len(start.contested) != len(state.shares):
        return
    state.started, state.started_ns = True, now_ns
    state.start = start
    state.contested = start.contested
    direct(state, start.holders)
    announce(state, now_ns)
    open_share(state, now_ns)


def direct(state: State, holders: tuple[tuple[bytes, ...], ...]) -> None:
    """Tell the filter of a directed farm who takes what in the started view, and neighbours if a member was lost."""
    if not state.settings.directed or not state.is_node:
        return
    owners, before = state.view.owners, state.last_started
    layers = holders or ((),) * len(owners)
    asked = tuple(following(state.me, group, each) for group, each in zip(owners, layers, strict=False))
    state.out.append(WriteRoutes(owners, asked))
    if before is not None and announcer(before, state.view) == state.me:
        state.out.append(Announce())


def promise(state: State, to: NodeId) -> None:
    """Answer a proposal that was adopted: everything not ours is released by now."""
    if to != state.me:
        claims = tuple(planes.claims for planes in state.planes)
        state.out.append(Send(to, Promise(state.view.ballot, state.voting, claims)))


def check_clear(state: State, now_ns: int, *, announce: bool = True) -> None:
    """Rule 6: once no promise under an older view is left, our echoes may carry leases; say so at once."""
    if state.clear or not state.voting:
        return
    ballot = state.view.ballot

    def moved(node: NodeId, boot: BootId) -> bool:
        peer = state.peers[node]
        return peer.boot == boot and peer.ballot == ballot

    state.clear_at_ns = state.promises.blocking(now_ns, ballot, moved)
    if state.clear_at_ns <= now_ns:
        state.clear = True
        if announce:
            beat(state, now_ns)


def open_share(state: State, now_ns: int) -> None:
    """Open our share once the view has started and a lease under this very view proves that nobody else serves it."""
    if state.opened or not state.started or not state.serves or not state.is_node:
        return
    if not state.lease.proven or state.lease.deadline_ns <= now_ns:
        return
    state.opened = True
    opened = tuple(
        acquire(planes, share, contested)
        for planes, share, contested in zip(state.planes, state.shares, state.contested, strict=True)
    )
    write(state, now_ns, opened)
    tell_failover(state, now_ns)
    if state.lost:
        state.lost = False
        state.tell(EventType.LEASE_REGAINED, "lease regained: this node serves its share again", epoch=state.view.epoch)


def expire(state: State, now_ns: int) -> None:
    """Close everything once the deadline has passed: a new owner may have reset our connections by now."""
    if state.lease.deadline_ns and state.lease.deadline_ns <= now_ns:
        served = any(planes.own for planes in state.planes)
        close(state, now_ns)
        if served:
            state.lost = True
            state.tell(EventType.LEASE_LOST, "lease lost: this node serves nothing", epoch=state.view.epoch)


def close(state: State, now_ns: int) -> None:
    """Serve nothing and hold nothing."""
    write(state, now_ns, (CLOSED,) * len(state.planes))
    close_lease(state)


def close_lease(state: State) -> None:
    """Close the filter at once and forget every echo."""
    state.lease.close()
    state.opened = False
    if state.written_deadline_ns:
        state.written_deadline_ns = 0
        state.out.append(WriteLease(0))


def end_alone(state: State) -> None:
    """Go back to serving by a majority's consent only."""
    state.alone = False
    state.tell(EventType.ALONE_ENDED, "the farm is exclusive again", exclusive=True)


def write(state: State, now_ns: int, planes: tuple[Planes, ...]) -> None:
    """Write `planes` if they differ from what the kernel has."""
    if planes == state.planes:
        return
    held_before = state.holding
    state.planes = planes
    state.holding = any(group.held for group in planes)
    state.fresh = any(group.fresh for group in planes)
    if not held_before and state.holding:
        state.held_since_ns = now_ns
    state.out.append(WritePlanes(planes))


def drop_held(state: State, now_ns: int, group: int, buckets: int) -> None:
    """No connection of `buckets` is left here."""
    planes = list(state.planes)
    planes[group] = forget_held(planes[group], buckets)
    write(state, now_ns, tuple(planes))


def check_settled(state: State, now_ns: int) -> None:
    """Settle `fresh` when no live peer holds moved connections any more, and let go of both at the drain deadline."""
    deadline = state.settings.drain_deadline_ns
    if state.holding and now_ns - state.held_since_ns >= deadline:
        write(state, now_ns, tuple(forget_held(planes, planes.held) for planes in state.planes))
    if not state.fresh:
        return
    over = state.started_ns is not None and now_ns - state.started_ns >= deadline
    if over or not any(_may_hold(state, now_ns, node) for node in state.peers):
        state.contested = (0,) * len(state.planes)
        write(state, now_ns, tuple(settle(planes) for planes in state.planes))


def _may_hold(state: State, now_ns: int, node: NodeId) -> bool:
    """A live peer holds moved connections, or has not yet said whether it does under this view."""
    peer = state.peers[node]
    if peer.last is None or peer.left or now_ns - peer.heard_ns > state.promise_ns:
        return False
    return peer.last.holding or peer.ballot != state.view.ballot


def next_settling_ns(state: State) -> int:
    """When `check_settled` has something to do whatever peers say; NEVER_NS if nothing."""
    if state.holding:
        return state.held_since_ns + state.settings.drain_deadline_ns
    return NEVER_NS
