# SPDX-License-Identifier: Apache-2.0
"""The primary's hands: the mounted directory, and whether it may acknowledge without the peer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from farmd.mirror.acks import Gate
from farmd.mirror.events import Event, LocalFailure, Settled, Stopped
from farmd.mirror.zonewire import LogLied
from farmd.mirrord import mounts
from farmd.mirrord.enginelink import Engine, path_of
from farmd.mirrord.image import Image
from farmd.mirrord.keys import Keys
from farmd.mirrord.logbook import Logbook
from farmd.mirrord.wire import Message
from farmd.model.errors import FarmError, KernelError
from farmd.model.mirrorfile import MirrorConfig

_OURS = "detached"
"""What the data path says of a stream that we ended ourselves."""
DRAIN_S = 10.0
"""Programs that still have files open when a primary resigns get errors after this long."""


class Serving:
    """One mounted directory at a time."""

    def __init__(
        self,
        config: MirrorConfig,
        folder: Path,
        keys: Keys | None,
        root: int,
        take_engine: Callable[[], Awaitable[Engine]],
        post: Callable[[Event], None],
        lose: Callable[[str], None],
        logbook: Logbook,
        image: Image | None = None,
    ) -> None:
        self._config, self._keys, self._root, self._logbook = config, keys, root, logbook
        self._take_engine, self._post, self._lose = take_engine, post, lose
        self._image = image
        self._folder = folder
        self._engine: Engine | None = None
        self._mounted = False
        self._paired = False
        self._gate = Gate.CLOSED
        self._checkpoint: asyncio.Future[None] | None = None
        self._failback: asyncio.Future[Message] | None = None

    @property
    def engine_pid(self) -> int | None:
        """The data path's process, while it serves."""
        return self._engine.pid if self._engine else None

    @property
    def is_mounted(self) -> bool:
        """Whether applications are let in."""
        return self._engine is not None and self._mounted

    async def mount(self) -> None:
        """Let applications in. Raises FarmError."""
        engine = await self._take_engine()
        engine.on_event = lambda event: self._on_event(engine, event)
        settings = {
            "backing": path_of(self._root),
            "mount_point": str(mounts.point(self._config, self._folder)),
            "spread": [(each.name, each.path) for each in self._config.directories if self._config.several],
            "excluded": self._config.exclude,
            "ack": self._config.ack,
            "state": "alone" if self._gate is Gate.ALONE else "undecided",
            "peer_ms": int(self._config.peer_timeout_s * 1000),
            "confirm": True,
        }
        logbook = self._logbook
        log = {"path": str(logbook.path), "mirror": logbook.owner.hex(), "inherited": logbook.inherited}
        try:
            await engine.do("mount", settings=settings, log=log)
        except FarmError:
            await engine.end()
            mounts.clear(self._config, self._folder)  # it may have died between two of several directories
            raise
        self._engine, self._mounted = engine, True
        if logbook.is_mending:
            await self.compare_all()
        if self._image is not None:
            try:
                await asyncio.to_thread(self._image.mount)
            except FarmError:
                await self.unmount()
                raise

    async def set_gate(self, gate: Gate) -> None:
        """Acknowledge by `gate`. A peer that is attached already makes ALONE stricter than it need be, never laxer."""
        self._gate = gate
        if gate is Gate.CLOSED and self._engine is not None and not self._mounted:
            await self._end()
        elif self._engine is not None and not self._paired and gate is not Gate.PEER:
            await self._engine.do("go-alone" if gate is Gate.ALONE else "refuse")
        elif self._engine is not None and gate is Gate.CLOSED:
            await self.detach()
            await self._engine.do("refuse")

    async def detach(self) -> None:
        """The peer is gone: from now on nothing waits for it, and nothing is acknowledged before somebody decides."""
        if self._engine is not None and self._paired:
            self._paired = False
            with contextlib.suppress(KernelError):
                await self._engine.do("detach")

    async def unpaired(self) -> None:
        """The core has heard that the peer is gone. If it lets this node acknowledge alone, the data path may."""
        if self._gate is Gate.ALONE and self._engine is not None and self._mounted:
            with contextlib.suppress(KernelError):
                await self._engine.do("go-alone")

    async def unmount(self) -> None:
        """At once; what is under way fails."""
        if self._engine is not None:
            with contextlib.suppress(KernelError):
                if self._image is not None:
                    await self._drop_image(self._image)
                if self._mounted:
                    await self._engine.do("unmount", force=True)
            await self._end()

    async def drain(self) -> None:
        """Wait until no program is in, for a while; then unmount anyway. Says Stopped."""
        end = time.monotonic() + DRAIN_S
        while self._engine is not None and self._mounted:
            late = time.monotonic() > end
            try:
                if self._image is not None:
                    await asyncio.to_thread(self._image.drop if late else self._image.unmount)
                await self._engine.do("unmount", keep=True, force=late)
                self._mounted = False
            except KernelError as error:
                if time.monotonic() > end:
                    self._post(LocalFailure(str(error)))
                    return
                await asyncio.sleep(0.1)
        self._post(Stopped())

    async def checkpoint(self, session: int) -> None:
        """Both disks have everything. Says Settled; without an answer in time the peer is lost."""
        if self._engine is None:
            return
        self._checkpoint = asyncio.get_running_loop().create_future()
        try:
            await self._engine.do("checkpoint")
            async with asyncio.timeout(2 * self._config.peer_timeout_s):
                await self._checkpoint
            self._post(Settled(session))
        except (TimeoutError, FarmError) as error:
            self._lose(f"the last checkpoint did not end ({error!r})")

    async def stats(self) -> Message:
        """The data path's counters; empty when nothing is mounted."""
        if self._engine is None or not self._mounted:
            return {}
        try:
            counters: Message = (await self._engine.do("stats"))["stats"]
        except KernelError:
            return {}
        return counters

    # ---- what a resync needs ----

    async def freeze(self) -> None:
        """Hold changes back."""
        await self._there().do("freeze")

    async def thaw(self) -> None:
        """Let them go on."""
        if self._engine is not None and self._mounted:
            with contextlib.suppress(KernelError):
                await self._engine.do("thaw")

    async def settle(self) -> None:
        """Until the peer has everything."""
        await self._there().do("settle", timeout_ms=int(self._config.peer_timeout_s * 1000))

    async def flushed(self) -> None:
        """What was received before the promotion is durable: the log may forget it."""
        self._logbook.inherited = False
        if self._engine is not None and self._mounted:
            with contextlib.suppress(KernelError):
                await self._engine.do("log", flushed=True)

    async def compare_all(self) -> None:
        """The log says "everything" from now on."""
        if self._engine is not None and self._mounted:
            await self._engine.do("log", everything=True)
            self._logbook.end_mending()
        else:
            self._logbook.everything()

    async def mending(self, *, begins: bool) -> None:
        """A repair begins, or it is whole; durable on return."""
        await asyncio.to_thread(self._logbook.begin_mending if begins else self._logbook.end_mending)

    async def log_says_everything(self) -> bool:
        """Whether a failback from the log is of no use."""
        return bool((await self._there().do("log"))["everything"])

    async def fail_back(self, zones: socket.socket, stream: socket.socket, token: int, epoch: int) -> Message:
        """Bring the peer up to date from the log and attach it. Raises FarmError; LogLied: only a comparison helps."""
        engine = self._there()
        tls = {"tls": self._keys.engine(self._config.other)} if self._keys else {}
        pace = {"rate_bytes_s": self._config.rate_bytes_s, "freeze_s": self._config.freeze_s}
        self._failback = asyncio.get_running_loop().create_future()
        await engine.do("failback", zones.fileno(), stream.fileno(), session=token, epoch=epoch, **pace, **tls)
        try:
            came = await self._failback
        except asyncio.CancelledError:
            # The peer is gone; the engine's own connection would find that out only after many minutes.
            with contextlib.suppress(KernelError):
                await engine.do("end-failback")
            raise
        self._paired = True
        return came

    async def pace(self, rate_bytes_s: int) -> None:
        """A failback sends no faster from now on; 0: no limit."""
        if self._failback is not None and not self._failback.done() and self._engine is not None:
            with contextlib.suppress(KernelError):
                await self._engine.do("pace", rate_bytes_s=rate_bytes_s)

    async def attach(self, sock: socket.socket, token: int, epoch: int) -> None:
        """Every change goes to the peer at the other end of `sock` from now on."""
        engine = self._there()
        tls = {"tls": self._keys.engine(self._config.other)} if self._keys else {}
        await engine.do("attach", sock.fileno(), session=token, epoch=epoch, **tls)
        self._paired = True

    async def part(self) -> None:
        """End the stream, with changes held back and all settled; another is attached at once."""
        await self._there().do("detach")

    # ---- inside ----

    async def _drop_image(self, image: Image) -> None:
        # First nothing may wait for a decision any more, or the image's file system would wait with it.
        await self.detach()
        with contextlib.suppress(KernelError):
            await self._there().do("refuse")
        await asyncio.to_thread(image.drop)

    def _there(self) -> Engine:
        if self._engine is None or not self._mounted:
            raise KernelError("the mirror's directory", "it is not mounted", "See `farmctl mirror status`")
        return self._engine

    async def _end(self) -> None:
        engine, self._engine = self._engine, None
        self._mounted = self._paired = False
        if self._failback is not None and not self._failback.done():
            self._failback.set_exception(KernelError("the failback", "the directory was unmounted", "See the log"))
        if engine is not None:
            await engine.end()
        mounts.clear(self._config, self._folder)

    def _on_event(self, engine: Engine, event: Message) -> None:
        if engine is not self._engine:
            return
        match event["event"]:
            case "lost" if event.get("text") != _OURS:
                self._paired = False
                self._lose(event.get("text") or "the stream ended")
            case "checkpoint" if self._checkpoint is not None and not self._checkpoint.done():
                self._checkpoint.set_result(None)
            case "checkpoint-failed" if self._checkpoint is not None and not self._checkpoint.done():
                self._checkpoint.set_exception(KernelError("checkpoint", event["text"], "See the log"))
            case "failback" if self._failback is not None and not self._failback.done():
                self._failback.set_result(event)
            case "failback-failed" if self._failback is not None and not self._failback.done():
                kind = LogLied if event["lied"] else KernelError
                self._failback.set_exception(kind("the failback", event["text"], "See the log"))
            case "log-failed":
                self._post(LocalFailure(event["text"]))
            case "gone" if self._mounted:
                self._post(LocalFailure("the mirror's data path ended unexpectedly"))
