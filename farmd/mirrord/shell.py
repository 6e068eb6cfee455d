# SPDX-License-Identifier: Apache-2.0
"""One node of a mirror, running: events go to the core one by one, and its commands are carried out in their order.

The loop in `Shell.run` is the only place that talks to the core. Whatever takes long (a resync, a claim, a checkpoint)
is a task that puts an event into the queue when it ends.

One command has nothing to do here: `SendCover`. The target's log travels at the head of the failback itself, by paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import deque
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from farmd.mirror import commands as do
from farmd.mirror import events as on
from farmd.mirror.acks import Gate
from farmd.mirror.core import Node
from farmd.mirror.durable import sync_file_system, sync_folder
from farmd.mirror.generation import BLANK
from farmd.mirror.messages import Hello, decode, encode
from farmd.mirror.orders import Order
from farmd.mirror.state import Settings
from farmd.mirrord import arbiters, disk, identity, mounts
from farmd.mirrord.comparing import Comparing
from farmd.mirrord.enginelink import Engine
from farmd.mirrord.following import Following
from farmd.mirrord.image import Image
from farmd.mirrord.keys import Keys
from farmd.mirrord.logbook import Logbook
from farmd.mirrord.resync import Resync
from farmd.mirrord.serving import Serving
from farmd.mirrord.throttle import Throttle
from farmd.mirrord.took import Took
from farmd.mirrord.wire import Control, Message, Peer
from farmd.model.errors import FarmError, KernelError, TimedOut
from farmd.model.mirrorfile import MirrorConfig
from farmd.model.nodes import NodeId

_S = 1_000_000_000
_RETRY_S = 1.0
_log = logging.getLogger(__name__)


class Shell:
    """All parts of one node and the loop that joins them."""

    def __init__(self, config: MirrorConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.keys = Keys(Path(config.keys)).check(config.node) if config.keys else None
        self.happened: deque[dict[str, Any]] = deque(maxlen=200)
        self.trouble, self.took = "", Took()
        self.peer_hello: Hello | None = None
        self.control: Control | None = None
        self.session = 0
        self._queue: asyncio.Queue[on.Event] = asyncio.Queue()
        self._orders: list[tuple[Order, asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._sessions: set[asyncio.Task[None]] = set()
        self._halted = False
        self._mount_error: FarmError | None = None

    async def run(self) -> None:
        """Until the node is stopped by an order. Raises FarmError when it cannot start."""
        self._open()
        self.peer.listen()
        self._task(self.throttle.run())
        self._spare = asyncio.create_task(Engine.start(self.root, self._lock, self._records))
        try:
            while not self._halted:
                await self._step()
        finally:
            self.peer.close()
            await self.serving.unmount()
            await self.following.stop()
            for task in self._tasks | self._sessions:
                task.cancel()
            await (await self._spare).end()
            self._record.close()

    async def order(self, order: Order, timeout_s: float) -> None:
        """Carry it out. Raises what the core refuses it with, or TimedOut: then it may still be carried out."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._orders.append((order, done))
        self._queue.put_nowait(on.Ordered(order))
        self.took.begin(order)
        name = type(order).__name__.lower()
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError as error:
            cause = f"it is not done after {timeout_s:g} s"
            if self.trouble:
                cause += f" ({self.trouble})"
            raise TimedOut(name, cause, "See `farmctl mirror status`") from error

    # ---- starting ----

    def _open(self) -> None:
        config = self.config
        self.mirror, me = bytes.fromhex(config.mirror), NodeId(config.node)
        self._lock = disk.lock(self.folder / "lock")
        image = Image(Path(config.directory), self.folder) if config.image_bytes else None
        if image is not None:
            image.drop()
        mounts.clear(config, self.folder)
        self.root = mounts.open_root(config, self.folder)
        self._records = disk.records(self.folder)
        self._record = disk.RecordFile(self.folder / "record")
        is_part = self._record.record is not None and self._record.record.generation != BLANK
        with mounts.opened(config, self.root) as directories:
            identity.check(self.folder, directories, is_part=is_part)
        self.arbiter = arbiters.make(config, self.folder, self.keys)
        self.peer = Peer(config, self.keys, self._on_control, lambda *args: self.following.on_socket(*args))
        self.logbook = Logbook(self.folder, self.mirror, tuple(config.exclude))
        post, start = self._queue.put_nowait, self._for_session
        hands = (self._take_engine, post, self._lose)
        self.serving = Serving(config, self.folder, self.keys, self.root, *hands, self.logbook, image)
        receiving = (self._take_engine, self._say, self._lose, self.logbook)
        self.following = Following(config, self.keys, self._records, self.root, *receiving)
        self.resync = Resync(
            config, self.keys, self.folder / disk.RECORDS, self.root, self.peer, self._say, self.serving.pace
        )
        self.throttle = Throttle(config, self.serving.stats, self.resync)
        self.comparing = Comparing(self.resync, self.serving, post, start, self.order, self._epoch)
        settings = Settings(
            self.mirror,
            me,
            NodeId(config.other),
            hold_ns=int(config.hold_s * _S),
            answer_ns=int(2 * config.peer_timeout_s * _S),
            wall_offset_ns=time.time_ns() - _now_ns(),
            names={NodeId(1): "node 1", NodeId(2): "node 2"},
        )
        if self._record.record is not None and self._record.record.uptodate:
            self.arbiter.follow(self._record.record.generation)
        self.node = Node(settings, self._record.record, lambda: random.SystemRandom().randrange(1, 1 << 64))
        self._first = True

    async def _take_engine(self) -> Engine:
        """A data-path process that is up already; the next one is started behind it."""
        engine = await self._spare
        self._spare = asyncio.create_task(Engine.start(self.root, self._lock, self._records))
        return engine

    # ---- the loop ----

    async def _step(self) -> None:
        event: on.Event | None = None
        if self._first:
            self._first = False
        else:
            wait_s = max(0.0, (self.node.next_wakeup_ns() - _now_ns()) / _S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait_s, 3600.0)):
                    event = await self._queue.get()
        if isinstance(event, on.PeerLost):
            # Also when the next connection is here already: the core has not heard of that one, and nothing uses it.
            await self._peer_is_lost()
        now_ns = _now_ns()
        for command in self.node.handle(now_ns, event) if event else self.node.tick(now_ns):
            _log.debug("%s", command)
            if getattr(command, "session", self.session) == self.session:  # else its connection is over
                with self.took.part(type(command)):
                    await self._carry_out(command)
        if isinstance(event, on.PeerLost):
            await self.serving.unpaired()

    async def _peer_is_lost(self) -> None:
        for task in set(self._sessions):
            task.cancel()
        if self._sessions:
            await asyncio.wait(set(self._sessions))
        await self.serving.detach()
        self.peer_hello = None

    async def _carry_out(self, command: do.Command) -> None:
        match command:
            case do.Recover():
                self._task(self._recover())
            case do.Persist():
                self._record.write(command.record)
                if command.record.uptodate:
                    self.arbiter.follow(command.record.generation)
            case do.Cas() | do.ReadRegister():
                self._task(self._ask_arbiter(command))
            case do.Connect():
                self.peer.connect()
            case do.Disconnect():
                self._lose(command.cause)
            case do.Say():
                self._say({"core": json.loads(encode(command.message))})
            case do.SetGate():
                await self._set_gate(command.gate)
            case do.StartAccepting():
                await self._mount()
            case do.StopAccepting():
                if command.drain:
                    self._task(self.serving.drain())
                else:
                    await self.serving.unmount()
            case do.StartReceiving():
                self.following.receiving = True
            case do.StopReceiving():
                await self.following.stop()
            case do.CompareAll():
                await self._compare_all()
            case do.StartResync():
                self._for_session(self._bring_up(command.session))
            case do.Checkpoint():
                self._for_session(self.serving.checkpoint(command.session))
            case do.Flush():
                self._task(self._flush(command.number))
            case do.Tell():
                self._tell(command)
            case do.OrderDone():
                self._answer(command.order, self._mount_error)
            case do.OrderRefused():
                self._answer(command.order, command.error)
            case do.Halt():
                self._halted = True
            case do.Inherit() | do.ClearJournal():
                self._log_book(command)
            case do.Verify():
                self.comparing.verify(command)
        # SendCover: the failback from the log carries the cover.

    def _log_book(self, command: do.Inherit | do.ClearJournal) -> None:
        if isinstance(command, do.ClearJournal):
            self.logbook.clear()
        else:
            self.logbook.inherit(received=self.following.received)

    async def _set_gate(self, gate: Gate) -> None:
        try:
            await self.serving.set_gate(gate)
        except KernelError as error:  # the data path is dead, or as good as dead; the node must not be
            self._queue.put_nowait(on.LocalFailure(str(error)))

    async def _mount(self) -> None:
        self._mount_error = None
        try:
            await self.serving.mount()
            if self.logbook.inherited:
                self._task(self._flush_inherited())
        except FarmError as error:
            self._mount_error = error
            self._queue.put_nowait(on.LocalFailure(str(error)))

    async def _recover(self) -> None:
        await asyncio.to_thread(sync_file_system, self.root)
        usable = self.logbook.recover(is_new=self._record.record is None)
        self._queue.put_nowait(on.Recovered(log_usable=usable))

    async def _flush_inherited(self) -> None:
        await asyncio.to_thread(sync_file_system, self.root)
        self.following.received = False
        await self.serving.flushed()

    async def _compare_all(self) -> None:
        try:
            await self.serving.compare_all()
        except FarmError as error:
            self._queue.put_nowait(on.LocalFailure(str(error)))
        self.resync.forget()
        sync_folder(self.folder / disk.RECORDS)

    def _epoch(self) -> int:
        return self.node.record.generation.epoch

    async def _flush(self, number: int) -> None:
        try:
            await asyncio.to_thread(sync_file_system, self.root)
            self._queue.put_nowait(on.Flushed(number))
        except OSError as error:
            self._queue.put_nowait(on.LocalFailure(f"the disk cannot be synced: {error}"))

    async def _ask_arbiter(self, command: do.Cas | do.ReadRegister) -> None:
        try:
            if isinstance(command, do.Cas):
                with self.took.part(do.Cas):
                    answer = await self.arbiter.claim(command.claim, command.ordered)
                self._queue.put_nowait(on.ClaimAnswered(command.claim, answer))
            else:
                self._queue.put_nowait(on.RegisterRead(await self.arbiter.read()))
        except (OSError, FarmError) as error:
            self.trouble = str(error)  # the core asks again

    async def _bring_up(self, session: int) -> None:
        try:
            await self.resync.bring_up(self.serving, self._epoch())
            self.trouble = ""
            self._queue.put_nowait(on.ResyncDrained(session))
        except (OSError, TimeoutError, FarmError) as error:
            self.trouble = f"the resync failed: {error}"
            _log.warning("%s", self.trouble)
            await asyncio.sleep(_RETRY_S)
            self._lose(self.trouble)

    # ---- the peer ----

    async def _on_control(self, control: Control) -> None:
        self._lose("the peer connected anew")
        self.session += 1
        self.control, session = control, self.session
        self._queue.put_nowait(on.PeerConnected(session))
        why = await control.listen(lambda message: self._on_message(control, session, message))
        if self.control is control:
            self._lose(why)

    def _on_message(self, control: Control, session: int, message: Message) -> None:
        if control is not self.control:
            return  # what was left in the buffers of a connection that is over
        if "core" in message:
            self.peer.trouble = ""
            said = decode(json.dumps(message["core"]).encode())
            if isinstance(said, Hello):
                self.peer_hello = said
            self._queue.put_nowait(on.PeerSaid(session, said))
            return
        hear = {
            "announce": self.following.announce,
            "names": self.following.names,
            "pace": self.following.pace,
            "progress": self.resync.on_progress,
            "found": self.resync.on_found,
            "answer": self.resync.on_answer,
        }.get(message["shell"])
        if hear is not None:
            hear(message)

    def _say(self, message: Message) -> None:
        if self.control is not None:
            self.control.say(message)

    def _lose(self, why: str) -> None:
        """End the connection that there is, if there is one; the core hears of it in its turn."""
        control, self.control = self.control, None
        if control is not None:
            _log.info("the peer is lost: %s", why)
            control.close(why)
            self.peer.trouble = why
            self._queue.put_nowait(on.PeerLost(self.session, why))

    # ---- small acts ----

    def _answer(self, order: Order, error: FarmError | None) -> None:
        self.took.end(order, error)
        for pair in [each for each in self._orders if each[0] is order]:
            self._orders.remove(pair)
            if pair[1].done():
                continue
            if error is not None:
                pair[1].set_exception(error)
            else:
                pair[1].set_result(None)

    def _tell(self, news: do.Tell) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        data = {name: str(value) for name, value in news.data.items()}
        self.happened.append({"at": at, "type": news.news.value, "text": news.text, "data": data})
        if news.news is do.News.STEPPED_DOWN:
            self.trouble = f"{news.text}; promote the other node, or this one when that is mended"
        elif news.news in (do.News.PRIMARY, do.News.SECONDARY, do.News.ALONE):
            self.trouble = ""
        _log.info("%s: %s", news.news.value, news.text)

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        self._keep(self._tasks, work)

    def _for_session(self, work: Coroutine[Any, Any, None]) -> None:
        self._keep(self._sessions, work)

    def _keep(self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(lambda _: self._ended(tasks, task))

    def _ended(self, tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task failed", exc_info=error)
            self._queue.put_nowait(on.LocalFailure(f"a fault of farmd: {error!r}"))


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
