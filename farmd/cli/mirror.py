# SPDX-License-Identifier: Apache-2.0
"""`farmctl mirror`: directories replicated between two nodes."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from farmd.cli.errors import Unhealthy
from farmd.cli.mirrordirs import directories_of
from farmd.cli.mirrorshow import bar, findings, for_the_other, stopped, summary
from farmd.cli.output import envelope, note, say, say_json, warn
from farmd.cli.session import Session, verb
from farmd.model.errors import DaemonUnreachable, FarmError, TimedOut
from farmd.model.mirrorfile import (
    DEFAULT_STATE,
    FILE,
    SOCKET,
    MirrorConfig,
    as_file,
    check,
    clash,
    load,
    save,
    size,
)

if TYPE_CHECKING:
    from farmd.client import Answer

    Raw = Answer[dict[str, Any]]

T = TypeVar("T")
_app = typer.Typer(help="Directories replicated between two nodes. Needs root.", rich_markup_mode=None)
_POLL_S = 0.2
_START_S = 20.0
_ORDER_S = 60.0

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The mirror's name")]
StateOption = Annotated[
    Path, typer.Option("--state", envvar="FARMCTL_MIRRORS", help="Folder of this node's mirrors", show_default=True)
]
ForceOption = Annotated[bool, typer.Option("--force", help="Also if programs have files open there")]


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    app.add_typer(_app, name="mirror")
    for function in (keygen, create, start, stop, status, promote, demote, swap, resync, verify, diff):
        verb(_app)(function)


@_app.callback(invoke_without_command=True)
def _mirror_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        say(context.get_help())


def keygen(
    session: Session,
    name: NameArgument,
    out: Annotated[Path, typer.Option("--out", help="A folder that does not exist yet")],
) -> None:
    """Make an authority of the mirror's own, and keys for both nodes and a witness.

    Copy OUT/node-1 to node 1, OUT/node-2 to node 2, and give each to `create --keys`. The authority's key is not kept.
    """
    from farmd.mirrord.keys import make

    folders = make(out, name)
    _tell(session, "MirrorKeys", {"folders": [str(folder) for folder in folders]}, f"keys are in {out}")


def create(
    session: Session,
    name: NameArgument,
    directory: Annotated[
        list[str],
        typer.Option("--directory", metavar="[NAME=]PATH", help="What to replicate; it must exist; repeatable"),
    ],
    node: Annotated[int, typer.Option("--node", help="1 or 2: which of the two this is")],
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where this node is reached")],
    peer: Annotated[str, typer.Option("--peer", metavar="HOST:PORT", help="Where the other node is reached")],
    identity: Annotated[
        str | None, typer.Option("--id", help="On the second node: what create said on the first")
    ] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="This node's folder of `mirror keygen`")] = None,
    no_tls: Annotated[bool, typer.Option("--no-tls", help="Neither encrypt nor authenticate: a private link")] = False,
    arbiter: Annotated[str, typer.Option("--arbiter", help="operator, file:/PATH or witness:HOST:PORT")] = "operator",
    ack: Annotated[str, typer.Option("--ack", help="strict, barrier or async")] = "strict",
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="[NAME:]PATTERN", help="What stays on its node: '*.tmp', /below; repeatable"),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="SIZE", help="Replicate one file with an ext4 in it, e.g. 20G")
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Write down this node's part of a new mirror. Nothing starts yet.

    Give both nodes the same --exclude and --image. With --image the directory must be empty: the first node makes the
    image in it, which is mounted there while a node is primary; the second gets it by replication.

    Several directories, on any file systems, are one mirror: one order of writes, one state, one promotion. Each has a
    name (unless told, the last part of its path) that must be the same on both nodes; its place may differ.
    """
    if (keys is None) != no_tls:
        raise typer.BadParameter("give --keys FOLDER, or --no-tls for a private link")
    config = MirrorConfig(
        name=name,
        mirror=identity or secrets.token_hex(16),
        node=node,
        directories=directories_of(directory, exclude or [], size(image) if image else 0),
        listen=listen,
        peer=peer,
        arbiter=arbiter,
        ack=ack,
        keys=str(keys.resolve()) if keys else None,
    )
    _see_that_it_can_be_made(config, state)
    if config.image_bytes and identity is None:
        from farmd.mirrord.image import make as make_image

        make_image(Path(config.directory), config.image_bytes)
    save(state / name, config)
    text = f"mirror {name} is created"
    if identity is None:
        text += f". On node {config.other}:\n  {for_the_other(config)}"
    _tell(session, "Mirror", as_file(config), text)


