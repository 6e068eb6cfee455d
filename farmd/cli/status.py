# SPDX-License-Identifier: Apache-2.0
"""`farmctl status`: is it healthy, and if not, what and since when."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from farmd.cli.errors import Unhealthy
from farmd.cli.output import Style, age, duration, note, say, say_json, table, warn
from farmd.cli.session import Session, verb
from farmd.model.answers import FarmStatus, MemberData, RuleData
from farmd.model.config import Delivery
from farmd.model.errors import DaemonUnreachable, FarmError, TimedOut
from farmd.model.nodes import MemberState, Role

if TYPE_CHECKING:
    from farmd.client import Answer

_DEFAULT_WATCH_S = 2.0
_POLL_S = 0.25
_CLEAR_SCREEN = "\x1b[H\x1b[2J"

_STATE_COLOURS = {
    "UP": "green",
    "DRAINING": "yellow",
    "DRAINED": "yellow",
    "JOINING": "yellow",
    "LEFT": "yellow",
    "FAILED": "red",
    "UNSEEN": "red",
}
_GOOD_STATES = (MemberState.UP, MemberState.DRAINING, MemberState.DRAINED)
_MARKS = {"error": ("!!", "red"), "warning": ("!", "yellow")}


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    verb(app, "status")(show)


def spell_out_watch(arguments: Sequence[str]) -> Iterator[str]:
    """Give `--watch` its value when none was written after it: our option parser knows no optional values."""
    for index, argument in enumerate(arguments):
        if argument in ("--", "exec"):  # what follows belongs to another program
            yield from arguments[index:]
            return
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        bare = argument == "--watch" and not re.fullmatch(r"[0-9.]+", following)
        yield f"--watch={_DEFAULT_WATCH_S:g}" if bare else argument


def show(
    session: Session,
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="[SECONDS]", min=0.1, help="Show it again every 2 (or so many) seconds"),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the farm is healthy; exit 3 if it does not become so")
    ] = False,
    wait_duration: Annotated[
        float, typer.Option("--wait-duration", metavar="SECONDS", min=0, help="How long --wait waits")
    ] = 300,
    check: Annotated[bool, typer.Option("--check", help="Exit 3 if the farm is not healthy")] = False,
) -> None:
    """Show the farm as this node sees it, problems first.

    Healthy means: every configured serving member is up, or drained on request, and this node's lease is valid.
    """
    if watch is not None:
        _watch(session, watch)
    answer = _wait_until_healthy(session, wait_duration) if wait else session.client().status()
    _print(session, answer)
    reasons = unhealthy(answer.data)
    if reasons and (wait or check):
        waited = f" after {duration(wait_duration)}" if wait else ""
        raise Unhealthy(f"farm {answer.data['farm']}", f"not healthy{waited}: {'; '.join(reasons)}", _next_step(answer))


def unhealthy(status: FarmStatus) -> list[str]:
    """Why the farm is not healthy, seen from the node that answered; empty if it is."""
    reasons = []
    if status["view"] is None or not status["view"]["started"]:
        reasons.append("no view has started")
    me = next((member for member in status["members"] if member["self"]), None)
    if not status["lease"]["valid"] and (me is None or me["role"] == Role.NODE):
        reasons.append("this node has no lease")
    for member in status["members"]:
        if member["role"] == Role.NODE and member["state"] not in _GOOD_STATES:
            reasons.append(f"{member['name']} is {member['state']}")
    return reasons


def render(answer: Answer[FarmStatus], style: Style) -> str:
    """The status as text."""
    status, now = answer.data, answer.generated_at
    blocks = [_headline(answer, style), _problems(status, style), _facts(status, now), _members(status, now, style)]
    if status["rules"]:
        head = ("RULE", "VIP", "PORT", "AFFINITY", "GROUP")
        rows = [
            (rule["name"], rule["vip"], f"{_ports(rule)}/{rule['protocol']}", rule["affinity"], rule["group"])
            for rule in status["rules"]
        ]
        blocks.append(table(head, rows))
    return "\n\n".join(block for block in blocks if block)


def _ports(rule: RuleData) -> str:
    return rule.get("ports", str(rule["port"]))  # a farmd that knows no ranges does not say


def _headline(answer: Answer[FarmStatus], style: Style) -> str:
    status = answer.data
    reasons = unhealthy(status)
    verdict = style("healthy", "green") if not reasons else style("NOT HEALTHY", "red") + f": {'; '.join(reasons)}"
    return f"farm {style(status['farm'], 'bold')} as {answer.node} sees it ({status['phase']}): {verdict}"


def _problems(status: FarmStatus, style: Style) -> str:
    ordered = sorted(status["problems"], key=lambda problem: problem["severity"] != "error")
    lines = []
    for problem in ordered:
        mark, colour = _MARKS.get(problem["severity"], ("!", "yellow"))
        lines.append(f"{style(f'{mark:<2}', colour)} {problem['text']}")
        lines.append(f"   -> {problem['next_step']}")
    return "\n".join(lines)


def _facts(status: FarmStatus, now: str) -> str:
    view, lease = status["view"], status["lease"]
    if view is None:
        seen = "none yet"
    else:
        since = f" {age(view['since'], now)} ago" if view["since"] else ""
        seen = f"epoch {view['epoch']}, {'started' if view['started'] else 'not started, proposed'}{since}"
    outside = status["delivery"] == Delivery.EXTERNAL
    over = "over: the health URLs of this node say 503" if outside else "over: this node accepts nothing"
    left = f"valid, {duration(lease['left_seconds'])} left" if lease["valid"] else over
    facts = [
        ("view", seen),
        ("lease", left),
        ("profile", f"{status['profile']}{'' if status['exclusive'] else ', exclusive=false'}"),
        ("delivery", status["delivery"]),
        ("VIPs", ", ".join(status["vips"])),
        ("filter", "none: a load balancer outside decides, by the health URLs" if outside else ""),
        ("health", status.get("health", "")),
    ]
    for attached in status["filter"]:
        how = f"{attached['interface']} {attached['mode']}"
        facts.append(("filter", f"{how} ({attached['reason']})" if attached["reason"] else how))
    return "\n".join(f"  {name:<9} {text}" for name, text in facts if text)


def _members(status: FarmStatus, now: str, style: Style) -> str:
    groups = status["groups"]
    single = len(groups) == 1
    witness = any(member["role"] != Role.NODE for member in status["members"])
    weight_heads = ["WEIGHT" if single else f"WEIGHT:{group}" for group in groups]
    share_heads = ["SHARE" if single else f"SHARE:{group}" for group in groups]
    pairs = [head for both in zip(weight_heads, share_heads, strict=True) for head in both]
    head = ["NODE", *(["ROLE"] if witness else []), "STATE", "SINCE", *pairs, "CONNS", "HELD", "HEARD"]
    rows = [
        [
            member["name"],
            *([member["role"]] if witness else []),
            member["state"].upper(),
            age(member["since"], now),
            *_shares(member, groups),
            _number(member["connections"]),
            _number(member["held_connections"]),
            _heard(member),
        ]
        for member in status["members"]
    ]
    return table(head, rows, right=[*pairs, "CONNS", "HELD"], style=style, colours=_STATE_COLOURS)


def _shares(member: MemberData, groups: Sequence[str]) -> Iterator[str]:
    by_name = {share["group"]: share for share in member["groups"]}
    for group in groups:
        share = by_name.get(group)
        if share is None:
            yield from ("", "")
            continue
        configured, effective = share["weight"], share["effective_weight"]
        yield str(configured) if configured == effective else f"{effective}({configured})"
        yield f"{share['share']:.1%}"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _heard(member: MemberData) -> str:
    if member["self"]:
        return "self"
    heard = member["last_heard_seconds"]
    return "never" if heard is None else duration(round(heard, 2))


def _print(session: Session, answer: Answer[FarmStatus], *, stream: bool = False) -> None:
    if session.json:
        say_json(answer.raw, stream=stream)
    else:
        warn(answer.warnings)
        say(render(answer, session.style))


def _watch(session: Session, every_s: float) -> None:
    client, style = session.client(), session.style
    while True:
        try:
            answer = client.status()
        except (DaemonUnreachable, TimedOut) as error:
            # A daemon that restarts is a thing to watch, not a reason to stop watching.
            note(f"farmctl: {error}")
        else:
            if not session.json:
                say(_CLEAR_SCREEN if style.colour else "")
            _print(session, answer, stream=True)
        time.sleep(every_s)


def _wait_until_healthy(session: Session, wait_s: float) -> Answer[FarmStatus]:
    """The first healthy status, or the last one when the time is up; if there was none, the reason for that."""
    client = session.client()
    deadline = time.monotonic() + wait_s
    told = ""
    while True:
        failure: FarmError | None = None
        try:
            answer = client.status()
            text = "; ".join(unhealthy(answer.data))
        except (DaemonUnreachable, TimedOut) as error:
            failure, text = error, f"farmd does not answer yet ({error.cause})"
        if not text:
            return answer
        if time.monotonic() >= deadline:
            if failure is not None:
                raise failure
            return answer
        if text != told:
            note(f"waiting: {text}")
            told = text
        time.sleep(_POLL_S)


def _next_step(answer: Answer[FarmStatus]) -> str:
    problems = answer.data["problems"]
    return problems[0]["next_step"] if problems else "See `farmctl events` for what happened"
