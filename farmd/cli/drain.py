# SPDX-License-Identifier: Apache-2.0
"""`farmctl drain`, `ready`, `leave` and `reload`: change a node without hurting anybody."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from farmd.cli.output import duration, envelope, note, say, say_json, warn
from farmd.cli.session import NodeArgument, Session, verb
from farmd.model.errors import DaemonUnreachable, NotFound, PeerError, TimedOut
from farmd.model.nodes import MemberState

if TYPE_CHECKING:
    from farmd.client import Answer, Client
    from farmd.model.answers import Operation

_POLL_S = 0.5
_AWAY = (MemberState.LEFT, MemberState.FAILED, MemberState.UNSEEN, MemberState.JOINING)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drain is. `connections` is None when the node tells nobody."""

    node: str
    state: str
    connections: int | None

    @property
    def done(self) -> bool:
        """Whether no connection is left, by the node's own count."""
        return self.state == MemberState.DRAINED

    def __str__(self) -> str:
        if self.connections is None:
            return f"{self.node}  {self.state.upper():<8}"
        left = " left" if self.state in (MemberState.DRAINING, MemberState.DRAINED) else ""
        return f"{self.node}  {self.state.upper():<8}  {self.connections} connections{left}"


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    verb(app)(drain)
    verb(app)(ready)
    verb(app)(leave)
    verb(app)(reload)


def drain(
    session: Session,
    node: NodeArgument,
    force: Annotated[bool, typer.Option("--force", help="Also if no other node would serve")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; shown in the events")] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Wait no longer than this (exit 7)")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return at once; the drain goes on")] = False,
) -> None:
    """Give NODE no new clients and wait for its last connection.

    No connection is cut. Prints how many are left whenever that changes. Ctrl-C ends only the waiting; `farmctl ready
    NODE` ends the drain.
    """
    client = session.client()
    _report(session, client.drain(node, force=force, reason=reason), stream=not no_wait)
    if no_wait:
        return
    try:
        _wait(session, client, node, timeout)
    except KeyboardInterrupt:
        note(f"farmctl: the drain of {node} goes on; `farmctl ready {node}` ends it")
        raise


def ready(session: Session, node: NodeArgument) -> None:
    """End the drain of NODE: it takes its share again."""
    _report(session, session.client().ready(node))


def leave(
    session: Session,
    force: Annotated[bool, typer.Option("--force", help="Also if the farm would go dark without it")] = False,
) -> None:
    """Hand over, say goodbye, stop: this node leaves the farm.

    Refused if too few voters would stay, or nobody to serve.
    """
    _report(session, session.client().leave(force=force))


def reload(session: Session) -> None:
    """Put farm.toml as it is now in force on this node, under traffic.

    A file with a mistake is refused and changes nothing. VIPs and rules change without a packet lost; what the nodes
    must agree on (members, keys, timing, groups) makes this node leave the farm and join it again.
    """
    _report(session, session.client().reload())


def _report(session: Session, answer: Answer[Operation], *, stream: bool = False) -> None:
    if session.json:
        say_json(answer.raw, stream=stream)
    else:
        warn(answer.warnings)
        say(answer.data["text"])


def _wait(session: Session, client: Client, node: str, timeout_s: float | None) -> None:
    started = time.monotonic()
    first: Progress | None = None
    last: Progress | None = None
    while True:
        current = _progress(client, node) or last
        if current is not None and current != last:
            _show(session, current)
        first, last = first or current, current
        waited = time.monotonic() - started
        if current is not None and current.done:
            if not session.json:
                say(f"drained in {duration(waited)}")
            return
        if current is not None and current.state in _AWAY:
            _away(first or current, current)
            return
        if timeout_s is not None and waited >= timeout_s:
            left = "an unknown number of" if current is None or current.connections is None else current.connections
            raise TimedOut(
                f"drain of {node}",
                f"{left} connections are left after {duration(timeout_s)}; the drain goes on",
                f"Wait with `farmctl drain {node}`, or end it with `farmctl ready {node}`",
            )
        time.sleep(_POLL_S if timeout_s is None else min(_POLL_S, max(timeout_s - waited, 0)))


def _progress(client: Client, node: str) -> Progress | None:
    """Where the drain stands, None while farmd does not answer: it may be restarted under a drain."""
    try:
        members = client.status().data["members"]
    except (DaemonUnreachable, TimedOut) as error:
        note(f"farmctl: {error}")
        return None
    for member in members:
        if member["name"] == node:
            return Progress(node, member["state"], member["connections"])
    raise NotFound(f"node {node}", "the farm has no such member any more", "See `farmctl status`")


def _show(session: Session, progress: Progress) -> None:
    if session.json:
        data = {"node": progress.node, "state": progress.state, "connections": progress.connections}
        say_json(envelope("DrainProgress", data), stream=True)
    else:
        say(str(progress))


def _away(first: Progress, current: Progress) -> None:
    if first.state not in _AWAY:
        raise PeerError(
            f"drain of {current.node}",
            f"the node went away ({current.state}) before its last connection ended",
            f"It stays drained when it comes back; see `farmctl status` and farmd's log on {current.node}",
        )
    note(f"farmctl: {current.node} is not in the farm ({current.state}); it stays drained when it comes back")
