# SPDX-License-Identifier: Apache-2.0
"""Readable tests of one node: messages and time go in, commands come out.

play = Playbook()
play.hear(N0, ballot=B1, hears_me=True)
assert play.sent(Promise).voting
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from farmd.membership.commands import Command, Event, Halt, Happened, Send, WriteLease, WritePlanes
from farmd.membership.core import Node
from farmd.membership.messages import Heard, Heartbeat, Message, Propose, Start
from farmd.membership.peers import boot_tag
from farmd.membership.requests import Request
from farmd.membership.settings import Settings
from farmd.model.buckets import NO_OWNERS
from farmd.model.config import Profile, Timing
from farmd.model.nodes import BootId, NodeId, Role
from farmd.model.view import NO_BALLOT, Ballot, View, successor, weights_table

MS = 1_000_000
N0, N1, N2 = NodeId(0), NodeId(1), NodeId(2)
ALL = frozenset({N0, N1, N2})
BOOTS = {N0: BootId(100), N1: BootId(101), N2: BootId(102)}
TIMING = Timing(100 * MS, 500 * MS, hold_down_ns=400 * MS)
RESTART_MS = 561
WEIGHTS = (weights_table({N0: 100, N1: 100, N2: 100}),)
EMPTY = View(NO_BALLOT, frozenset(), frozenset(), WEIGHTS, (NO_OWNERS,))

M = TypeVar("M")


def ballot(counter: int, proposer: NodeId = N0) -> Ballot:
    return Ballot(counter, proposer, BOOTS[proposer])


def view(counter: int, members: frozenset[NodeId] = ALL, previous: View = EMPTY, proposer: NodeId = N0) -> View:
    return successor(previous, ballot(counter, proposer), members)


class Playbook:
    """One node (number 2 of three unless said otherwise) and the commands of the last thing that happened to it."""

    def __init__(self, me: NodeId = N2, profile: Profile = Profile.EXCLUSIVE) -> None:
        self.me = me
        self.now_ns = 1_000_000 * MS
        settings = Settings(me, Role.NODE, ALL, ALL, frozenset(), WEIGHTS, TIMING, profile)
        self.node = Node(settings, BOOTS[me], self.now_ns)
        self.seqs = dict.fromkeys(ALL, 0)
        self.did: list[Command] = []

    def _do(self, commands: list[Command]) -> Playbook:
        self.node.check_invariants()
        self.did = commands
        return self

    # ---- in ----

    def wait(self, milliseconds: float) -> Playbook:
        """Time passes; the node is called when it wants to be. `did` collects everything."""
        end_ns = self.now_ns + int(milliseconds * MS)
        done: list[Command] = []
        while (wake_ns := self.node.next_wakeup_ns()) <= end_ns:
            self.now_ns = max(self.now_ns, wake_ns)
            done += self.node.tick(self.now_ns)
        self.now_ns = end_ns
        return self._do(done)

    def sleep(self, milliseconds: float) -> Playbook:
        """Time passes, and the node is not called."""
        self.now_ns += int(milliseconds * MS)
        return self

    def receive(self, sender: NodeId, message: Message) -> Playbook:
        return self._do(self.node.receive(self.now_ns, sender, message))

    def hear(self, sender: NodeId, under: Ballot = NO_BALLOT, hears_me: bool = True, **facts: object) -> Playbook:
        """A heartbeat; with `echo=SEQ` its sender stands by that heartbeat of ours."""
        self.seqs[sender] += 1
        seq = facts.pop("echo", None)
        mine = Heard(self.me, boot_tag(BOOTS[self.me]), seq if isinstance(seq, int) else 0, seq is not None)
        flags = dict.fromkeys(
            ("started", "clear", "leads", "leased", "holding", "alone", "leaving", "unfit", "counted"), False
        )
        message = Heartbeat(
            BOOTS[sender], self.seqs[sender], under, **flags, established=0, held=0, heard=(mine,) if hears_me else ()
        )
        return self.receive(sender, replace(message, **facts))  # type: ignore[arg-type]

    def request(self, request: Request) -> Playbook:
        return self._do(self.node.request(self.now_ns, request))

    def serving(self, counter: int = 1) -> Playbook:
        """Bring the node into a started view of all three, proposed by node 0 (node 1 if we are 0), with a lease."""
        proposer = N1 if self.me == N0 else N0
        self.wait(RESTART_MS)
        for other in sorted(ALL - {self.me}):
            self.hear(other)
        self.receive(proposer, Propose(view(counter, proposer=proposer), False, ()))
        seq = self.heartbeat().seq
        for other in sorted(ALL - {self.me}):
            self.hear(other, ballot(counter, proposer), echo=seq, clear=True)
        self.receive(proposer, Start(ballot(counter, proposer), (0,)))
        assert self.own() == view(counter).share(0, self.me)
        return self

    def steady(self, milliseconds: int, under: Ballot, *others: NodeId) -> Playbook:
        """Let these others keep their heartbeats and echoes coming, and the lease with them."""
        for _ in range(milliseconds // 100):
            self.wait(100)
            seq = self.heartbeat().seq
            for other in others:
                self.hear(other, under, echo=seq, clear=True, started=True, leased=True)
        return self

    # ---- out ----

    def sent(self, kind: type[M]) -> M:
        """The last message of this kind among the last commands."""
        found = [one.message for one in self.did if isinstance(one, Send) and isinstance(one.message, kind)]
        assert found, f"no {kind.__name__} in {self.did}"
        return found[-1]

    def silent_about(self, kind: type[Message]) -> bool:
        return not any(isinstance(one, Send) and isinstance(one.message, kind) for one in self.did)

    def heartbeat(self) -> Heartbeat:
        return self.sent(Heartbeat)

    def order(self) -> list[str]:
        """The last commands by name, messages by theirs."""
        return [type(one.message if isinstance(one, Send) else one).__name__ for one in self.did]

    def lease(self) -> int | None:
        """The last deadline written by the last commands, in milliseconds from now; 0 if it was closed."""
        written = [one.deadline_ns for one in self.did if isinstance(one, WriteLease)]
        return None if not written else written[-1] and (written[-1] - self.now_ns) // MS

    def events(self) -> list[Event]:
        return [one.event for one in self.did if isinstance(one, Happened)]

    def own(self) -> int:
        return self.node.status(self.now_ns).planes[0].own

    def held(self) -> int:
        return self.node.status(self.now_ns).planes[0].held

    def halted(self) -> bool:
        return any(isinstance(one, Halt) for one in self.did)

    def wrote_planes(self) -> bool:
        return any(isinstance(one, WritePlanes) for one in self.did)
