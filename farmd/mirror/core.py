# SPDX-License-Identifier: Apache-2.0
"""One node of a mirror: who may serve, who may be trusted, and in which order; without files, sockets or clocks.

**Properties.** What was acknowledged as synced is in every copy that is ever promoted without `--accept`. What was
acknowledged at all is in the promoted copy, if that node did not lose its page cache since (mode `strict`). At most
one node acknowledges without the other. After a resync both copies are equal. Some node can always be started once the
nodes and the arbiter are there.

**Assumptions.** What the shell reports as durable is durable. The arbiter's register is one and only rises. Messages
keep their order, DONE stays behind the data, and none is taken for one of another connection. Nothing is assumed of the
network, of crashes, or of who suspects whom, rightly or not.

**Rules.**

1. *Record.* Each node keeps durably: the generation of its data, whether it is up to date, an open claim, the bases
   against which its journal counts, and its history.
2. *Start.* A node becomes primary if and only if its copy is up to date, the arbiter's register is at its generation,
   and its compare-and-swap to a new generation succeeds.
3. *Alone.* A primary that loses its peer acknowledges nothing before its own compare-and-swap succeeded; its record
   says before the attempt that the peer may be stale. If it fails, the other node took over: step down at once, keep
   the journal.
4. *Inherit.* A node that is promoted first puts the zones that it received and has not flushed into its own journal.
5. *Follow.* A copy may be overwritten only by one whose history contains its generation. The target says durably that
   it is not to be trusted before the first change, and hands over its own journal: it may have been a primary that
   crashed.
6. *Switch, then done.* When nothing is left to send, the primary first stops acknowledging without the peer and then
   says DONE. The target flushes, says durably that it is up to date, forgets its journal, and then answers.
7. *Split brain.* Two copies, each with a generation that the other does not know, touch each other never. Both
   histories are shown; the administrator gives one side up.
8. *Claims* are durable before they are sent and repeated, never replaced, until they are answered.
9. *Bases.* A generation is a base from the moment that the journal covers all differences to a copy that has it: the
   generation that our own continues; or, once all of the tree is marked, the name that a comparison gave its target.

**Why it is safe.** Say node i acknowledges alone in generation g. It got g by a compare-and-swap from g', so the
register is at g or later. The other node, j, is up to date with g' or older, or half-synced: either way it cannot start
(rule 2) until i brings it to g (rule 6), and before that i has stopped acknowledging alone. Conversely, if j started
from g' first, i's compare-and-swap fails (rule 3) and nothing that i held back was acknowledged. `tests/sim/mirror`
checks all this with crashes between any two commands.
"""

from __future__ import annotations

from collections.abc import Callable

from farmd.mirror import claims, operator, source, target
from farmd.mirror.commands import Command, Connect, Disconnect, Halt, News, Recover
from farmd.mirror.events import (
    ClaimAnswered,
    Event,
    Flushed,
    LocalFailure,
    Ordered,
    PeerConnected,
    PeerLost,
    PeerSaid,
    Recovered,
    RegisterRead,
    ResyncDrained,
    Settled,
    Stopped,
    VerifyEnded,
)
from farmd.mirror.meeting import Meeting, meet
from farmd.mirror.messages import Done, Enter, Hello, Message, Ready, Resigned, UpToDate
from farmd.mirror.record import Record
from farmd.mirror.refusals import listed
from farmd.mirror.state import FAR_NS, Link, Phase, Settings, State
from farmd.mirror.status import MirrorStatus, picture


