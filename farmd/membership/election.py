# SPDX-License-Identifier: Apache-2.0
"""Rule 4: when the view should change, who changes it, and how: ask, propose, start.

One voter at a time leads: the lowest that hears a majority both ways. The others wait two leases for each leader before
them, so that a leader which cannot do its work is replaced. Asking (pre-vote) disturbs nobody; it collects how long
each voter still stands by the silent node, so that the proposal goes out just before the last of them is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from farmd.membership.asking import Inbox, Wishes
from farmd.membership.commands import Send
from farmd.membership.messages import Fetch, PreVote, PreVoteReply, Promise, Propose, Start
from farmd.membership.serving import adopt, begin
from farmd.membership.settings import FAR_NS, NEVER_NS
from farmd.membership.state import State
from farmd.membership.wanted import Poll, Wanted, ahead, next_suspicion_ns, wanted
from farmd.model.nodes import NodeId
from farmd.model.routes import holders
from farmd.model.view import NO_BALLOT, Ballot, successor


class Stage(Enum):
    """How far a change has got."""

    IDLE = 0
    ASKING = 1
    PROPOSING = 2


class Election:
    """The proposer's part of one node. `wake_ns` is when `step` wants to be called next."""

    def __init__(self, state: State, inbox: Inbox) -> None:
        self._state = state
        self._inbox = inbox
        self.stage = Stage.IDLE
        self.wake_ns = FAR_NS
        self._needed_ns = NEVER_NS
        self._pause_until_ns = NEVER_NS
        self._failures = 0
        self._ballot = NO_BALLOT
        self._outbid = NO_BALLOT
        """The highest ballot that a voter refused us for."""
        self._begun_ns = 0
        self._resend_ns = 0
        self._poll = Poll()
        self._promised: dict[NodeId, Promise] = {}

    # ---- driving ----

    def step(self, now_ns: int) -> None:
        """Do what can be done now."""
        state = self._state
        self.wake_ns = FAR_NS
        if not state.leads(now_ns) or state.halted:
            self.stage, self._needed_ns = Stage.IDLE, NEVER_NS
            return
        if self.stage is Stage.PROPOSING:
            self._drive(now_ns)
            if self.stage is Stage.PROPOSING:
                return
        if state.waits_outside(now_ns):
            self.stage, self._needed_ns = Stage.IDLE, NEVER_NS
            return
        wishes = self._inbox.wishes(state, now_ns)
        if not self._needed(now_ns, wishes):
            self.stage, self._needed_ns = Stage.IDLE, NEVER_NS
            self.wake_ns = next_suspicion_ns(state, now_ns)
            return
        if self._needed_ns == NEVER_NS:
            self._needed_ns = now_ns
        turn_ns = self._needed_ns + 2 * state.settings.timing.lease_ns * self._rank(now_ns)
        start_ns = max(turn_ns, self._pause_until_ns)
        if now_ns < start_ns:
            self.wake_ns = start_ns
            return
        if self.stage is Stage.IDLE:
            self._ask(now_ns)
        self._count(now_ns, wishes)

    def _needed(self, now_ns: int, wishes: Wishes) -> bool:
        """Something about the adopted view should change, as far as can be told without asking."""
        state = self._state
        if not state.started or ahead(state, now_ns):
            return self._stuck(now_ns)
        if next_suspicion_ns(state, now_ns) <= now_ns:
            return True
        return wanted(state, now_ns, wishes, None).changes(state)

    def _stuck(self, now_ns: int) -> bool:
        """The newest view does not start: give its proposer a while, if it is there."""
        state = self._state
        heartbeat_ns = state.heartbeat_ns
        proposer = state.view.ballot.proposer
        there = proposer != state.me and proposer in state.peers and state.alive(now_ns, proposer)
        if state.view.ballot == NO_BALLOT:
            return wanted(state, now_ns, self._inbox.wishes(state, now_ns), None).changes(state)
        return now_ns - state.adopted_ns >= (3 * heartbeat_ns if there else heartbeat_ns)

    def _rank(self, now_ns: int) -> int:
        """How many voters before us may lead."""
        state = self._state
        lower = (node for node in state.settings.voters if node < state.me)
        silent_ns = state.promise_ns - state.heartbeat_ns // 2
        return sum(
            1
            for node in lower
            if state.peers[node].leads
            and not state.peers[node].left
            and now_ns - state.peers[node].mutual_ns < silent_ns
        )

    # ---- asking ----

    def _ask(self, now_ns: int) -> None:
        state = self._state
        self.stage = Stage.ASKING
        if not self._is_good():
            self._ballot = self._new_ballot()
        state.know(self._ballot)
        state.reserved = self._ballot
        self._begun_ns = now_ns
        self._poll = Poll()
        self._resend_ns = now_ns

    def _is_good(self) -> bool:
        """Our ballot may be asked for again. One that a voter has refused will be refused for ever (seed 1766)."""
        state, ballot = self._state, self._ballot
        return ballot == state.reserved > max(state.view.ballot, self._outbid) and ballot.counter >= state.top_counter

    def _new_ballot(self) -> Ballot:
        """Above every ballot seen, and unlike any other: the boot id tells our incarnations apart."""
        state = self._state
        return Ballot(max(state.top_counter, state.reserved.counter) + 1, state.me, state.boot)

    def on_reply(self, now_ns: int, sender: NodeId, reply: PreVoteReply) -> None:
        """A voter answered our question, or refused our proposal."""
        state = self._state
        state.know(reply.highest)
        if reply.ballot != self._ballot or sender not in state.settings.voters:
            return
        if not reply.granted:
            self._outbid = max(self._outbid, reply.highest)
            if self.stage is not Stage.IDLE:
                self._pause(now_ns)
        elif self.stage is Stage.ASKING:
            self._poll.add(now_ns, sender, reply)
        self.step(now_ns)

    def _count(self, now_ns: int, wishes: Wishes) -> None:
        """Enough answers? Then propose, or wait until the last promise to a silent node is nearly over."""
        state, settings = self._state, self._state.settings
        others = settings.voters - {state.me}
        missing = [node for node in others if node not in self._poll.replies and not state.peers[node].left]
        waited = now_ns - self._begun_ns
        absent_count = sum(not state.alive(now_ns, node) for node in missing)
        granted = len(self._poll.replies) + 1
        agreeing = 1 + sum(reply.adopted <= state.view.ballot for reply in self._poll.replies.values())
        complete = len(missing) == absent_count or waited >= settings.lead_ns
        self.wake_ns = self._resend_ns = self._repeat(now_ns, missing)
        if granted >= settings.majority and complete:
            if agreeing >= settings.majority:
                self._decide(now_ns, wishes)
                return
            self._fetch()
        if waited >= settings.timing.heartbeat_ns * 2:
            self._pause(now_ns)

    def _repeat(self, now_ns: int, missing: list[NodeId]) -> int:
        """Ask those who have not answered, again and again; the time of the next repetition."""
        if now_ns < self._resend_ns:
            return self._resend_ns
        for node in missing:
            self._state.out.append(Send(node, PreVote(self._ballot)))
        return now_ns + self._state.settings.retry_ns

    def _fetch(self) -> None:
        """A majority knows a newer view than we do: what it says must not be lost, so build on it."""
        newest = max(self._poll.replies, key=lambda node: self._poll.replies[node].adopted)
        self._state.out.append(Send(newest, Fetch()))

    def _decide(self, now_ns: int, wishes: Wishes) -> None:
        state = self._state
        plan = wanted(state, now_ns, wishes, self._poll)
        if plan.not_before_ns > now_ns:
            self.wake_ns = min(self.wake_ns, plan.not_before_ns)
            if now_ns - self._begun_ns >= state.heartbeat_ns * 2:
                self.stage = Stage.IDLE
        elif plan.changes(state) or not state.started or ahead(state, now_ns):
            self._propose(now_ns, plan, wishes)
        else:
            # A silent node that a majority still hears: ask again, but not at once.
            self.stage = Stage.IDLE
            self._pause_until_ns = self.wake_ns = now_ns + state.heartbeat_ns // 2

    def _pause(self, now_ns: int) -> None:
        """Somebody else is at it, or nobody listens: come back later, each voter after a different time."""
        state = self._state
        self.stage = Stage.IDLE
        self._failures = min(self._failures + 1, 3)
        place = sorted(state.settings.voters).index(state.me)
        wait_ns = (1 + place) * state.heartbeat_ns // 2 << (self._failures - 1)
        self._pause_until_ns = self.wake_ns = now_ns + wait_ns

    # ---- proposing ----

    def _propose(self, now_ns: int, plan: Wanted, wishes: Wishes) -> None:
        state = self._state
        view = successor(state.view, self._ballot, plan.members, drained=wishes.drained, weights=wishes.weights)
        self.stage = Stage.PROPOSING
        self._begun_ns = self._resend_ns = now_ns
        self._promised = {}
        adopt(state, now_ns, Propose(view, False, wishes.answered))
        self._drive(now_ns)

    def accepts(self, ballot: Ballot) -> bool:
        """Whether this voter may adopt a view that has not started: nothing below the highest ballot it agreed to.

        Except below a ballot of our own that we have not proposed yet: then we shall build on the lower view.
        """
        own = self.stage is not Stage.PROPOSING and self._state.reserved == self._ballot
        return own or ballot >= self._state.reserved

    def on_promise(self, now_ns: int, sender: NodeId, promise: Promise) -> None:
        """A node adopted our proposal."""
        if self.stage is Stage.PROPOSING and promise.ballot == self._ballot:
            self._promised[sender] = promise
            self.step(now_ns)

    def _drive(self, now_ns: int) -> None:
        """Start the view if those we can hear have answered; else ask them again; else give up."""
        state, settings = self._state, self._state.settings
        if state.view.ballot != self._ballot or state.started:
            self.stage = Stage.IDLE
            return
        missing = [node for node in state.peers if node not in self._promised]
        expected = [node for node in missing if state.alive(now_ns, node) and not state.peers[node].left]
        voting = 1 + sum(node in settings.voters and self._promised[node].voting for node in self._promised)
        waited = now_ns - self._begun_ns
        if voting >= settings.majority and (not expected or waited >= settings.timing.heartbeat_ns // 2):
            self._start(now_ns)
        elif waited >= settings.timing.lease_ns:
            self._pause(now_ns)
        else:
            if now_ns >= self._resend_ns:
                self._send_proposal(now_ns, missing, expected)
            self.wake_ns = self._resend_ns

    def _send_proposal(self, now_ns: int, missing: list[NodeId], expected: list[NodeId]) -> None:
        """First to everybody; then, often, to those who should have answered."""
        state = self._state
        first = self._resend_ns == self._begun_ns
        for node in missing if first else expected:
            state.out.append(Send(node, Propose(state.view, False, state.answered)))
        self._resend_ns = now_ns + state.settings.retry_ns

    def _start(self, now_ns: int) -> None:
        """Rule 6: tell everybody, with the buckets of which a live node other than the owner has connections."""
        state = self._state
        contested = [0] * len(state.planes)
        claims = {node: promise.claims for node, promise in self._promised.items()}
        claims[state.me] = tuple(planes.claims for planes in state.planes)
        for node, claimed in claims.items():
            if len(claimed) == len(contested):
                for group, plane in enumerate(claimed):
                    contested[group] |= plane & ~state.view.share(group, node, state.plane_of)
        self.stage = Stage.IDLE
        self._failures = 0
        self._needed_ns = NEVER_NS
        start = Start(state.view.ballot, tuple(contested), self._holders(claims))
        state.out.append(Send(None, start))
        begin(state, now_ns, start)

    def _holders(self, claims: Mapping[NodeId, tuple[int, ...]]) -> tuple[tuple[bytes, ...], ...]:
        """Who claims which bucket beside its owner; nobody asks in a farm that is not directed."""
        state = self._state
        if not state.settings.directed:
            return ()
        return tuple(
            holders(owners, {node: planes[group] for node, planes in claims.items() if len(planes) > group})
            for group, owners in enumerate(state.view.owners)
        )
