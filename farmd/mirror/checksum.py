# SPDX-License-Identifier: Apache-2.0
"""Makes one directory equal to another over a connected stream, by checksums: the thin side of `cext/checksum/`.

A `Run` is one end of one run. Both ends run in processes of their own, each over a descriptor that the caller has
connected (a socket, perhaps one that the kernel encrypts). Everything that is slow happens in C, without Python's lock.

    python -m farmd.mirror.checksum sync|verify|diff SOURCE TARGET [--quick --record PATH] [--json]
    python -m farmd.mirror.checksum serve SOURCE --listen ADDRESS:PORT

A target that is being synced is neither the old nor the new tree: the caller marks it before and unmarks it after.
Nobody else may write to it meanwhile. The source may be in use; what changes under the pass is tried again and then
named, never passed over.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any

from farmd.mirror.checksumwords import address, arguments_parser
from farmd.model.errors import BadRequest, FarmError, PeerError


class Mode(IntEnum):
    """What the target does with what it finds; the numbers are those of `abi.h`."""

    SYNC = 0
    VERIFY = 1
    DIFF = 2


class Pass(IntEnum):
    """Whether contents that both records vouch for are read all the same; `record.h` says when a record may."""

    CONTENTS = 0
    QUICK = 1


class Kind(IntEnum):
    """How a name differs."""

    MISSING = 1
    EXTRA = 2
    TYPE = 3
    DATA = 4
    META = 5
    LINKS = 6
    CHANGING = 7
    """The source changed while it was read, in every round: its copy is not one moment's."""
    UNREADABLE = 8
    """It was not compared: the source cannot read it, or another file system is mounted there."""


PHASES = ("greeting", "comparing directories", "contents", "making durable", "done")


@dataclass(frozen=True, slots=True)
class Options:
    """What one end does. `record` is the path of this end's record, outside of the tree; None: nothing is remembered.
    What `excluded` names (patterns of `farmd.model.exclusions`, alike on both ends) is not there for this end.

    With `only`, nothing but these names is looked at (see `again`); alike on both ends, and without a record.

    Only the target's `mode`, `passes`, `resume` and `probe_bytes` count. `trust_restart` says that the file system was
    cleanly unmounted since the record was written: after a crash that would be a lie, and could hide a difference.
    """

    root: Path
    record: Path | None = None
    mode: Mode = Mode.SYNC
    passes: Pass = Pass.CONTENTS
    only: tuple[bytes, ...] | None = None
    threads: int = 2
    timeout_s: float = 30.0
    resume: bool = False
    trust_restart: bool = False
    rate_bytes_s: int = 0
    probe_bytes: int = 0
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """The counters of one end at one moment. `files_differing` counts findings, `bytes_differing` contents to move."""

    phase: int
    files_seen: int
    bytes_hashed: int
    bytes_compared: int
    bytes_to_compare: int
    files_differing: int
    bytes_differing: int
    bytes_sent: int
    bytes_received: int
    dirs_seen: int
    dirs_differing: int
    dirs_listed: int
    dirs_done: int
    files_deleted: int
    files_changing: int
    errors: int
    probe_ns: int
    scan_ns: int
    recorded: int

    @property
    def share(self) -> float:
        """How much of the second phase is done, 0 to 1, on the target: what is listed stands for what is not yet."""
        if self.phase < 2 or not self.dirs_listed:
            return 0.0
        if not self.bytes_to_compare:
            return min(1.0, self.dirs_done / self.dirs_differing)
        return min(1.0, self.bytes_compared / self.bytes_to_compare * self.dirs_listed / self.dirs_differing)


@dataclass(frozen=True, slots=True)
class Finding:
    """One name that differs. `path` is below the directory, empty for the directory itself; bytes, as on disk."""

    kind: Kind
    path: bytes
    error: int

    @property
    def text(self) -> str:
        """For people: bytes that are no text are shown as escapes."""
        shown = self.path.decode(errors="backslashreplace") or "."
        return f"{self.kind.name.lower()}: {shown}" + (f" ({os.strerror(self.error)})" if self.error else "")


_HEAD = struct.Struct("=III")
_PEER_ERRORS = {errno.EPROTO, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT}
_NEXT_STEPS = {
    errno.ENOSPC: "Free space there, then run it again: what was copied is kept",
    errno.EDQUOT: "Raise the quota, then run it again: what was copied is kept",
    errno.ECANCELED: "Run it again: what was copied is kept",
    errno.EPROTO: "Nothing of that frame was used; see that both ends run the same farmd, then run it again",
}


