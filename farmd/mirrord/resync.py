# SPDX-License-Identifier: Apache-2.0
"""The primary's side of a resync.

A resync comes from the log of dirty zones if both nodes' logs say enough (`farmd.mirror.failback`, in the data path's
process). Otherwise it is passes of the checksum engine with the peer as their target: while applications write, each
with less to do, and a last one while changes are held back. Behind that one the stream is attached: both trees are
equal at that moment, and every later change goes to both.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from farmd.mirror.again import look_again
from farmd.mirror.checksum import Finding, Kind, Mode, Pass, Progress
from farmd.mirror.zonewire import LogLied
from farmd.mirrord.bulk import BulkPass, in_parts
from farmd.mirrord.enginelink import path_of
from farmd.mirrord.keys import Keys, node_name
from farmd.mirrord.wire import Kind as Connection
from farmd.mirrord.wire import Message, Peer
from farmd.model.errors import FarmError, PeerError, TimedOut
from farmd.model.mirrorfile import MirrorConfig

_log = logging.getLogger(__name__)
ANSWER_S = 30.0
_QUICK_S = 0.25
"""A pass shorter than this is not worth repeating before the last one."""
_ROUNDS = 5
PROBE_BYTES = 8 << 20
READS = 8
"""Bytes that a throttled pass may read for each that it may send: reading costs applications less."""
_NAMES_SHOWN = 500


class Tree(Protocol):
    """What a resync needs of the mounted directory."""

    async def freeze(self) -> None:
        """Hold changes back; none is under way on return."""

    async def thaw(self) -> None:
        """Let them go on."""

    async def settle(self) -> None:
        """Until the peer has applied everything."""

    async def attach(self, sock: Any, token: int, epoch: int) -> None:
        """Replicate from now on."""

    async def log_says_everything(self) -> bool:
        """The log of dirty zones is of no use."""

    async def compare_all(self) -> None:
        """It is not to be believed."""

    async def fail_back(self, zones: Any, stream: Any, token: int, epoch: int) -> dict[str, Any]:
        """Make the peer equal from the log and attach it. Raises LogLied."""

    async def part(self) -> None:
        """End the stream: another is attached at once."""

    async def mending(self, *, begins: bool) -> None:
        """The peer's copy is being repaired, which no log says; durable on return."""


@dataclass(slots=True)
class Shown:
    """What people see of work that takes long."""

    what: str
    began: float = field(default_factory=time.monotonic)
    pass_began: float = field(default_factory=time.monotonic)
    passes: int = 0
    bytes_moved: int = 0
    """Contents, of the passes that are over."""
    names_differing: int = 0
    held_back: bool = False
    """The last pass, in which applications wait: it is not limited."""


