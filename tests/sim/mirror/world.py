# SPDX-License-Identifier: Apache-2.0
"""Two nodes, an arbiter and a network: everything that can happen, one small thing a call. `storm` draws which."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

from farmd.mirror.acks import Gate, Mode
from farmd.mirror.arbiter import Answer, Register, decide, decide_by_operator, followed
from farmd.mirror.commands import Cas, Command, OrderDone, OrderRefused, Persist, ReadRegister
from farmd.mirror.core import Node
from farmd.mirror.events import ClaimAnswered, Event, Ordered, PeerConnected, PeerLost, PeerSaid, RegisterRead
from farmd.mirror.generation import Relation, relation
from farmd.mirror.messages import Message
from farmd.mirror.orders import Order, Promote
from farmd.mirror.record import Record
from farmd.mirror.state import Phase, Settings
from farmd.model.nodes import NodeId
from tests.sim.mirror.disk import MIRROR, Cell, Disk, JournalFile, RecordFile
from tests.sim.mirror.engine import Engine, Op
from tests.sim.mirror.ledger import Ledger, Violation
from tests.sim.mirror.network import Frame, Session, Wire

MS = 1_000_000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FlushEnd:
    """The moment in which a Flush is through; it covers what its disk showed when it began."""

    number: int
    begun: dict[Cell, int]


@dataclass(slots=True, eq=False)
class Host:
    """One machine. `core` and `engine` are None while it is down."""

    world: World
    me: NodeId
    disk: Disk
    record: RecordFile
    journal: JournalFile
    core: Node | None = None
    engine: Engine | None = None
    commands: deque[Command | FlushEnd] = field(default_factory=deque)
    inbox: deque[Event] = field(default_factory=deque)
    boot: int = 0
    connects: bool = False
    arbiter: bool = True
    """Whether the arbiter can be reached."""
    stalled: bool = False
    """The shell gets no processor; the data path and the network go on."""
    slow: bool = False
    """No flush ends."""
    half_synced: bool = False
    """A resync has begun to overwrite this copy, and its record did not call it whole since."""
    register: Register = field(default_factory=Register)
    """This node's own copy, where the operator is the arbiter."""
    late: deque[tuple[int, Message]] = field(default_factory=deque)
    """Messages of earlier sessions that were not delivered."""
    answers: list[OrderDone | OrderRefused] = field(default_factory=list)

    def tell(self, event: Event) -> None:
        self.inbox.append(event)

    @property
    def phase(self) -> Phase:
        """What the core is; STOPPED while the node is down."""
        return self.core.phase if self.core is not None else Phase.STOPPED

    @property
    def serves(self) -> bool:
        """Applications are in."""
        return self.engine is not None and self.engine.accepting