class Run:
    """One end of one run: `source` or `target` blocks; the rest may be called from other threads meanwhile."""

    def __init__(self, options: Options) -> None:
        from farmd._checksum import ffi, lib

        self._options = options
        self._ffi, self._lib = ffi, lib
        self._progress = self._ffi.new("struct checksum_progress *")
        self._progress.rate_bytes_s = options.rate_bytes_s
        self._report = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (it lives as long as the run)

    def source(self, in_fd: int, out_fd: int) -> Progress:
        """Answer a target until it is done. Raises FarmError."""
        return self._run(self._lib.checksum_run_source, in_fd, out_fd)

    def target(self, in_fd: int, out_fd: int) -> Progress:
        """Compare, or become equal. Raises FarmError; the target may then be half of each, and can be run again."""
        return self._run(self._lib.checksum_run_target, in_fd, out_fd)

    def progress(self) -> Progress:
        """The counters now."""
        return Progress(**{field.name: int(getattr(self._progress, field.name)) for field in fields(Progress)})

    def stop(self) -> None:
        """End soon; the run raises FarmError."""
        self._progress.stop = 1

    def limit(self, rate_bytes_s: int, read_bytes_s: int = 0) -> None:
        """What a source sends of contents from now on, and what this side reads of them; 0: no limit."""
        self._progress.rate_bytes_s, self._progress.read_bytes_s = rate_bytes_s, read_bytes_s

    def findings(self) -> Iterator[Finding]:
        """What was found so far, in no order. A sync names what it made equal, too."""
        fd = self._report.fileno()
        offset = 0
        while len(head := os.pread(fd, _HEAD.size, offset)) == _HEAD.size:
            length, kind, code = _HEAD.unpack(head)
            yield Finding(Kind(kind), os.pread(fd, length, offset + _HEAD.size), code)
            offset += _HEAD.size + length

    def close(self) -> None:
        """Forget the findings."""
        self._report.close()

    def _run(self, function: Any, in_fd: int, out_fd: int) -> Progress:
        options, ffi = self._options, self._ffi
        try:
            root = os.open(options.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            cause = error.strerror or "it cannot be opened"
            raise BadRequest(str(options.root), cause, "Name a directory") from error
        record = ffi.NULL if options.record is None else ffi.new("char[]", os.fsencode(options.record))
        wanted = ffi.new("struct checksum_options *")
        wanted.root_fd, wanted.in_fd, wanted.out_fd, wanted.report_fd = root, in_fd, out_fd, self._report.fileno()
        wanted.record_path, wanted.mode = record, int(options.mode)
        setattr(wanted, "pass", int(options.passes))  # a word of Python's own
        wanted.threads, wanted.timeout_ms = options.threads, int(options.timeout_s * 1000)
        wanted.resume, wanted.trust_restart = options.resume, options.trust_restart
        wanted.probe_bytes = options.probe_bytes
        excluded = ffi.new("char[]", b"\n".join(map(os.fsencode, options.excluded)))
        wanted.excluded = excluded
        only = b"".join(path + b"\0" for path in options.only or ())
        names = ffi.from_buffer(only)
        if options.only is not None:
            wanted.only, wanted.only_bytes = names, len(only)
        failure = ffi.new("struct checksum_error *")
        try:
            failed = function(wanted, self._progress, failure)
        finally:
            os.close(root)
        if failed:
            raise _error(str(options.root), int(failure.code), os.fsdecode(ffi.string(failure.text)))
        return self.progress()


def _error(subject: str, code: int, text: str) -> FarmError:
    step = _NEXT_STEPS.get(code, "Mend that, then run it again: what was copied is kept")
    return (PeerError if code in _PEER_ERRORS else FarmError)(subject, text, step)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, for people and for `--json`."""

    mode: Mode
    progress: Progress
    findings: tuple[Finding, ...]
    seconds: float
    probe_bytes: int = 0

    @property
    def complete(self) -> bool:
        """Everything could be read, and nothing changed meanwhile."""
        return self.progress.errors == 0 and self.progress.files_changing == 0

    @property
    def equal(self) -> bool:
        """The target equals the source now."""
        return self.complete and (self.mode is Mode.SYNC or self.progress.files_differing == 0)

    @property
    def estimate_s(self) -> float | None:
        """`diff` only: how long a sync would take, if the link stays as the probe found it."""
        if self.mode is not Mode.DIFF or not self.probe_bytes:
            return None
        link = self.progress.bytes_differing * self.progress.probe_ns / self.probe_bytes / 1e9
        return round(self.seconds - self.progress.probe_ns / 1e9 + link, 3)

    def as_json(self) -> dict[str, Any]:
        """Paths that are not UTF-8 carry their bytes as lone surrogates, as Python's own file names do."""
        return {
            "mode": self.mode.name.lower(),
            "equal": self.equal,
            "complete": self.complete,
            "seconds": round(self.seconds, 3),
            "estimate_s": self.estimate_s,
            "findings": [
                {"kind": one.kind.name.lower(), "path": os.fsdecode(one.path), "errno": one.error}
                for one in self.findings
            ],
            **asdict(self.progress),
        }


def bar(progress: Progress, seconds: float) -> str:
    """One line while a run goes on: phase, share, speed, time to go."""
    share = progress.share
    if not share:
        return f"{PHASES[progress.phase]}: {progress.files_seen:,} names, {progress.bytes_hashed / 1e6:,.0f} MB read"
    to_go = f"{seconds / share - seconds:,.0f} s to go" if share > 0.01 else "time unknown"
    filled = "#" * round(20 * share)
    moved = f"{progress.bytes_differing / 1e6:,.0f} MB differed"
    return f"{PHASES[progress.phase]} [{filled:<20}] {share:4.0%} {progress.files_differing:,} names, {moved}, {to_go}"


def _watch(run: Run, done: threading.Event, since: float) -> None:
    while not done.wait(0.5):
        sys.stderr.write("\r\x1b[K" + bar(run.progress(), time.monotonic() - since))
        sys.stderr.flush()
    sys.stderr.write("\r\x1b[K")


def _run_target(options: Options, fd: int, show: bool) -> Outcome:
    run, done, since = Run(options), threading.Event(), time.monotonic()
    watcher = threading.Thread(target=_watch, args=(run, done, since))
    if show:
        watcher.start()
    try:
        progress = run.target(fd, fd)
        found = tuple(run.findings())
    finally:
        done.set()
        if show:
            watcher.join()
        run.close()
    return Outcome(options.mode, progress, found, time.monotonic() - since, options.probe_bytes)


def _connect(source: str, stack: ExitStack, options: Options) -> socket.socket:
    """A stream to the source: `tcp://ADDRESS:PORT`, or a child process for a directory of this machine."""
    if source.startswith("tcp://"):
        place = address(source.removeprefix("tcp://"))
        connection = stack.enter_context(socket.create_connection(place, options.timeout_s))
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        try:
            Run(options).source(theirs.fileno(), theirs.fileno())
        except FarmError:
            os._exit(1)  # the target has heard why
        os._exit(0)
    theirs.close()
    stack.callback(os.waitpid, child, 0)
    return stack.enter_context(ours)


def _options(arguments: argparse.Namespace, root: Path, end: str) -> Options:
    mode = {"sync": Mode.SYNC, "verify": Mode.VERIFY, "diff": Mode.DIFF}.get(arguments.verb, Mode.SYNC)
    return Options(
        root=root,
        record=Path(f"{arguments.record}.{end}") if arguments.record else None,
        mode=mode,
        passes=Pass.QUICK if getattr(arguments, "quick", False) else Pass.CONTENTS,
        threads=arguments.threads,
        timeout_s=arguments.timeout,
        resume=getattr(arguments, "resume", False),
        rate_bytes_s=arguments.rate,
        probe_bytes=arguments.probe if mode is Mode.DIFF else 0,
        excluded=tuple(arguments.exclude),
    )


def _say(outcome: Outcome) -> None:
    verb = {Mode.SYNC: "made equal", Mode.VERIFY: "differs", Mode.DIFF: "differs"}[outcome.mode]
    for one in outcome.findings:
        sys.stdout.write(f"{one.text}\n")
    moved = outcome.progress.bytes_differing / 1e6
    sys.stdout.write(f"{outcome.progress.files_seen:,} names looked at in {outcome.seconds:.2f} s; ")
    sys.stdout.write(f"{verb}: {outcome.progress.files_differing:,} names, {moved:,.1f} MB\n")
    if outcome.estimate_s is not None:
        sys.stdout.write(f"a sync would take about {outcome.estimate_s:,.1f} s\n")
    if not outcome.complete:
        sys.stdout.write("not complete: see `unreadable` and `changing` above\n")


def _serve(arguments: argparse.Namespace) -> int:
    with socket.create_server(address(arguments.listen)) as server:
        sys.stderr.write(f"waiting for one target on {arguments.listen}\n")
        sys.stderr.flush()
        connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Run(_options(arguments, arguments.source, "source")).source(connection.fileno(), connection.fileno())
    return 0


def main(words: list[str] | None = None) -> int:
    """0: equal. 1: different, or not everything could be compared. 2: it failed, and standard error says why."""
    arguments = arguments_parser().parse_args(words)
    try:
        if arguments.verb == "serve":
            return _serve(arguments)
        with ExitStack() as stack:
            source_root = Path(".") if arguments.source.startswith("tcp://") else Path(arguments.source)
            connection = _connect(arguments.source, stack, _options(arguments, source_root, "source"))
            show = sys.stderr.isatty() and not arguments.json
            outcome = _run_target(_options(arguments, arguments.target, "target"), connection.fileno(), show)
        if arguments.json:
            sys.stdout.write(json.dumps(outcome.as_json()) + "\n")
        else:
            _say(outcome)
        return 0 if outcome.equal else 1
    except (FarmError, OSError) as error:
        sys.stderr.write(f"checksum: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