def _see_that_it_can_be_made(config: MirrorConfig, state: Path) -> None:
    """Before anything is written. Raises FarmError."""
    check(config)
    if config.keys:
        from farmd.mirrord.keys import Keys

        Keys(Path(config.keys)).check(config.node)
    if (state / config.name / FILE).exists():
        save(state / config.name, config)  # which refuses
    if (refused := clash(config, state)) is not None:
        raise refused


def start(session: Session, name: NameArgument, state: StateOption = DEFAULT_STATE) -> None:
    """Start this node's process of the mirror. It becomes primary only by `promote`, secondary by itself."""
    import subprocess

    load(state / name)
    client = _client(session, state, name)
    with (state / name / "log").open("ab") as log:
        before = log.tell()
        command = [sys.executable, "-m", "farmd.mirrord", str(state / name)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            said = (state / name / "log").read_bytes()[before:].decode(errors="replace").strip().splitlines()
            step = f"See {state / name / 'log'}"
            raise FarmError(f"mirror {name}", f"it did not start: {said[-1] if said else 'no word'}", step)
        try:
            answer = client.mirror()
        except (DaemonUnreachable, TimedOut):
            time.sleep(0.05)
            continue
        if answer.data["role"] != "starting":
            _tell(session, "MirrorStatus", answer.data, f"mirror {name} runs: {answer.data['why']}")
            return
    raise TimedOut(f"mirror {name}", f"it does not answer after {_START_S:g} s", f"See {state / name / 'log'}")


def stop(session: Session, name: NameArgument, force: ForceOption = False, state: StateOption = DEFAULT_STATE) -> None:
    """End this node's part. A primary resigns first: both copies stay as they were acknowledged."""
    _order(session, state, name, "stop", {"force": force})
    end = time.monotonic() + _START_S
    while (state / name / SOCKET).exists() and time.monotonic() < end:
        time.sleep(0.05)


def status(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One mirror; without, all of this node")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 3 if it is not in sync")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Role, generation, in sync or not and why, lag, what changed since the peer went, how far a resync is."""
    names = [name] if name else sorted(path.parent.name for path in state.glob(f"*/{FILE}"))
    wrong = []
    for each in names:
        try:
            answer = _client(session, state, each).mirror().raw
            answer["warnings"] = [*answer["warnings"], *_unseen(answer["data"])]
        except DaemonUnreachable:
            if name:
                raise
            answer = envelope("MirrorStatus", stopped(load(state / each)))
        if session.json:
            say_json(answer, stream=len(names) > 1)
        else:
            say(summary(answer["data"]))
            warn(answer["warnings"])
        if not answer["data"]["in_sync"]:
            wrong.append((each, answer["data"]["why"]))
    if not names:
        note(f"farmctl: no mirror is below {state}")
    if check and wrong:
        causes = "; ".join(f"{each}: {why}" for each, why in wrong[1:])
        cause = wrong[0][1] + (f". Also {causes}" if causes else "")
        raise Unhealthy(f"mirror {wrong[0][0]}", cause, "See `farmctl mirror status`")


def promote(
    session: Session,
    name: NameArgument,
    accept: Annotated[
        str, typer.Option("--accept", help="A loss you accept: first, stale or inconsistent; see the refusal")
    ] = "nothing",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Make this node primary: its directory can be written.

    Refused when its copy is stale or half-synced; the refusal says what would be lost. A new mirror begins with
    `--accept first` on the node that has the files.
    """
    _order(session, state, name, "promote", {"accept": accept})
    warn(_unseen(_client(session, state, name).mirror().data))


def _unseen(data: dict[str, Any]) -> list[str]:
    from farmd.mirrord.mounts import unseen

    return unseen(data["mounted"])


def demote(
    session: Session, name: NameArgument, force: ForceOption = False, state: StateOption = DEFAULT_STATE
) -> None:
    """Stop serving, in the planned way. Nobody is primary afterwards."""
    _order(session, state, name, "demote", {"force": force})


def swap(session: Session, name: NameArgument, force: ForceOption = False, state: StateOption = DEFAULT_STATE) -> None:
    """On the primary: hand over to the other node, which becomes primary."""
    _order(session, state, name, "swap", {"force": force})
    end = time.monotonic() + _START_S
    client = _client(session, state, name)
    while time.monotonic() < end:
        if client.mirror().data["peer"]["primary"]:
            return
        time.sleep(0.05)
    raise TimedOut(f"swap of {name}", "the other node has not said that it is primary", "See its status")


def resync(
    session: Session,
    name: NameArgument,
    give_up: Annotated[
        bool, typer.Option("--give-up", help="On a node that is not primary: forget its copy, take the other's")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return at once")] = False,
    limit: Annotated[
        float | None,
        typer.Option("--limit", metavar="MB/S", help="Only: how fast resyncs send, now and until the node stops"),
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """On the primary: compare everything with the peer and send what differs.

    With `--give-up`, on the side that an administrator gives up after a split brain: its own changes are lost.
    """
    if limit is not None:
        _order(session, state, name, "resync", {"rate_bytes_s": round(limit * 1e6)})
        return
    _order(session, state, name, "resync", {"give_up": give_up})
    if give_up or no_wait:
        return
    client = _client(session, state, name)
    time.sleep(2 * _POLL_S)
    gone = 0.0
    while not (data := client.mirror().data)["in_sync"]:
        gone = 0.0 if data["peer"]["connected"] else gone or time.monotonic()
        if gone and time.monotonic() - gone > _START_S:
            _line(session)
            step = "Start the other node: the resync then begins by itself"
            raise TimedOut(f"resync of {name}", data["trouble"] or data["why"], step)
        _progress(session, data)
        time.sleep(_POLL_S)
    _line(session)
    moved = data["last_resync"] or {}
    _tell(session, "MirrorResync", moved, f"in sync; {moved.get('bytes_moved', 0) / 1e6:,.1f} MB differed")


def verify(
    session: Session,
    name: NameArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Make the other node's copy of those names equal")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """On the primary, while it is in use: compare both copies by checksum and name what differs (exit 3).

    With `--repair` the other node gets this node's copy of what differs; changes are held back for that moment.
    """
    result = _compare(session, state, name, "verify", {"repair": repair})
    errors = result["counters"]["errors"] + result["counters"]["files_changing"]
    if errors or (result["differences"] and not repair):
        cause = f"{result['differences']} names differ, {errors} could not be compared"
        raise Unhealthy(f"mirror {name}", cause, "Run it with --repair, or `farmctl mirror resync` on the primary")


def diff(session: Session, name: NameArgument, state: StateOption = DEFAULT_STATE) -> None:
    """How much a resync from this node to the other would move, and about how long it would take."""
    _compare(session, state, name, "diff")


def _compare(session: Session, state: Path, name: str, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    client = _client(session, state, name)
    number = client.order(what, body or {}).data["job"]
    while True:
        data = client.mirror().data
        job = data["job"]
        if job["number"] != number or job["state"] != "running":
            break
        _progress(session, data)
        time.sleep(_POLL_S)
    _line(session)
    result: dict[str, Any] = job["result"]
    if job["state"] == "failed" or job["number"] != number:
        raise FarmError(f"{what} of {name}", result.get("error", "another one began"), "Try again")
    _tell(session, f"Mirror{what.capitalize()}", result, findings(what, result))
    return result


def _order(session: Session, state: Path, name: str, what: str, body: dict[str, Any]) -> None:
    answer = _client(session, state, name).order(what, body)
    if session.json:
        say_json(answer.raw, stream=what in ("resync",))
    else:
        say(answer.data["text"])


class _MirrorClient:
    """The client of one mirror's node, whose errors speak of the mirror."""

    def __init__(self, session: Session, state: Path, name: str) -> None:
        from farmd.client import Client

        load(state / name)
        self._name = name
        self._client = Client(state / name / SOCKET, max(session.timeout_s, _ORDER_S))

    def mirror(self) -> Raw:
        """As `Client.mirror`."""
        return self._ask(self._client.mirror)

    def order(self, what: str, body: dict[str, Any]) -> Raw:
        """As `Client.order_mirror`."""
        return self._ask(lambda: self._client.order_mirror(what, body))

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except DaemonUnreachable as error:
            step = f"Start it with `farmctl mirror start {self._name}`; its log is beside its socket"
            raise DaemonUnreachable(f"mirror {self._name}", f"it does not run here ({error.cause})", step) from error


def _client(session: Session, state: Path, name: str) -> _MirrorClient:
    return _MirrorClient(session, state, name)


def _progress(session: Session, data: dict[str, Any]) -> None:
    if session.json or not sys.stderr.isatty():
        return
    sys.stderr.write("\r\x1b[K" + bar(data))
    sys.stderr.flush()


def _line(session: Session) -> None:
    if not session.json and sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


def _tell(session: Session, kind: str, data: dict[str, Any], text: str) -> None:
    if session.json:
        say_json(envelope(kind, data))
    else:
        say(text)
