# SPDX-License-Identifier: Apache-2.0
"""`farmctl demo`: the whole story on this machine, with what it measured."""

from __future__ import annotations

import typer

from farmd.cli.session import Session, verb


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    verb(app)(demo)


def demo(session: Session) -> None:
    """Build a farm here, break it under load, show what clients saw.

    Three nodes in network namespaces serve one VIP; one is drained, one is killed, one is frozen. Exit 0 only if every
    promise held. Needs root; leaves nothing behind, also after Ctrl-C.
    """
    from farmd.lab.demo import run

    raise typer.Exit(run(json_output=session.json))
