# SPDX-License-Identifier: Apache-2.0
"""`farmctl weight`: a node's share of the clients."""

from __future__ import annotations

from typing import Annotated

import typer

from farmd.cli.output import envelope, say, say_json, table, warn
from farmd.cli.session import NodeArgument, Session, verb
from farmd.model.answers import GroupShare
from farmd.model.errors import NotFound
from farmd.model.nodes import MAX_WEIGHT


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    verb(app)(weight)


def weight(
    session: Session,
    node: NodeArgument,
    value: Annotated[
        int | None, typer.Argument(metavar="N", min=0, max=MAX_WEIGHT, help="The new weight; 0 takes no new clients")
    ] = None,
    group: Annotated[str | None, typer.Option("--group", help="Only in this group")] = None,
) -> None:
    """Show the weight of NODE, or set it to N.

    Clients are shared in proportion to the weights; established connections stay where they are. The weight lasts
    until it is set again; farm.toml is not changed.
    """
    if value is None:
        _show(session, node, group)
        return
    answer = session.client().set_weight(node, value, group)
    if session.json:
        say_json(answer.raw)
    else:
        warn(answer.warnings)
        say(answer.data["text"])


def _show(session: Session, node: str, group: str | None) -> None:
    answer = session.client().status()
    members = {member["name"]: member for member in answer.data["members"]}
    if node not in members:
        raise NotFound(f"node {node}", "the farm has no such member", f"It has {', '.join(members)}")
    shares = [share for share in members[node]["groups"] if group in (None, share["group"])]
    if group is not None and not shares:
        raise NotFound(
            f"group {group}", f"{node} serves no such group", f"Use one of {', '.join(answer.data['groups'])}"
        )
    if session.json:
        data = {"member": node, "groups": shares}
        say_json(envelope("MemberWeights", data, node=answer.node, warnings=answer.warnings))
        return
    warn(answer.warnings)
    head = ("GROUP", "WEIGHT", "NOW", "BUCKETS", "SHARE")
    say(table(head, [_row(share) for share in shares], right=head[1:], style=session.style))


def _row(share: GroupShare) -> tuple[str, ...]:
    numbers = (share["weight"], share["effective_weight"], share["buckets"])
    return (share["group"], *map(str, numbers), f"{share['share']:.1%}")
