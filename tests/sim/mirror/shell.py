# SPDX-License-Identifier: Apache-2.0
"""A node's shell in the model: events to the core one by one, its commands carried out in their order, one a step.

It is stricter with the core than a real shell: an event may be handled while commands of earlier ones still wait.
"""

from __future__ import annotations

from farmd.mirror.acks import Mode
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
    Verify,
)
from farmd.mirror.events import Flushed, Recovered
from farmd.mirror.tracking import Tracker
from farmd.mirror.zones import Cover
from tests.sim.mirror.engine import LIMITS, Engine
from tests.sim.mirror.ledger import Violation
from tests.sim.mirror.network import Frame
from tests.sim.mirror.world import FlushEnd, Host


def think(host: Host) -> bool:
    """The core handles one event."""
    core = host.core
    if core is None or host.stalled:
        return False
    if host.inbox:
        host.commands.extend(core.handle(host.world.now_ns, host.inbox.popleft()))
        return True
    if host.world.now_ns >= core.next_wakeup_ns():
        host.commands.extend(core.tick(host.world.now_ns))
        return True
    return False


def act(host: Host) -> bool:
    """The shell executes one command."""
    if not host.commands or host.stalled:
        return False
    command = host.commands.popleft()
    _execute(host, command)
    host.world.last = (host, command)
    return True


def _execute(host: Host, command: Command | FlushEnd) -> None:
    engine = host.engine
    assert engine is not None
    match command:
        case Persist():
            host.world.persisted(host, command.record)
        case Cas() | ReadRegister():
            if host.arbiter:
                host.world.requests.append((host, host.boot, command))
        case Say():
            if engine.session == command.session:
                engine.say(command.message)
        case Connect():
            host.connects = True
        case Disconnect():
            if engine.session == command.session:
                host.world.notice(host)
        case SetGate():
            engine.set_gate(command.gate)
        case StopAccepting():
            engine.stop(drain=command.drain)
        case StartAccepting():
            _promoted(host)
        case OrderDone() | OrderRefused():
            host.answers.append(command)
            host.world.counts["refused"] += isinstance(command, OrderRefused)
        case Tell():
            pass
        case Halt():
            host.world.switch_off(host)
        case _:
            _engine_command(host, engine, command)


def _engine_command(host: Host, engine: Engine, command: Command | FlushEnd) -> None:
    match command:
        case Recover():
            _recover(host, engine)
        case StartReceiving():
            engine.receiving = engine.session == command.session
        case StopReceiving():
            engine.receiving = False
        case Inherit():
            engine.tracker.suspect(engine.unflushed.lines())
            engine.pump_journal()
        case SendCover():
            if engine.session == command.session:
                engine.send(Frame("cover", lines=engine.tracker.cover().lines()))
        case CompareAll():
            engine.tracker.compare_all()
            engine.pump_journal()
            host.world.counts["compared"] += 1
        case StartResync():
            if engine.session == command.session:
                engine.forwarding, engine.reported = True, False
                host.world.counts["resyncs"] += 1
        case Checkpoint():
            if engine.session == command.session:
                engine.closing_checkpoint = True
                engine.flush_both()
        case Verify():
            if engine.session == command.session:
                engine.verify(repair=command.repair)
        case Flush():
            # It ends later: whatever the core orders meanwhile is done before.
            host.commands.append(FlushEnd(command.number, host.disk.begin_sync()))
        case FlushEnd() if host.slow:
            host.commands.append(command)
        case FlushEnd():
            host.disk.end_sync(command.begun)
            host.tell(Flushed(command.number))
        case ClearJournal():
            engine.tracker = Tracker(LIMITS)
            engine.batches.clear()
            host.journal.begin(Cover())
        case _:
            raise AssertionError(f"no such command: {command}")


def _recover(host: Host, engine: Engine) -> None:
    host.disk.sync()
    cover = host.journal.read()
    engine.tracker = Tracker(LIMITS, cover)
    host.journal.begin(cover or Cover())
    host.tell(Recovered(log_usable=cover is not None))


def _promoted(host: Host) -> None:
    engine = host.engine
    assert engine is not None
    engine.accepting, engine.draining = True, False
    host.world.counts["promotions"] += 1
    if host.half_synced:
        raise Violation(f"node {host.me} serves a half-synced copy")
    strict = host.world.mode is Mode.STRICT
    host.world.ledger.check_promotion(f"node {host.me}", host.disk, strict=strict)
