# SPDX-License-Identifier: Apache-2.0
"""`farmctl events`: what happened, and what happens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from farmd.cli.output import age, local_clock, note, say, say_json, table, warn
from farmd.cli.session import Session, verb
from farmd.model.errors import DaemonUnreachable, TimedOut

if TYPE_CHECKING:
    from farmd.client import Client
    from farmd.model.answers import EventData

_LONG_POLL_S = 30.0
_PAGE = 1000
_RETRY_S = 1.0
_FEW = 10
"""How many past events `--follow` begins with."""


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    verb(app)(events)


def events(
    session: Session,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on and show events as they happen")] = False,
    after: Annotated[
        int | None, typer.Option("--after", metavar="ID", min=0, help="Only events after this one, oldest first")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            max=_PAGE,
            help="At most N events  [default: 100, or 10 before those to come with -f]",
        ),
    ] = None,
) -> None:
    """Show what happened, as this node saw it, newest last.

    Ids increase also across restarts of farmd.
    """
    client = session.client()
    if follow:
        count = limit or _FEW
        _follow(session, client, -count if after is None else after)
        return
    count = limit or 100
    answer = client.events(-count if after is None else after, count)
    if session.json:
        say_json(answer.raw)
        return
    warn(answer.warnings)
    rows = [
        (str(e["id"]), f"{age(e['at'], answer.generated_at)} ago", e["type"], e["text"]) for e in answer.data["events"]
    ]
    say(table(("ID", "WHEN", "TYPE", "TEXT"), rows, right=("ID",)))


def _follow(session: Session, client: Client, after: int) -> None:
    """Print events for ever. A farmd that is restarted meanwhile costs a remark, no event."""
    page: Sequence[EventData] = client.events(after, _PAGE).data["events"]
    while True:
        _print(session, page)
        after = page[-1]["id"] if page else max(after, 0)
        page = _next(client, after)


def _next(client: Client, after: int) -> Sequence[EventData]:
    told = False
    while True:
        try:
            return client.events(after, _PAGE, _LONG_POLL_S).data["events"]
        except (DaemonUnreachable, TimedOut) as error:
            if not told:
                note(f"farmctl: {error.cause}; waiting for it")
            told = True
            time.sleep(_RETRY_S)


def _print(session: Session, page: Sequence[EventData]) -> None:
    for event in page:
        if session.json:
            say_json(event, stream=True)
        else:
            say(f"{event['id']:>6}  {local_clock(event['at'])}  {event['type']:<20}  {event['text']}")