class Resync:
    """Passes over one control connection. Every method may raise FarmError."""

    def __init__(
        self,
        config: MirrorConfig,
        keys: Keys | None,
        records: Path,
        root: int,
        peer: Peer,
        say: Callable[[Message], None],
        pace_failback: Callable[[int], Awaitable[None]],
    ) -> None:
        self._config, self._keys, self._records, self._root = config, keys, records, root
        self._peer, self._say, self._pace_failback = peer, say, pace_failback
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._found: dict[int, list[Finding]] = {}
        self._bulk: BulkPass | None = None
        self._took_s = 0.0
        self._rate = self.ceiling_bytes_s = config.rate_bytes_s
        self.shown: Shown | None = None
        self.last: dict[str, Any] | None = None
        """What the last whole resync came to: plan, passes, bytes moved, names and seconds, however it was done."""
        self.mending = False
        """The peer's copy is being repaired; true behind a failure, too."""
        self._theirs: Progress | None = None

    @property
    def place(self) -> Callable[[bytes], bytes]:
        """Where people find what a comparison names."""
        return self._config.place

    def limit(self, rate_bytes_s: int) -> None:
        """What a resync sends of contents from now on; 0: no limit."""
        self._rate = self.ceiling_bytes_s = rate_bytes_s
        if self._bulk is not None and self.gives_way:
            self._bulk.limit(rate_bytes_s)

    @property
    def gives_way(self) -> bool:
        """Work goes on, and beside applications."""
        return self.shown is not None and not self.shown.held_back

    async def pace(self, rate_bytes_s: int) -> None:
        """Send no faster from now on, and read accordingly, here and at the peer; 0: no limit."""
        self._rate, reads = rate_bytes_s, READS * rate_bytes_s
        if self._bulk is not None and self.gives_way:
            self._bulk.limit(rate_bytes_s, reads)
            self._say({"shell": "pace", "read_bytes_s": reads})
        await self._pace_failback(rate_bytes_s)

    def on_found(self, message: Message) -> None:
        """Part of what a pass found, before its answer."""
        if message["token"] in self._answers:
            found = [Finding(Kind(kind), bytes.fromhex(path), error) for kind, path, error in message["findings"]]
            self._found.setdefault(message["token"], []).extend(found)

    def on_answer(self, message: Message) -> None:
        """The peer answers what was asked under a token."""
        waiting = self._answers.get(message["token"])
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def progress(self) -> Progress | None:
        """Of the pass that goes on; the target knows best what is left."""
        if self._bulk is None:
            return None
        mine = self._bulk.progress()
        return replace(self._theirs, bytes_sent=mine.bytes_sent) if self._theirs is not None else mine

    def on_progress(self, message: Message) -> None:
        """The target's counters, now and then."""
        if message["token"] in self._answers and self._bulk is not None:
            self._theirs = Progress(**message["progress"])

    def forget(self) -> None:
        """Believe no record any more: the next pass reads everything."""
        for path in self._records.glob("checksum*"):
            path.unlink()

    async def bring_up(self, tree: Tree, epoch: int) -> None:
        """Make the peer equal and attach it: from the log of dirty zones if it says enough, else by comparing all."""
        self._rate = self.ceiling_bytes_s
        if not await tree.log_says_everything():
            try:
                await self._from_log(tree, epoch)
                return
            except LogLied as error:
                _log.warning("%s", error)
                await tree.compare_all()
        await self._by_comparing(tree, epoch)

    async def _from_log(self, tree: Tree, epoch: int) -> None:
        self.shown = Shown("failback")
        try:
            zones_token, token = _token(), _token()
            # The stream first: the target then knows that what it receives with is of no more use.
            self._say({"shell": "announce", "kind": "stream", "token": token, "epoch": epoch})
            self._say({"shell": "announce", "kind": "zones", "token": zones_token, "shape": self._config.shape})
            with self._awaited(zones_token) as answered:
                zones = await self._peer.call(Connection.ZONES, zones_token)
                with zones, await self._peer.call(Connection.STREAM, token) as stream:
                    try:
                        came = await tree.fail_back(zones, stream, token, epoch)
                    except LogLied:
                        raise
                    except FarmError as error:
                        await _prefer_its_words(answered, error)
                        raise
            self.last = {"plan": "log", "passes": came["rounds"], "bytes_moved": came["bytes_moved"]}
            self.last |= {"names": came["files"], "seconds": came["seconds"]}
        finally:
            self.shown = None

    async def _by_comparing(self, tree: Tree, epoch: int) -> Shown:
        self.shown = shown = Shown("resync")
        try:
            for _ in range(_ROUNDS):
                began = time.monotonic()
                await self._sync(shown, self._rate)
                if time.monotonic() - began < _QUICK_S:
                    break
            async with frozen(tree):
                shown.held_back = True
                await self._last_round(tree, shown, epoch)
            self.last = {"plan": "compare", "passes": shown.passes, "bytes_moved": shown.bytes_moved}
            self.last |= {"names": shown.names_differing, "seconds": round(time.monotonic() - shown.began, 3)}
            return shown
        finally:
            self.shown = None

    async def _last_round(self, tree: Tree, shown: Shown, epoch: int) -> None:
        try:
            async with asyncio.timeout(self._config.freeze_s):
                counters = await self._sync(shown, 0)
        except TimeoutError as error:
            cause = f"its last round took longer than {self._config.freeze_s:g} s, in which changes are held back"
            raise TimedOut("resync", cause, "It is tried again; raise freeze_s if it never ends") from error
        if counters["errors"] or counters["files_changing"]:
            cause = f"{counters['errors'] + counters['files_changing']} names could not be compared"
            raise FarmError("resync", cause, "Run `farmctl mirror diff` to see which; is something else writing there?")
        await self._stream(tree, epoch)

    async def _stream(self, tree: Tree, epoch: int, *, anew: bool = False) -> None:
        token = _token()
        # Announced first: the peer then expects the end of the old one.
        self._say({"shell": "announce", "kind": "stream", "token": token, "epoch": epoch})
        if anew:
            await tree.part()
        with await self._peer.call(Connection.STREAM, token) as sock:
            await tree.attach(sock, token, epoch)

    async def _sync(self, shown: Shown, rate: int) -> dict[str, int]:
        counters, _ = await self._pass(Mode.SYNC, Pass.QUICK, rate=rate)
        shown.passes += 1
        shown.pass_began = time.monotonic()
        shown.bytes_moved += counters["bytes_differing"]
        shown.names_differing += counters["files_differing"]
        return counters

    async def compare(self, mode: Mode) -> tuple[dict[str, int], list[Finding]]:
        """A pass that changes nothing: counters of the target, and what it found."""
        self.shown = shown = Shown(mode.name.lower())
        try:
            return await self._pass(mode, Pass.CONTENTS)
        finally:
            self.shown = None
            self._took_s = time.monotonic() - shown.began

    def estimate(self, counters: dict[str, int]) -> float:
        """After a diff: seconds that a resync would take, if disks and link stay as the diff found them."""
        probe_s, limit = counters["probe_ns"] / 1e9, self.ceiling_bytes_s
        byte_s = max(probe_s / PROBE_BYTES, 1 / limit if limit else 0.0)
        return round(max(self._took_s - probe_s, 0.0) + counters["bytes_differing"] * byte_s, 3)

    async def verify(self, tree: Tree, epoch: int, *, repair: bool) -> tuple[dict[str, int], list[Finding]]:
        """Compare while both copies are in use: counters of all of it, and what really differs.

        What is being written differs for a moment. So names that differ are compared again with changes held back and
        everything settled; with `repair` they are made equal in the same moment, between two operations of the stream.
        """
        self.mending = False
        counters, found = await self.compare(Mode.VERIFY)
        if not found:
            return counters, []
        names = look_again(found, self._root)
        try:
            async with asyncio.timeout(self._config.freeze_s), frozen(tree):
                await tree.settle()
                self.shown = Shown("repair" if repair else "verify", held_back=True)
                mode = Mode.SYNC if repair else Mode.VERIFY
                if repair:
                    self.mending = True
                    await tree.mending(begins=True)
                again, found = await self._pass(mode, Pass.CONTENTS, only=names)
                if repair and found:
                    await self._stream(tree, epoch, anew=True)
                if repair:
                    await tree.mending(begins=False)
                    self.mending = False
        except TimeoutError as error:
            cause = f"{len(names)} names could not be compared again within {self._config.freeze_s:g} s"
            raise TimedOut("verify", cause, "Try when less is written, raise freeze_s, or order a resync") from error
        finally:
            self.shown = None
        counters |= {"errors": again["errors"], "files_changing": again["files_changing"]}
        return counters, found

    async def _pass(
        self, mode: Mode, passes: Pass, *, rate: int = 0, only: tuple[bytes, ...] | None = None
    ) -> tuple[dict[str, int], list[Finding]]:
        token = _token()
        for names in in_parts(only or (), lambda path: path):
            self._say({"shell": "names", "token": token, "paths": [path.hex() for path in names]})
        probe = PROBE_BYTES if mode is Mode.DIFF else 0
        with self._awaited(token) as answered:
            self._say(
                {"shell": "announce", "kind": "bulk", "token": token}
                | {"mode": int(mode), "passes": int(passes), "probe": probe, "shape": self._config.shape}
                | {"only": only is not None}
            )
            sock = await self._peer.call(Connection.BULK, token)
            root = Path(path_of(self._root))
            record, excluded = self._records / "checksum", self._config.exclude
            bulk = self._bulk = BulkPass(root, record, mode, passes, rate, probe, excluded, only)
            name = node_name(self._config.other)
            try:
                await bulk.run(sock, source=True, keys=self._keys, peer=name)
            except FarmError as error:
                await _prefer_its_words(answered, error)
                raise
            finally:
                bulk.stop()
                self._bulk = self._theirs = None
            answer = await self._answered(answered)
        found = self._found.pop(token, [])
        if answer["more"] and mode is Mode.VERIFY:
            cause = f"more than {len(found):,} names differed while both copies were in use"
            raise FarmError("verify", cause, "Order a resync, or verify when less is written")
        return answer["progress"], found

    def _awaited(self, token: int) -> _Awaited:
        self._found.clear()
        return _Awaited(self._answers, token)

    async def _answered(self, answered: asyncio.Future[Message]) -> Message:
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await answered
        except TimeoutError as error:
            raise PeerError("the peer", f"it did not answer within {ANSWER_S:g} s", "See its status") from error
        if "error" in answer:
            raise PeerError("the peer", answer["error"], "See its status")
        return answer


