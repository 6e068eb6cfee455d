# SPDX-License-Identifier: Apache-2.0
"""The mirror's data path as Python objects: a thin cover over `cext/mirror`, which does all the work.

Calls are coarse and release the GIL. No object here may be used from within the mounted directory's own process tree
in a way that opens files below the mount: the file system would wait for itself.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from farmd.mirror.handles import pack
from farmd.mirror.native import library
from farmd.mirror.spread import Spread
from farmd.model.errors import FarmError


class Ack(StrEnum):
    """When an operation returns: once the peer has it, only fsync and rename wait for the peer, or none does."""

    STRICT = "strict"
    BARRIER = "barrier"
    ASYNC = "async"


class State(StrEnum):
    """Who must have a change before it is acknowledged; see `enum mirror_state` in `cext/mirror/api.h`."""

    ALONE = "alone"
    PAIRED = "paired"
    UNDECIDED = "undecided"
    REFUSING = "refusing"


class EventKind(StrEnum):
    """What the data path reports, in the order of `enum mirror_event_kind`."""

    LOST = "lost"
    REFUSED = "refused"
    DATA = "data"
    INODE = "inode"
    NAMES = "names"
    OVERFLOW = "overflow"
    CHECKPOINT = "checkpoint"
    UNMOUNTED = "unmounted"
    WHOLE = "whole"
    PLACE = "place"
    RETOLD = "retold"
    ATTACHED = "attached"


_ACKS = list(Ack)
_STATES = list(State)
_KINDS = list(EventKind)


@dataclass(frozen=True, slots=True)
class DataEvent:
    """One report. `handle` is the file handle (type, bytes) of the inode; offset and length are bytes.

    `waits`: a change waits until this one is confirmed. `parent` and `text`: where a file is, as far as is known.
    """

    kind: EventKind
    number: int
    code: int = 0
    offset: int = 0
    length: int = 0
    handle: tuple[int, bytes] = (0, b"")
    text: str = ""
    waits: bool = False
    parent: tuple[int, bytes] = (0, b"")
    name: bytes = b""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a primary is mounted and how long it waits. Times in milliseconds, `lag_bytes` unacknowledged at most.

    `uring`: requests come over io_uring if the kernel has it and its administrator switched it on (Linux 6.14,
    `/sys/module/fuse/parameters/enable_uring`); else over /dev/fuse.
    """

    backing: Path
    mount_point: Path
    spread: tuple[tuple[str, Path], ...] = ()
    """Of several directories: what of the mounted tree users see where. `mount_point` is then for root only."""
    excluded: tuple[str, ...] = ()
    workers: int = 8
    ack: Ack = Ack.STRICT
    state: State = State.ALONE
    peer_ms: int = 10_000
    decide_ms: int = 0
    lag_bytes: int = 64 << 20
    confirm: bool = False
    uring: bool = True


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the start, and the lag now; `lag_us` is the age of the oldest frame not acknowledged.

    `write_us` and `sync_us` are what changes and syncs took of late: what a resync in the background must not raise.
    `replies_us[i]` counts replies that waited 2**(i-1) to 2**i us."""

    state: State
    ack: Ack
    requests: int
    frames: int
    bytes_sent: int
    bytes_written: int
    sent_seq: int
    applied_seq: int
    lag_bytes: int
    lag_frames: int
    waiting: int
    events: int
    nodes: int
    lag_us: int
    write_us: int
    sync_us: int
    uring: bool
    replies_us: tuple[int, ...]


_NAMELESS = 4096
"""So many files are looked for at once; a peer that is lost for another one comes back."""


class DataPathError(FarmError):
    """The kernel or the other side refused something that the data path needs."""


def _failed(code: int, thing: str, step: str) -> DataPathError:
    cause = f"{os.strerror(-code)} ({errno.errorcode.get(-code, -code)})"
    return DataPathError(thing, cause, step)


class WriteThrough:
    """A mounted, replicating directory. `close` unmounts it; nothing else does, so call it."""

    def __init__(self, settings: Settings) -> None:
        """Mount. Raises DataPathError: no root, no /dev/fuse, a file system without handles, a busy mount point."""
        ffi, lib = self._ffi, self._lib = library()
        backing = os.open(settings.backing, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mount_point = ffi.new("char[]", os.fsencode(settings.mount_point))
            excluded = ffi.new("char[]", b"\n".join(os.fsencode(pattern) for pattern in settings.excluded))
            config = ffi.new("struct mirror_config *")
            config.backing, config.mount_point, config.excluded = backing, mount_point, excluded
            config.workers, config.confirm = settings.workers, settings.confirm
            config.ack, config.state = _ACKS.index(settings.ack), _STATES.index(settings.state)
            config.uring = settings.uring
            config.peer_ms, config.decide_ms = settings.peer_ms, settings.decide_ms
            config.lag_bytes = settings.lag_bytes
            error = ffi.new("char[200]")
            self._fs = lib.mirror_start(config, error, len(error))
        finally:
            os.close(backing)
        if self._fs == ffi.NULL:
            raise DataPathError(
                str(settings.mount_point),
                ffi.string(error).decode(errors="replace"),
                "Mirrors need root, /dev/fuse, and a file system with handles: ext4, XFS, Btrfs or tmpfs.",
            )
        self._events = ffi.new("struct mirror_event[256]")
        self._spread = Spread(settings.mount_point, settings.spread)
        self._put_up()

    def _put_up(self) -> None:
        """Where users see it: all directories, or none. Until then no change begins."""
        self.freeze()
        try:
            self._spread.put_up()
            self.thaw()
        except FarmError:
            self.unmount(force=True)
            self.close()
            raise

    def _do(self, code: int, what: str, step: str) -> None:
        if code < 0:
            raise _failed(code, what, step)

    def attach(self, fd: int, session: int, epoch: int, tls: Tls | None = None) -> None:
        """Replicate to the peer at the other end of the connected socket `fd`. Both trees must be equal now.

        `session` must be another number than any before. The descriptor is duplicated.
        """
        link = tls.handle if tls else self._ffi.NULL
        code = self._lib.mirror_attach(self._fs, fd, link, session, epoch)
        self._do(code, "the peer", "Only a mirror without a peer can take one, under a new session number.")

    def go_alone(self) -> None:
        """Acknowledge without the peer from now on, also what waits for it. Only after the arbiter agreed."""
        self._do(self._lib.mirror_go_alone(self._fs), "go alone", "The peer is still there: detach it first.")

    def refuse(self) -> None:
        """Fail what waits for the peer, and every later change, with EIO."""
        self._do(self._lib.mirror_refuse(self._fs), "refuse changes", "The peer is still there: detach it first.")

    def detach(self) -> None:
        """Treat the peer as lost: changes wait for a decision."""
        self._lib.mirror_detach(self._fs)

    def freeze(self) -> None:
        """Hold back changes until `thaw`; on return none is under way. Reads may wait as well."""
        self._lib.mirror_freeze(self._fs)

    def thaw(self) -> None:
        """Let changes begin again."""
        self._lib.mirror_thaw(self._fs)

    def nameless(self) -> set[bytes]:
        """Handles (`handles.pack`) of files that have names of which the data path knows none."""
        room = self._ffi.new("struct mirror_handle[]", _NAMELESS)
        count = self._lib.mirror_nameless(self._fs, room, _NAMELESS)
        self._do(count, "files without a known name", "See the memory of this server.")
        raw = ((each.type, bytes(self._ffi.buffer(each.bytes, each.size))) for each in room[0:count])
        return {pack(*each) for each in raw}

    def look_up(self, path: bytes) -> None:
        """Let the data path know this name of a file. Nothing happens if it is gone."""
        self._lib.mirror_look_up(self._fs, path)

    def set_ack(self, ack: Ack) -> None:
        """Change when operations return; those under way keep what they began with."""
        self._lib.mirror_set_ack(self._fs, _ACKS.index(ack))

    def settle(self, timeout_ms: int = 10_000) -> None:
        """Wait until the peer applied everything, modification times included. Raises DataPathError if it does not."""
        code = self._lib.mirror_settle(self._fs, timeout_ms)
        self._do(code, "the peer", "It is gone or slow: look at the events and at its log.")

    def checkpoint(self) -> None:
        """Sync this side and ask the peer to; a CHECKPOINT event follows. Raises DataPathError without a peer."""
        self._do(self._lib.mirror_checkpoint(self._fs), "the checkpoint", "It needs a peer and a disk that syncs.")

    def confirm(self, number: int) -> None:
        """Let changes begin that waited for events up to `number` to be durable."""
        self._lib.mirror_confirm(self._fs, number)

    def retell(self) -> None:
        """Every zone is told again behind a RETOLD event, which comes between two changes; not for who confirms."""
        self._lib.mirror_retell(self._fs)

    def fileno(self) -> int:
        """Readable when `events` has something."""
        return int(self._lib.mirror_event_fd(self._fs))

    def events(self) -> list[DataEvent]:
        """What happened since the last call, at most 256 at a time; `fileno` stays readable while there is more."""
        count = self._lib.mirror_next_events(self._fs, self._events, 256)
        self._do(count, "events", "This is a defect: report it.")
        return [self._event(self._events[i]) for i in range(count)]

    def _event(self, raw: Any) -> DataEvent:
        handle = bytes(self._ffi.buffer(raw.handle, raw.handle_size))
        name: bytes = self._ffi.string(raw.text)
        kind = _KINDS[raw.kind]
        parent = (raw.parent_type, bytes(self._ffi.buffer(raw.parent, raw.parent_size)))
        return DataEvent(
            kind,
            raw.number,
            raw.code,
            raw.offset,
            raw.length,
            (raw.handle_type, handle),
            name.decode(errors="replace"),
            bool(raw.waits),
            parent,
            name,
        )

    def stats(self) -> Stats:
        """Counters and lag."""
        raw = self._ffi.new("struct mirror_stats *")
        self._lib.mirror_read_stats(self._fs, raw)
        names = Stats.__dataclass_fields__.keys() - {"state", "ack", "uring", "replies_us"}
        numbers = {name: int(getattr(raw, name)) for name in names}
        return Stats(
            state=_STATES[raw.state],
            ack=_ACKS[raw.ack],
            uring=bool(raw.uring),
            replies_us=tuple(raw.replies_us),
            **numbers,
        )

    def unmount(self, force: bool = False) -> None:
        """Take the directory out of use. Raises DataPathError if files are open; `force` ends their use with errors."""
        busy = self._spread.take_down()
        code = -errno.EBUSY if busy else self._lib.mirror_stop(self._fs, False)
        if code < 0 and force:
            code = self._lib.mirror_stop(self._fs, True)
            self._spread.drop()
        self._do(code, busy or "the mounted directory", "Stop the programs that use it, or force the end.")

    def close(self) -> None:
        """Free everything. Only after `unmount`."""
        fs, self._fs = self._fs, None
        if fs is not None:
            self._lib.mirror_free(fs)


def compose(names: list[str], directories: list[int]) -> int:
    """A descriptor of one root over several open directories, mounted nowhere; it is there as long as this process.

    Raises DataPathError.
    """
    ffi, lib = library()
    texts = [ffi.new("char[]", os.fsencode(name)) for name in names]
    error = ffi.new("char[200]")
    fd = lib.mirror_compose(texts, directories, len(names), error, len(error))
    if fd < 0:
        cause = ffi.string(error).decode(errors="replace")
        step = "Several directories need root and Linux 5.12 or newer; containers must allow mount namespaces"
        raise DataPathError("the mirror's directories", cause, step)
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class Tls:
    """Mutual TLS 1.3 over a connected socket. `close` after the data path let go of it."""

    def __init__(self, fd: int, *, certificate: Path, key: Path, authority: Path, peer_name: str, server: bool) -> None:
        """Shake hands, ten seconds at most. Raises DataPathError: a foreign or missing certificate, a wrong name."""
        ffi, self._lib = library()
        texts = [ffi.new("char[]", os.fsencode(text)) for text in (certificate, key, authority, peer_name)]
        config = ffi.new("struct mirror_tls_config *")
        config.certificate, config.key, config.authority, config.peer_name = texts
        config.server, config.timeout_ms = server, 10_000
        error = ffi.new("char[200]")
        self.handle = self._lib.mirror_tls_open(fd, config, error, len(error))
        if self.handle == ffi.NULL:
            cause = ffi.string(error).decode(errors="replace")
            raise DataPathError(
                "the connection to the peer", cause, "Both nodes need certificates of the farm's own CA."
            )

    def close(self) -> None:
        """Free the keys."""
        self._lib.mirror_tls_close(self.handle)


@dataclass(frozen=True, slots=True)
class Received:
    """How a stream ended: `code` 0 if the primary closed it, else an errno and `text` why; `seq` was applied last."""

    code: int
    text: str
    seq: int
    frames: int
    bytes: int
    syncs: int


def receive(
    backing: Path, fd: int, *, session: int, epoch: int, stop_fd: int = -1, silence_ms: int = 0, tls: Tls | None = None
) -> Received:
    """Apply the stream from `fd` below `backing` until it ends or `stop_fd` becomes readable. Blocks, without the GIL.

    Changes the calling thread's umask and file-system user: give it a thread of its own.
    """
    ffi, lib = library()
    config, result = ffi.new("struct receiver_config *"), ffi.new("struct receiver_result *")
    root = os.open(backing, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        config.backing, config.fd, config.stop_fd = root, fd, stop_fd
        config.tls = tls.handle if tls else ffi.NULL
        config.session, config.epoch, config.silence_ms = session, epoch, silence_ms
        lib.receiver_run(config, result)
    finally:
        os.close(root)
    text = ffi.string(result.text).decode(errors="replace")
    return Received(result.code, text, result.seq, result.frames, result.bytes, result.syncs)
