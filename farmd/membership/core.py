# SPDX-License-Identifier: Apache-2.0
"""Quorum leases over heartbeats: the membership protocol of one node, without sockets, clocks or disks.

**Property.** For every bucket, at every instant, at most one node has it in its `own` plane with an unexpired
deadline.

**Assumptions.** Clock rates are within `Timing.clock_error` of true time; CLOCK_BOOTTIME counts pauses; messages are
authentic; the list of voters does not change. Nothing is assumed about the network (loss, delay, duplication,
reordering, one-way links) nor about stalls and crashes. No disk is needed: ballots carry the boot id of their
proposer.

**Rules.** H is the heartbeat, L the lease, Lp = L(1+rho)/(1-rho) the promise.

1. *Heartbeat.* Every H, and at once when something changed, send who I am, my view, whom I hear, and whose heartbeats
   I stand by (echoes). The clock is read before sending.
2. *Support.* A voter that gets a heartbeat under its own ballot, from a node that hears it, promises to stand by that
   node for Lp and echoes the heartbeat. Otherwise neither.
3. *Lease.* When a majority of *clear* voters (rule 6) has echoed a heartbeat under the view that I have adopted, my
   deadline is its sending time + L. Never its echo's arrival + L.
4. *Propose.* The lowest voter that hears a majority both ways proposes when the members should change: a member
   leaves when no majority can stand by it any more, a newcomer joins after its hold-down. It asks first (pre-vote),
   which disturbs nobody; a voter that agrees refuses lower ballots from then on, so no started view is ever forgotten
   by the next.
5. *Release first.* On a higher ballot: close what it does not give me (everything, if my deadline is over), write
   that to the kernel, adopt the ballot, and only then say so. From here on no older view extends my deadline.
6. *Clear, start.* A voter is clear under its ballot once every promise that it gave under a lower one is over, or its
   holder has adopted this very ballot and so has released. The proposer, with the promises of a majority and of all
   that it hears, sends START with the buckets in which live nodes have connections. A node opens what it gained when
   it has START *and* a lease under the new view.
7. *Restart.* Close everything at the start; stay silent as a voter for Lp + 50 ms.
8. *Stall.* After an own stall > L/2 the shell drops what waits in its socket before calling here; a deadline that
   passed meanwhile closes everything before anything else is done.
9. *Leave.* Propose without me; all answer, so nobody waits; then say goodbye.
10. *Shares.* `farmd.model.view.successor`: exact balance by weight, fewest moves.

**Why it is safe.** Say i has a valid lease under b and j one under b' > b, and a bucket is open at both. Some voter v
is in both majorities. If v echoed i before it adopted b', then v became clear under b' only when its promise to i was
over, and then i's lease is over as well (rule 3 counts from the sending, the promise from the receipt); or when i
adopted b', and then i has released what b' gives to j (rule 5). If v echoed j first and i later, v has restarted in
between, since ballots only rise; and rule 7 lets j's lease run out first. Leases under one ballot share no bucket, as
a ballot names one view.
"""

from __future__ import annotations

from farmd.membership import alone
from farmd.membership.asking import Asker, Inbox
from farmd.membership.commands import Command, EventType, Halt, NodeStatus, Send, WriteLease, WritePlanes
from farmd.membership.election import Election
from farmd.membership.messages import (
    Ask,
    Fetch,
    Goodbye,
    Heard,
    Heartbeat,
    Message,
    PreVote,
    PreVoteReply,
    Promise,
    Propose,
    Start,
)
from farmd.membership.peers import Peer, boot_tag
from farmd.membership.requests import Leave, Request
from farmd.membership.serving import (
    adopt,
    beat,
    begin,
    check_clear,
    check_settled,
    close,
    drop_held,
    echo,
    expire,
    next_settling_ns,
    promise,
)
from farmd.membership.settings import FAR_NS, NEVER_NS, Settings
from farmd.membership.state import State
from farmd.membership.status import Register
from farmd.model.buckets import PlaneOf, plane_of
from farmd.model.nodes import BootId, NodeId
from farmd.model.view import NO_BALLOT, Ballot