class World:
    """The whole of a history. `now_ns` moves on with every step."""

    def __init__(self, seed: int, mode: Mode, *, real_files: bool, sync_share: float, operator: bool) -> None:
        self.random = rng = random.Random(f"mirror {seed}")
        self.mode, self.sync_share, self.operator = mode, sync_share, operator
        self.now_ns = 0
        self.ledger = Ledger()
        self.register = Register()
        self.cut = False
        self.stale_copies = False
        self.session: Session | None = None
        self.sessions = 0
        self.requests: deque[tuple[Host, int, Cas | ReadRegister]] = deque()
        self.replies: deque[tuple[Host, int, Event]] = deque()
        seeded = rng.choice((0, 1))
        self.hosts = {
            NodeId(number): Host(
                self,
                NodeId(number),
                Disk(0 if number == 1 else seeded),
                RecordFile(real_files),
                JournalFile(real_files),
            )
            for number in (1, 2)
        }
        self.busy = True
        """Applications begin new operations."""
        self.lazy = False
        """No checkpoint but those that somebody waits for."""
        self.hold_late = False
        """Nothing of earlier sessions arrives until its time has come."""
        self.hold_readings = False
        """What the arbiter says to those who only ask is under way for very long."""
        self.held: list[tuple[Host, int, Event]] = []
        self.rotten = False
        """A block has changed by itself, and no verify has seen it yet."""
        self.last: tuple[Host, Command | FlushEnd] | None = None
        """The command that a shell has just executed, for faults at exactly that moment."""
        self.counts: dict[str, int] = dict.fromkeys(
            ("acknowledged", "alone", "promotions", "resyncs", "compared", "refused", "crashes", "verified", "late"), 0
        )

    # ---- machines ----

    def other(self, host: Host) -> Host:
        return self.hosts[NodeId(3 - host.me)]

    def power_on(self, host: Host) -> None:
        if host.core is None:
            settings = Settings(
                MIRROR, host.me, NodeId(3 - host.me), claim_retry_ns=40 * MS, answer_ns=2000 * MS, hold_ns=4000 * MS
            )
            host.boot += 1
            host.engine = Engine(host)
            host.core = Node(settings, host.record.read(), lambda: self.random.getrandbits(63) + 1)
            host.commands.extend(host.core.tick(self.now_ns))

    def crash(self, host: Host, *, power: bool) -> None:
        """`power`: the page cache is lost as well, not only the processes."""
        engine, rng = host.engine, self.random
        if engine is None:
            return
        self.counts["crashes"] += 1
        for _ in range(rng.randint(0, len(engine.batches))):
            host.journal.append(engine.batches.popleft())
        if engine.batches:
            host.journal.tear(engine.batches[0], rng)
        if host.commands and isinstance(host.commands[0], Persist):
            host.record.tear(host.commands[0].record, rng)
        self.switch_off(host)
        if power:
            host.disk.power_loss(rng)

    def switch_off(self, host: Host) -> None:
        self._hang_up(host)
        host.core = host.engine = None
        host.connects = host.stalled = host.slow = False
        host.commands.clear()
        host.inbox.clear()
        host.late.clear()

    # ---- network ----

    def connect(self) -> None:
        one, two = self.hosts.values()
        both_free = one.engine and two.engine and one.engine.session is None and two.engine.session is None
        if both_free and not self.cut and one.connects and two.connects:
            self.sessions += 1
            self.session = Session(self.sessions, (one.me, two.me))
            for host in (one, two):
                assert host.engine is not None
                host.engine.connected(self.sessions)
                host.tell(PeerConnected(self.sessions))

    def transmit(self, host: Host, number: int, frame: Frame) -> None:
        session = self.session
        if session is not None and session.number == number:
            way = session.ways[self.other(host).me][frame.wire]
            if way.arrives:
                way.queue.append(frame)

    def break_off(self, to: NodeId, wires: tuple[Wire, ...] = tuple(Wire), keep: float = 0.5) -> None:
        """What is under way to this node over these connections is lost from some frame on."""
        if self.session is not None:
            for wire in wires:
                self.session.ways[to][wire].cut(self.random, keep)

    def notice(self, host: Host) -> None:
        """This node gives the session up, rightly or not."""
        engine = host.engine
        if engine is not None and engine.session is not None:
            number = engine.session
            self._hang_up(host)
            engine.lost()
            engine.queue_lines()
            host.tell(PeerLost(number, "lost"))

    def time_out(self, host: Host) -> None:
        """A connection over which nothing comes any more is noticed in the end, by each side for itself."""
        session, engine = self.session, host.engine
        if session is None or engine is None or engine.session is None:
            return
        if (engine.session != session.number or not session.whole) and self.random.random() < 0.2:
            self.notice(host)

    def _hang_up(self, host: Host) -> None:
        session = self.session
        if session is not None and host.engine is not None and host.engine.session == session.number:
            for way in session.ways[host.me]:
                host.late.extend((session.number, each.message) for each in way.queue if each.message is not None)
                way.queue.clear()
                way.arrives = False
            self.break_off(self.other(host).me)

    def deliver(self, host: Host) -> bool:
        """One frame arrives, of either connection, or what was left of an earlier session."""
        engine, session, rng = host.engine, self.session, self.random
        if host.late and not self.hold_late and rng.random() < 0.1:
            number, message = host.late.popleft()
            host.tell(self.late_message(host, number, message))
            self.counts["late"] += 1
            return True
        if engine is None or session is None or engine.session != session.number:
            return False
        control, stream = session.ways[host.me]
        if stream.queue and (not control.queue or rng.random() < 0.5):
            engine.receive(stream.queue.popleft())
            return True
        if not control.queue or control.queue[0].after > engine.received:
            return False
        frame = control.queue.popleft()
        if frame.message is not None:
            host.tell(PeerSaid(session.number, frame.message))
        else:
            engine.receive(frame)
        return True

    def late_message(self, host: Host, number: int, message: Message) -> PeerSaid:
        return PeerSaid(number, message)

    # ---- arbiter ----

    def arbitrate(self) -> None:
        if self.requests:
            host, boot, request = self._any_of(self.requests)
            event: Event
            if isinstance(request, Cas):
                event = ClaimAnswered(request.claim, self._decided(host, request))
            else:
                event = RegisterRead(host.register if self.operator else self.register)
            if self.hold_readings and isinstance(event, RegisterRead):
                self.held.append((host, boot, event))
            elif host.arbiter and self.random.random() < 0.9:
                self.replies.append((host, boot, event))
        if self.replies and self.random.random() < 0.7:
            host, boot, event = self._any_of(self.replies)
            if host.boot == boot and host.core is not None:
                host.tell(event)

    def _any_of(self, waiting: deque[T]) -> T:
        """Each question has a connection of its own, so any may come first."""
        waiting.rotate(int(self.random.random() * len(waiting)))
        return waiting.popleft()

    def _decided(self, host: Host, request: Cas) -> Answer:
        if self.operator:
            answer = decide_by_operator(host.register, request.claim, host.me, ordered=request.ordered)
            host.register = answer.register
        else:
            answer = decide(self.register, request.claim, host.me)
            self.register = answer.register
        return answer

    def persisted(self, host: Host, record: Record) -> None:
        """The record is durable; the operator's register follows the data."""
        before = host.record.content
        if record.uptodate and before is not None and not before.uptodate:
            host.half_synced = False
        host.record.write(record)
        if self.operator and record.uptodate:
            host.register = followed(host.register, record.generation, host.me)

    # ---- people ----

    def order(self, host: Host, order: Order) -> None:
        """The administrator gives an order, knowing what there is to know."""
        if host.core is not None and not (isinstance(order, Promote) and self.unwise(host)):
            host.answers.clear()
            host.tell(Ordered(order))

    def unwise(self, host: Host) -> bool:
        """Without a witness a promotion is the administrator's word that the other node neither serves nor is ahead."""
        other = self.other(host)
        if not self.operator or host.record.content is None or other.record.content is None:
            return False
        mine, theirs = host.record.content, other.record.content
        stands = relation(mine.generation, mine.history, theirs.generation, theirs.history)
        ordered = any(isinstance(event, Ordered) for event in other.inbox)
        idle = other.phase in {Phase.STOPPED, Phase.STARTING, Phase.WAITING, Phase.SECONDARY, Phase.TARGET}
        return ordered or not idle or (theirs.uptodate and stands in {Relation.BEHIND, Relation.DIVERGED})

    # ---- applications ----

    def flush_peer(self, disk: Disk) -> None:
        disk.sync()

    def acknowledged(self, host: Host, op: Op) -> None:
        """An operation returns to the application."""
        engine, other = host.engine, self.other(host).engine
        assert engine is not None
        self.counts["acknowledged"] += 1
        if engine.gate is Gate.ALONE:
            self.counts["alone"] += 1
            if other is not None and other.accepting and other.gate is Gate.ALONE:
                raise Violation("both nodes acknowledge alone")
        for cell, version in op.versions.items():
            if op.sync:
                if version:
                    self.ledger.synced[cell] = max(version, self.ledger.synced.get(cell, 0))
            else:
                self.ledger.wrote(cell, version)

    def verifying(self) -> bool:
        """Some comparison is under way."""
        return any(host.engine is not None and host.engine.verifying is not None for host in self.hosts.values())

    def verified(self, differences: int) -> None:
        """A verify has ended: what is in sync is equal, unless a disk forgot."""
        self.counts["verified"] += 1
        if bool(differences) != self.rotten:
            raise Violation(f"a verify found {differences} differences" + (" in a rotten copy" if self.rotten else ""))
        self.rotten = False

    def serving(self) -> bool:
        """Some node could acknowledge an operation now."""
        return any(
            host.engine is not None
            and host.serves
            and (host.engine.gate is Gate.ALONE or (host.engine.gate is Gate.PEER and host.engine.forwarding))
            for host in self.hosts.values()
        )