class Node:
    """One node. Every method takes the time and returns what the shell must do, in order."""

    def __init__(self, settings: Settings, record: Record | None, draw_tag: Callable[[], int]) -> None:
        """`record` is what the disk holds; None on a node that was never part of the mirror."""
        record = record or Record(settings.mirror, settings.me)
        if (record.mirror, record.node) != (settings.mirror, settings.me):
            raise ValueError("the record on disk belongs to another mirror or to the other node")
        self._state = State(settings, record, draw_tag)
        self._state.out.append(Recover())

    def handle(self, now_ns: int, event: Event) -> list[Command]:
        """Something has happened."""
        state = self._state
        if state.phase is Phase.STOPPED:
            return self._done()
        match event:
            case Recovered():
                self._on_recovered(now_ns, event.log_usable)
            case Ordered():
                operator.on_order(state, now_ns, event.order)
            case PeerConnected():
                self._on_connected(now_ns, event.session)
            case PeerSaid():
                if event.session == state.session:
                    self._on_message(now_ns, event.message)
            case PeerLost():
                if event.session == state.session:
                    self._on_lost(now_ns)
            case ClaimAnswered():
                claims.on_answer(state, now_ns, event.claim, event.answer)
                self._meet(now_ns)
            case RegisterRead():
                claims.on_register(state, now_ns, event.register)
                self._meet(now_ns)
            case ResyncDrained():
                if event.session == state.session:
                    source.on_drained(state, now_ns)
            case Settled():
                if event.session == state.session:
                    operator.on_settled(state, now_ns)
            case Flushed() if event.number == state.flushes:
                target.on_flushed(state)
                operator.on_flushed(state)
            case Stopped():
                operator.on_stopped(state)
            case VerifyEnded() if event.session == state.session:
                state.tell(News.VERIFIED, _verdict(event.differences), differences=event.differences)
            case LocalFailure():
                self._on_failure(event.cause)
        return self._done()

    def tick(self, now_ns: int) -> list[Command]:
        """Time has passed; call it at or after `next_wakeup_ns`."""
        state = self._state
        if state.phase is Phase.STOPPED:
            return self._done()
        if now_ns >= state.claim_at_ns:
            claims.send(state, now_ns)
        if now_ns >= state.hold_until_ns and state.holding:
            claims.step_down(state, f"neither {state.peer_name} nor the arbiter answered")
        if now_ns >= state.deadline_ns and state.session is not None:
            state.deadline_ns = FAR_NS
            state.out.append(Disconnect(state.session, "the peer owes an answer"))
        return self._done()

    def next_wakeup_ns(self) -> int:
        """When to call `tick` at the latest."""
        state = self._state
        return min(state.claim_at_ns, state.hold_until_ns, state.deadline_ns)

    def status(self) -> MirrorStatus:
        """A frozen picture of this node."""
        return picture(self._state)

    @property
    def phase(self) -> Phase:
        """What the node is, without the price of a whole `status`."""
        return self._state.phase

    @property
    def link(self) -> Link:
        """How far a primary is with its peer."""
        return self._state.link

    @property
    def record(self) -> Record:
        """What is durable once all commands returned so far are executed."""
        return self._state.record

    # ---- events ----

    def _on_recovered(self, now_ns: int, log_usable: bool) -> None:
        state = self._state
        state.phase, state.log_usable = Phase.WAITING, log_usable
        if state.record.claim is not None:
            claims.send(state, now_ns)
        state.out.append(Connect())
        state.tell(News.STARTED, "this node has started", generation=str(state.record.generation))

    def _on_connected(self, now_ns: int, session: int) -> None:
        state = self._state
        if session <= state.last_session:
            return
        if state.session is not None:
            self._on_lost(now_ns)
        state.session = state.last_session = session
        state.theirs = state.said = None
        state.deadline_ns = now_ns + state.settings.answer_ns
        state.greet()

    def _on_lost(self, now_ns: int) -> None:
        state = self._state
        state.session = state.theirs = state.said = None
        state.handed = False
        state.deadline_ns = FAR_NS
        target.on_lost(state)
        if state.phase is Phase.PRIMARY:
            source.on_lost(state, now_ns)
        elif state.phase is Phase.RESIGNING:
            operator.on_lost(state)

    def _on_message(self, now_ns: int, message: Message) -> None:
        state = self._state
        match message:
            case Hello():
                operator.on_hello(state, message)
                state.theirs = message
                if state.link is Link.NONE:
                    # A target that says something new of itself still owes READY, or UPTODATE.
                    state.deadline_ns = FAR_NS
                self._meet(now_ns)
            case Enter():
                claims.drop_dead(state)
                if self._meeting() is Meeting.FOLLOW:
                    target.on_enter(state, message)
            case Ready():
                source.on_ready(state, message)
            case Done():
                target.on_done(state, message)
            case UpToDate():
                source.on_uptodate(state, message)
            case Resigned():
                target.on_resigned(state, now_ns, message)

    def _on_failure(self, cause: str) -> None:
        """A primary that cannot write leaves the work to its peer; a follower stops answering, so it is left behind."""
        state = self._state
        if state.is_primary:
            claims.step_down(state, cause)
        elif state.session is not None:
            state.out.append(Disconnect(state.session, cause))

    # ---- meeting ----

    def _meeting(self) -> Meeting:
        state = self._state
        if state.theirs is None or state.phase is Phase.STARTING:
            return Meeting.WAIT
        return meet(state.hello(), state.theirs, alone=state.gate == "alone")

    def _meet(self, now_ns: int) -> None:
        """Decide anew, after anything that either node says of itself has changed."""
        state = self._state
        claims.drop_dead(state)
        meeting = self._meeting()
        if meeting is Meeting.STEP_DOWN:
            state.persist(claim=None)
            state.claim_at_ns = FAR_NS
            claims.step_down(state, f"{state.peer_name} has taken over")
        elif meeting is Meeting.LEAD and state.phase is Phase.PRIMARY and state.theirs is not None:
            source.lead(state, now_ns, state.theirs)
        elif meeting is Meeting.FOREIGN and state.session is not None:
            state.tell(News.PEER_REFUSED, "the peer is a node of another mirror, or has this node's own number")
            state.out.append(Disconnect(state.session, "foreign mirror"))
        self._note_split(meeting is Meeting.SPLIT)

    def _note_split(self, split: bool) -> None:
        state = self._state
        if split and not state.split and state.theirs is not None:
            mine, theirs = listed(state.record.history), listed(state.theirs.history)
            text = (
                f"split brain: this node has {mine}; {state.peer_name} has {theirs}. Nothing is merged: choose a side"
            )
            state.tell(News.SPLIT_BRAIN, text, mine=mine, theirs=theirs)
        if state.theirs is not None:
            state.split = split

    def _done(self) -> list[Command]:
        """Hand out the commands; whoever listens is told who we are now, behind everything else."""
        state = self._state
        if state.phase not in {Phase.STARTING, Phase.STOPPED}:
            state.greet()
        elif state.phase is Phase.STOPPED and state.out and state.session is not None:
            state.out.append(Disconnect(state.session, "this node stops"))
            state.session = None
        out, state.out = state.out, []
        return [command for command in out if not isinstance(command, Halt)] + [
            command for command in out if isinstance(command, Halt)
        ]


def _verdict(differences: int) -> str:
    return "both copies are equal" if not differences else f"{differences} blocks or names differ"