class Node:
    """One node of a farm. Every method takes the time and returns what the node's shell must do, in order."""

    def __init__(self, settings: Settings, boot: BootId, now_ns: int, plane_of: PlaneOf = plane_of) -> None:
        self._state = state = State(settings, boot, now_ns, plane_of)
        self._register = Register(now_ns)
        self._inbox = Inbox()
        self._asker = Asker()
        self._election = Election(state, self._inbox)
        self._next_beat_ns = now_ns
        self._halt_ns = FAR_NS
        # Rule 7: the kernel may still have what an earlier incarnation wrote.
        state.out += [WriteLease(0), WritePlanes(state.planes)]

    # ---- events ----

    def receive(self, now_ns: int, sender: NodeId, message: Message) -> list[Command]:
        """A message from `sender` has arrived."""
        state = self._state
        peer = state.peers.get(sender)
        if peer is None or state.halted:
            return self._done()
        expire(state, now_ns)
        match message:
            case Heartbeat():
                self._on_heartbeat(now_ns, peer, message)
            case PreVote():
                self._on_prevote(now_ns, sender, message)
            case PreVoteReply():
                self._election.on_reply(now_ns, sender, message)
            case Fetch():
                self._help(peer, now_ns, started=state.started)
            case Propose():
                self._on_propose(now_ns, sender, message)
            case Promise():
                self._election.on_promise(now_ns, sender, message)
            case Start():
                begin(state, now_ns, message)
                self._asker.step(state, now_ns, self._inbox)
            case Goodbye():
                self._on_goodbye(now_ns, peer, message)
            case Ask():
                self._inbox.put(now_ns, message)
                self._election.step(now_ns)
        return self._done()

    def tick(self, now_ns: int) -> list[Command]:
        """Time has passed; call it at or after `next_wakeup_ns`."""
        state, settings = self._state, self._state.settings
        if state.halted:
            return self._done()
        expire(state, now_ns)
        if not state.voting and state.me in settings.voters and now_ns >= state.born_ns + settings.restart_ns:
            state.voting = True
        check_clear(state, now_ns)
        alone.step(state, now_ns)
        self._asker.step(state, now_ns, self._inbox)
        if self._leave(now_ns):
            return self._done()
        if now_ns >= self._next_beat_ns:
            self._beat(now_ns)
        self._election.step(now_ns)
        return self._done()

    def next_wakeup_ns(self) -> int:
        """When to call `tick` at the latest."""
        state = self._state
        if state.halted:
            return FAR_NS
        times = [self._next_beat_ns, self._election.wake_ns, self._asker.next_ns(), self._halt_ns]
        if state.lease.deadline_ns:
            times.append(state.lease.deadline_ns)
        if state.voting and not state.clear:
            times.append(state.clear_at_ns)
        if not state.voting and state.me in state.settings.voters:
            times.append(state.born_ns + state.settings.restart_ns)
        if state.gateway:
            times.append(alone.lost_ns(state))
        settling_ns = next_settling_ns(state)
        if settling_ns != NEVER_NS:
            times.append(settling_ns)
        return min(times)

    def request(self, now_ns: int, request: Request) -> list[Command]:
        """Somebody asks this node for a change; how it ends is told by an event."""
        if isinstance(request, Leave) and not self._state.leaving:
            self._state.leaving = True
            # Tell everybody before the view does, so that nobody takes this for a failure.
            beat(self._state, now_ns)
        self._asker.want(self._state, now_ns, request)
        return self.tick(now_ns)

    def forget_held(self, now_ns: int, group: int, buckets: int) -> list[Command]:
        """The daemon saw no connection left in these held buckets."""
        drop_held(self._state, now_ns, group, buckets)
        return self._done()

    def report_connections(self, established: int, held: int) -> None:
        """Counts for everybody's status; they ride on the next heartbeat."""
        self._state.established, self._state.held = established, held
        self._state.counted = True

    def gateway(self, now_ns: int, reachable: bool) -> list[Command]:
        """Whether the gateway answers on the path that clients use; counts only in profile `available`."""
        if reachable and not self._state.gateway:
            self._state.gateway_since_ns = now_ns
        self._state.gateway = reachable
        return self.tick(now_ns)

    def service(self, now_ns: int, usable: bool) -> list[Command]:
        """Whether clients can reach this node; peers may hear it by another network all the same."""
        if self._state.unfit != (not usable):
            self._state.unfit = not usable
            beat(self._state, now_ns)
        return self.tick(now_ns)

    def stalled(self, now_ns: int, for_ns: int) -> list[Command]:
        """Rule 8: this process did not run for `for_ns`; the shell has dropped what waited in its sockets."""
        state = self._state
        if for_ns > state.settings.timing.lease_ns // 2:
            milliseconds = for_ns // 1_000_000
            text = f"the engine did not run for {milliseconds} ms"
            state.tell(EventType.ENGINE_STALLED, text, milliseconds=milliseconds)
        for peer in state.peers.values():
            peer.forgive(now_ns, for_ns)
        return self.tick(now_ns)

    @property
    def ballot(self) -> Ballot:
        """The ballot of the adopted view, without the price of a whole `status`."""
        return self._state.view.ballot

    def status(self, now_ns: int) -> NodeStatus:
        """A frozen picture of this node."""
        return self._register.status(self._state, now_ns)

    def check_invariants(self) -> None:
        """Raise AssertionError if the node contradicts itself (for tests and simulation)."""
        state = self._state
        for planes, share in zip(state.planes, state.shares, strict=True):
            assert planes.own & planes.held == 0, "a bucket is both owned and held"
            assert planes.fresh & ~planes.own == 0, "a bucket is fresh but not owned"
            assert planes.own & ~share == 0, "a bucket is open that the adopted view gives to another node (rule 5)"
            assert state.is_node or planes.claims == 0, "a witness serves"
        assert not state.opened or (state.started and state.lease.proven), "opened without START and lease (rule 6)"
        assert state.voting or not state.clear, "a voter echoes leases in its restart wait (rule 7)"
        assert state.reserved >= state.view.ballot, "a ballot was adopted below one that was refused (rule 4)"

    # ---- messages ----

    def _on_heartbeat(self, now_ns: int, peer: Peer, heartbeat: Heartbeat) -> None:
        state = self._state
        if not peer.accept(now_ns, heartbeat):
            return
        state.know(heartbeat.ballot)
        same = heartbeat.ballot == state.view.ballot
        mine = self._mine(heartbeat)
        if mine is not None:
            peer.in_contact(now_ns, state.contact_ns)
            if same and mine.supported and peer.id in state.settings.voters:
                echo(state, now_ns, peer.id, mine.seq, heartbeat.clear)
            if same and state.voting:
                self._support(now_ns, peer, heartbeat)
            if heartbeat.unfit:
                peer.steady_ns = now_ns  # Its hold-down begins when clients can reach it again.
                self._election.step(now_ns)
        if same and not state.clear:
            check_clear(state, now_ns)
        idle = same and heartbeat.started and not heartbeat.leased
        peer.idle_ns = (now_ns if peer.idle_ns == NEVER_NS else peer.idle_ns) if idle else NEVER_NS
        if (heartbeat.ballot < state.view.ballot or (same and not heartbeat.started)) and state.started:
            self._bring_up(now_ns, peer)
        if not heartbeat.holding:
            check_settled(state, now_ns)

    def _mine(self, heartbeat: Heartbeat) -> Heard | None:
        """What the sender says about this very incarnation; None if it does not hear us."""
        tag = boot_tag(self._state.boot)
        return next((one for one in heartbeat.heard if one.node == self._state.me and one.boot_tag == tag), None)

    def _support(self, now_ns: int, peer: Peer, heartbeat: Heartbeat) -> None:
        """Rule 2. The first echo under a view is sent at once, because the node may be waiting for it to open."""
        state = self._state
        first = peer.supported_ballot != heartbeat.ballot
        state.promises.give(now_ns, peer.id, heartbeat.boot, heartbeat.ballot)
        peer.supported_seq, peer.supported_ballot = heartbeat.seq, heartbeat.ballot
        if first and state.clear and peer.id in state.view.members:
            beat(state, now_ns, peer.id)

    def _bring_up(self, now_ns: int, peer: Peer) -> None:
        """Give a peer the view or the START that it missed, if we know that this view is the living one."""
        state = self._state
        living = state.opened or state.leads(now_ns)
        pause_ns = state.heartbeat_ns // 2
        if living and not state.alone and now_ns - peer.resent_ns >= pause_ns:
            self._help(peer, now_ns, started=True)

    def _help(self, peer: Peer, now_ns: int, *, started: bool) -> None:
        state = self._state
        peer.resent_ns = now_ns
        if peer.ballot != state.view.ballot:
            state.out.append(Send(peer.id, Propose(state.view, started, state.answered)))
        if state.start is not None:
            state.out.append(Send(peer.id, state.start))

    def _on_prevote(self, now_ns: int, sender: NodeId, message: PreVote) -> None:
        """Rule 4, a voter's part: agree to ballots above all that was seen, and refuse lower ones from then on."""
        state = self._state
        state.know(message.ballot)
        if not state.voting or state.alone_blocks(now_ns):
            return
        granted = message.ballot > state.view.ballot and message.ballot >= state.reserved
        if granted:
            state.reserved = message.ballot
        self._reply(now_ns, sender, message, granted)

    def _reply(self, now_ns: int, to: NodeId, message: PreVote, granted: bool) -> None:
        state = self._state
        # A view that one node made alone binds nobody: the proposer shall not fetch it and close everything for it.
        adopted = NO_BALLOT if state.alone else state.view.ballot
        highest = max(state.reserved, state.view.ballot)
        remaining = state.promises.remaining(now_ns)
        state.out.append(Send(to, PreVoteReply(message.ballot, granted, adopted, highest, remaining)))

    def _on_propose(self, now_ns: int, sender: NodeId, proposal: Propose) -> None:
        state = self._state
        ballot = proposal.view.ballot
        state.know(ballot)
        if len(proposal.view.owners) != len(state.shares):
            return
        if ballot == state.view.ballot:
            if sender == ballot.proposer and not proposal.started:
                promise(state, sender)
        elif ballot > state.view.ballot and (proposal.started or self._election.accepts(ballot)):
            adopt(state, now_ns, proposal)
        elif state.voting and not proposal.started:
            self._reply(now_ns, sender, PreVote(ballot), False)
        self._election.step(now_ns)

    def _on_goodbye(self, now_ns: int, peer: Peer, message: Goodbye) -> None:
        """That incarnation has closed everything: no promise to it is needed, and nobody has to wait for it."""
        state = self._state
        state.promises.forget(peer.id, message.boot)
        if peer.boot in (message.boot, None):
            peer.gone_boot = message.boot
        check_clear(state, now_ns)
        check_settled(state, now_ns)
        self._election.step(now_ns)

    # ---- time ----

    def _beat(self, now_ns: int) -> None:
        state = self._state
        heartbeat_ns = state.heartbeat_ns
        self._next_beat_ns += heartbeat_ns
        if self._next_beat_ns <= now_ns:
            self._next_beat_ns = now_ns + heartbeat_ns
        check_settled(state, now_ns)
        alone.extend(state, now_ns)
        beat(state, now_ns)
        self._register.note(state, now_ns)

    def _leave(self, now_ns: int) -> bool:
        """Rule 9: once the farm goes on without us (or will not say so in time), close, say goodbye, halt (True)."""
        state = self._state
        if not state.leaving:
            return False
        out = state.started and not state.serves
        if self._halt_ns == FAR_NS and (out or not self._asker.is_leaving()):
            # Stay a heartbeat longer as a voter, so that the others' new view gets its first echoes.
            self._halt_ns = now_ns + (state.heartbeat_ns if out else 0)
        if now_ns >= self._halt_ns:
            close(state, now_ns)
            state.halted = True
            state.out += [Send(None, Goodbye(state.boot)), Halt()]
        return state.halted

    def _done(self) -> list[Command]:
        out, self._state.out = self._state.out, []
        return out
