# SPDX-License-Identifier: Apache-2.0
"""The secondary's hands: it takes the primary's stream and passes, and only while the core lets it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from farmd.mirror.checksum import Mode, Progress
from farmd.mirrord.enginelink import Engine, path_of
from farmd.mirrord.keys import Keys, node_name
from farmd.mirrord.logbook import Logbook
from farmd.mirrord.wire import Kind, Message
from farmd.model.errors import FarmError
from farmd.model.mirrorfile import MirrorConfig

_log = logging.getLogger(__name__)
_ROOM = 16
"""Connections announced and not yet come, or come and not yet announced."""
_GRACE_S = 1.0
"""A primary that resigns closes the stream and says so over the control connection, in either order."""


class Following:
    """Connections that the primary announced, matched with those that came, by token."""

    def __init__(
        self,
        config: MirrorConfig,
        keys: Keys | None,
        records: int,
        root: int,
        take_engine: Callable[[], Awaitable[Engine]],
        say: Callable[[Message], None],
        lose: Callable[[str], None],
        logbook: Logbook,
    ) -> None:
        self._logbook = logbook
        self._config, self._keys, self._records, self._root = config, keys, records, root
        self._take_engine, self._say, self._lose = take_engine, say, lose
        self._announced: dict[int, Message] = {}
        self._come: dict[int, tuple[Kind, socket.socket]] = {}
        self._engine: Engine | None = None
        self._streaming: Engine | None = None
        self._replaced: Engine | None = None
        """Its stream may end: the primary has announced another."""
        self._starting = asyncio.Lock()
        self._passed: dict[int, asyncio.Future[Message]] = {}
        self._names: dict[int, list[list[str]]] = {}
        self._progress: Progress | None = None
        self.received = False
        """Something came that a power loss may take: the copy was not synced since."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.receiving = False

    def on_socket(self, kind: Kind, token: int, sock: socket.socket) -> None:
        """A connection came. One that nobody announces is closed when there are too many."""
        self._come[token] = (kind, sock)
        while len(self._come) > _ROOM:
            self._come.pop(next(iter(self._come)))[1].close()
        self._match(token)

    def announce(self, message: Message) -> None:
        """The primary tells what a connection will be for."""
        if message["kind"] == "stream":
            self._replaced = self._streaming
        self._announced[message["token"]] = message
        while len(self._announced) > _ROOM:
            self._announced.pop(next(iter(self._announced)))
        self._match(message["token"])

    def names(self, message: Message) -> None:
        """Part of what the pass that is announced next is to look at."""
        while len(self._names) >= _ROOM:
            self._names.pop(next(iter(self._names)))
        self._names.setdefault(message["token"], []).append(message["paths"])

    def pace(self, message: Message) -> None:
        """The primary's applications are to be spared: a pass reads no faster."""
        if self._passed and self._engine is not None:
            self._start(self._pace_pass(self._engine, message["read_bytes_s"]))

    async def stop(self) -> None:
        """Nothing of what is received touches the disk after this returns."""
        self.receiving = False
        for _, sock in self._come.values():
            sock.close()
        self._come.clear()
        self._announced.clear()
        self._names.clear()
        for passed in self._passed.values():
            if not passed.done():
                passed.set_result({"error": "this node does not receive any more"})
        async with self._starting:
            engine, self._engine = self._engine, None
        if engine is not None:
            await engine.end()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def progress(self) -> Progress | None:
        """Of the pass that goes on."""
        return self._progress

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _match(self, token: int) -> None:
        if token not in self._announced or token not in self._come:
            return
        message, (kind, sock) = self._announced.pop(token), self._come.pop(token)
        changes = kind is not Kind.BULK or message["mode"] == Mode.SYNC
        unlike = "" if kind is Kind.STREAM else self._unlike(message["shape"])
        if kind.name.lower() != message["kind"] or (changes and not self.receiving):
            sock.close()
            self._say({"shell": "answer", "token": token, "error": "this node does not receive now"})
        elif unlike:
            sock.close()
            self._say({"shell": "answer", "token": token, "error": unlike})
        elif kind is Kind.STREAM:
            self.received = True
            self._start(self._stream(sock, message))
        elif kind is Kind.ZONES:
            self.received = True
            self._start(self._patch(sock, message))
        else:
            self._start(self._pass(sock, message))

    def _unlike(self, theirs: Message) -> str:
        mine = self._config.shape
        if theirs == mine:
            return ""
        names = [name for name in mine | theirs if theirs.get(name) != mine.get(name)]
        said = [f"{name}: {mine.get(name, 'one')} here, {theirs.get(name, 'one')} there" for name in names]
        return f"the two nodes were not created alike ({'; '.join(said)}): create one of them anew"

    async def _receiver(self, *, changes: bool) -> Engine:
        """The confined process: one from the first pass to the end of the stream. Raises FarmError."""
        async with self._starting:
            if self._engine is None:
                engine = await self._take_engine()
                keys = [self._config.keys] if self._config.keys else []
                try:
                    await engine.do("confine", root=self._root, records=self._records, readable=keys)
                except FarmError:
                    await engine.end()
                    raise
                engine.on_event = lambda event: self._on_event(engine, event)
                self._engine = engine
            if changes and not self.receiving:  # stopped meanwhile: nothing may touch the disk any more
                engine, self._engine = self._engine, None
                await engine.end()
                raise FarmError("the stream", "this node does not receive any more", "See `farmctl mirror status`")
            return self._engine

    async def _pass(self, sock: socket.socket, message: Message) -> None:
        token = message["token"]
        names = self._names.pop(token, [])
        answer: Message = {"shell": "answer", "token": token}
        passed = self._passed[token] = asyncio.get_running_loop().create_future()
        order = {name: message[name] for name in ("mode", "passes", "probe", "only")} | self._of_peer(token)
        order |= {"root": path_of(self._root), "record": f"{path_of(self._records)}/checksum"}
        try:
            with sock:
                engine = await self._receiver(changes=message["mode"] == Mode.SYNC)
                for part in names:
                    await engine.do("names", token=token, paths=part)
                await engine.do("pass", sock.fileno(), **order)
            answer |= await passed
        except FarmError as error:
            answer["error"] = str(error)
        finally:
            self._passed.pop(token, None)
            self._progress = None
        self._say(answer)

    async def _pace_pass(self, engine: Engine, read_bytes_s: int) -> None:
        with suppress(FarmError):
            await engine.do("pace-pass", read_bytes_s=read_bytes_s)

    def _of_peer(self, token: int) -> Message:
        keys, peer = self._config.keys, node_name(self._config.other)
        return {"token": token, "excluded": self._config.exclude, "keys": keys, "peer": peer}

    async def _patch(self, sock: socket.socket, message: Message) -> None:
        """A failback from the primary's log. It notices by itself when this end gives up, and is told why."""
        token = message["token"]
        answer: Message = {"shell": "answer", "token": token}
        patched = self._passed[token] = asyncio.get_running_loop().create_future()
        try:
            with sock:
                await self._end_replaced()
                engine = await self._receiver(changes=True)
                with os.fdopen(await asyncio.to_thread(self._logbook.for_the_peer, self._root)) as cover:
                    await engine.do("patch", sock.fileno(), cover.fileno(), root=self._root, **self._of_peer(token))
            answer |= await patched
        except (OSError, FarmError) as error:
            answer["error"] = str(error)
        finally:
            self._passed.pop(token, None)
        if "error" in answer:
            _log.warning("the failback ended early: %s", answer["error"])
        self._say(answer)

    async def _stream(self, sock: socket.socket, message: Message) -> None:
        try:
            await self._end_replaced()
            engine = self._streaming = await self._receiver(changes=True)
            order: dict[str, Any] = {"backing": path_of(self._root), "session": message["token"]}
            order |= {"epoch": message["epoch"], "silence_ms": 0}
            if self._keys:
                order["tls"] = self._keys.engine(self._config.other)
            with sock:
                await engine.do("receive", sock.fileno(), **order)
        except FarmError as error:
            self._lose(f"the stream could not be taken: {error}")

    async def _end_replaced(self) -> None:
        """A second stream is for a process of its own, which knows no inode yet; so is the failback before it."""
        async with self._starting:
            if self._engine is None or self._engine is not self._replaced:
                return
            engine, self._engine = self._engine, None
        await engine.end()

    def _on_event(self, engine: Engine, event: Message) -> None:
        match event["event"]:
            case "progress":
                self._progress = Progress(**event["progress"])
                self._say({"shell": "progress", "token": event["token"], "progress": event["progress"]})
            case "found":
                self._say({"shell": "found", "token": event["token"], "findings": event["findings"]})
            case "passed" if event["token"] in self._passed and not self._passed[event["token"]].done():
                result = {name: event[name] for name in event.keys() - {"event", "token"}}
                self._passed[event["token"]].set_result(result)
            case "ended" | "gone" if engine is self._engine:
                for passed in self._passed.values():
                    if not passed.done():
                        passed.set_result({"error": "the receiving process ended"})
                why = f"the stream ended: {event.get('text') or 'the primary closed it'}"
                asyncio.get_running_loop().call_later(_GRACE_S, self._stream_ended, engine, why)

    def _stream_ended(self, engine: Engine, why: str) -> None:
        if engine is self._engine and engine is not self._replaced:
            self._lose(why)