class _Awaited:
    """A place for the answer to one token."""

    def __init__(self, answers: dict[int, asyncio.Future[Message]], token: int) -> None:
        self._answers, self._token = answers, token

    def __enter__(self) -> asyncio.Future[Message]:
        self._answers[self._token] = asyncio.get_running_loop().create_future()
        return self._answers[self._token]

    def __exit__(self, *_: object) -> None:
        self._answers.pop(self._token).cancel()


def outcome(counters: dict[str, int], found: list[Finding], place: Callable[[bytes], bytes]) -> dict[str, Any]:
    """What people are told of a comparison, JSON-ready; `place` is `MirrorConfig.place`."""
    names = [{"kind": one.kind.name.lower(), "path": os.fsdecode(place(one.path))} for one in found[:_NAMES_SHOWN]]
    differing = [one for one in found if one.kind not in (Kind.UNREADABLE, Kind.CHANGING)]
    return {
        "counters": counters,
        "findings": names,
        "differences": len(differing),
        "equal": not found and not counters["errors"],
    }


async def _prefer_its_words(answered: asyncio.Future[Message], error: FarmError) -> None:
    """Raises PeerError if the target says why: that tells more than that it went away."""
    await _briefly(answered)
    if answered.done() and "error" in answered.result():
        raise PeerError("the peer", answered.result()["error"], "See its status") from error


async def _briefly(answered: Awaitable[Message]) -> None:
    await asyncio.wait([asyncio.ensure_future(answered)], timeout=2)


@asynccontextmanager
async def frozen(tree: Tree) -> AsyncIterator[None]:
    """Changes are held back inside, whatever happens."""
    try:
        await tree.freeze()
        yield
    finally:
        await asyncio.shield(tree.thaw())


def _token() -> int:
    return random.SystemRandom().randrange(1, 1 << 63)
