# SPDX-License-Identifier: Apache-2.0
"""Two nodes, an arbiter and a network. One call of `step` lets one small thing happen, drawn at random."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from farmd.mirror.acks import Gate, Mode
from farmd.mirror.arbiter import Register, decide
from farmd.mirror.commands import (
    Cas,
    Checkpoint,
    ClearJournal,
    Command,
    CompareAll,
    Connect,
    Disconnect,
    Flush,
    Halt,
    Inherit,
    OrderDone,
    OrderRefused,
    Persist,
    ReadRegister,
    Recover,
    Say,
    SendCover,
    SetGate,
    StartAccepting,
    StartReceiving,
    StartResync,
    StopAccepting,
    StopReceiving,
    Tell,
)
from farmd.mirror.core import Node
from farmd.mirror.events import (
    ClaimAnswered,
    Event,
    Flushed,
    Ordered,
    PeerConnected,
    PeerLost,
    PeerSaid,
    Recovered,
    RegisterRead,
)
from farmd.mirror.orders import Order
from farmd.mirror.state import Settings
from farmd.mirror.tracking import Tracker
from farmd.mirror.zones import Cover
from farmd.model.nodes import NodeId
from tests.sim.mirror.disk import MIRROR, Disk, JournalFile, RecordFile
from tests.sim.mirror.engine import LIMITS, Engine, Frame, Op
from tests.sim.mirror.ledger import Ledger, Violation

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class FlushEnd:
    """The moment in which a Flush is through."""

    number: int


@dataclass(slots=True, eq=False)
class Session:
    """One connection: a queue for each direction, and whether what is sent there still arrives."""

    number: int
    queues: dict[NodeId, deque[Frame]]
    arrives: dict[NodeId, bool]


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
    answers: list[OrderDone | OrderRefused] = field(default_factory=list)

    def tell(self, event: Event) -> None:
        self.inbox.append(event)


class World:
    """The whole of a history. `now_ns` moves on with every step."""

    def __init__(self, seed: int, mode: Mode, *, real_files: bool, sync_share: float) -> None:
        self.random = rng = random.Random(f"mirror {seed}")
        self.mode, self.sync_share = mode, sync_share
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
        self.counts: dict[str, int] = dict.fromkeys(
            ("acknowledged", "alone", "promotions", "resyncs", "compared", "refused", "crashes"), 0
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
        host.connects = False
        host.commands.clear()
        host.inbox.clear()

    # ---- network ----

    def connect(self) -> None:
        one, two = self.hosts.values()
        both_free = one.engine and two.engine and one.engine.session is None and two.engine.session is None
        if both_free and not self.cut and one.connects and two.connects:
            self.sessions += 1
            names = (one.me, two.me)
            self.session = Session(self.sessions, {name: deque() for name in names}, dict.fromkeys(names, True))
            for host in (one, two):
                assert host.engine is not None
                host.engine.connected(self.sessions)
                host.tell(PeerConnected(self.sessions))

    def transmit(self, host: Host, number: int, frame: Frame) -> None:
        to, session = self.other(host).me, self.session
        if session is not None and session.number == number and session.arrives[to]:
            session.queues[to].append(frame)

    def break_off(self, to: NodeId) -> None:
        """What is under way to this node is lost from some frame on."""
        if self.session is not None:
            self.session.arrives[to] = False
            queue = self.session.queues[to]
            while queue and self.random.random() < 0.5:
                queue.pop()

    def notice(self, host: Host) -> None:
        """This node gives the connection up, rightly or not."""
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
        stale = engine.session != session.number or not all(session.arrives.values())
        if stale and self.random.random() < 0.2:
            self.notice(host)

    def _hang_up(self, host: Host) -> None:
        if self.session is not None and host.engine is not None and host.engine.session == self.session.number:
            self.session.queues[host.me].clear()
            self.session.arrives[host.me] = False
            self.break_off(self.other(host).me)

    def deliver(self, host: Host) -> bool:
        engine, session = host.engine, self.session
        if engine is None or session is None or engine.session != session.number or not session.queues[host.me]:
            return False
        frame = session.queues[host.me].popleft()
        if frame.message is not None:
            host.tell(PeerSaid(session.number, frame.message))
        else:
            engine.receive(frame)
        return True

    # ---- arbiter ----

    def arbitrate(self) -> None:
        if self.requests:
            host, boot, request = self.requests.popleft()
            if isinstance(request, Cas):
                answer = decide(self.register, request.claim, host.me)
                self.register = answer.register
                event: Event = ClaimAnswered(request.claim, answer)
            else:
                event = RegisterRead(self.register)
            if host.arbiter and self.random.random() < 0.9:
                self.replies.append((host, boot, event))
        if self.replies:
            host, boot, event = self.replies.popleft()
            if host.boot == boot and host.core is not None:
                host.tell(event)

    # ---- a node's shell ----

    def think(self, host: Host) -> bool:
        """The core handles one event."""
        core = host.core
        if core is None:
            return False
        if host.inbox:
            host.commands.extend(core.handle(self.now_ns, host.inbox.popleft()))
            return True
        if self.now_ns >= core.next_wakeup_ns():
            host.commands.extend(core.tick(self.now_ns))
            return True
        return False

    def act(self, host: Host) -> bool:
        """The shell executes one command."""
        if not host.commands:
            return False
        command = host.commands.popleft()
        engine = host.engine
        assert engine is not None
        match command:
            case Persist():
                host.record.write(command.record)
            case Cas() | ReadRegister():
                if host.arbiter:
                    self.requests.append((host, host.boot, command))
            case Say():
                if engine.session == command.session:
                    engine.send(Frame("message", engine.next_seq(), message=command.message))
            case Connect():
                host.connects = True
            case Disconnect():
                if engine.session == command.session:
                    self.notice(host)
            case SetGate():
                engine.set_gate(command.gate)
            case StopAccepting():
                engine.stop(drain=command.drain)
            case StartAccepting():
                self._promoted(host)
            case OrderDone() | OrderRefused():
                host.answers.append(command)
                self.counts["refused"] += isinstance(command, OrderRefused)
            case Tell():
                pass
            case Halt():
                self.switch_off(host)
            case _:
                self._engine_command(host, engine, command)
        return True

    def _engine_command(self, host: Host, engine: Engine, command: Command | FlushEnd) -> None:
        match command:
            case Recover():
                self._recover(host, engine)
            case StartReceiving():
                engine.receiving = engine.session == command.session
            case StopReceiving():
                engine.receiving = False
            case Inherit():
                engine.tracker.suspect(engine.unflushed.lines())
                engine.pump_journal()
            case SendCover():
                if engine.session == command.session:
                    engine.send(Frame("cover", engine.next_seq(), lines=engine.tracker.cover().lines()))
            case CompareAll():
                engine.tracker.compare_all()
                engine.pump_journal()
                self.counts["compared"] += 1
            case StartResync():
                if engine.session == command.session:
                    engine.forwarding, engine.reported = True, False
                    self.counts["resyncs"] += 1
            case Checkpoint():
                if engine.session == command.session:
                    engine.closing_checkpoint = True
                    engine.flush_both()
            case Flush():
                # It ends later: whatever the core orders meanwhile is done before.
                host.commands.append(FlushEnd(command.number))
            case FlushEnd():
                host.disk.sync()
                host.tell(Flushed(command.number))
            case ClearJournal():
                engine.tracker = Tracker(LIMITS)
                engine.batches.clear()
                host.journal.begin(Cover())
            case _:
                raise AssertionError(f"no such command: {command}")

    def _recover(self, host: Host, engine: Engine) -> None:
        host.disk.sync()
        cover = host.journal.read()
        engine.tracker = Tracker(LIMITS, cover)
        host.journal.begin(cover or Cover())
        host.tell(Recovered(log_usable=cover is not None))

    def _promoted(self, host: Host) -> None:
        engine = host.engine
        assert engine is not None
        engine.accepting, engine.draining = True, False
        self.counts["promotions"] += 1
        strict = self.mode is Mode.STRICT
        self.ledger.check_promotion(f"node {host.me}", host.disk, strict=strict)

    def order(self, host: Host, order: Order) -> None:
        if host.core is not None:
            host.answers.clear()
            host.tell(Ordered(order))

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

    def serving(self) -> bool:
        """Some node could acknowledge an operation now."""
        return any(
            host.engine is not None
            and host.engine.accepting
            and (host.engine.gate is Gate.ALONE or (host.engine.gate is Gate.PEER and host.engine.forwarding))
            for host in self.hosts.values()
        )
