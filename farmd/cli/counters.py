# SPDX-License-Identifier: Apache-2.0
"""`farmctl counters`: what the filter did with packets, and why."""

from __future__ import annotations

import typer

from farmd.cli.output import say, say_json, table, warn
from farmd.cli.session import Session, verb


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    verb(app)(counters)


def counters(session: Session) -> None:
    """Show what this node's filter did with packets, and why.

    Packets by rule, verdict and reason, since the filter was first loaded.
    """
    answer = session.client().counters()
    if session.json:
        say_json(answer.raw)
        return
    warn(answer.warnings)
    ordered = sorted(answer.data["counters"], key=lambda one: (one["rule"] or "", one["verdict"], one["reason"]))
    rows = [(one["rule"] or "", one["verdict"], one["reason"], str(one["packets"])) for one in ordered]
    say(table(("RULE", "VERDICT", "REASON", "PACKETS"), rows, right=("PACKETS",)))
