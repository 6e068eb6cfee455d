# SPDX-License-Identifier: Apache-2.0
"""`farmctl doctor`: preflight of this node, its interface and its switch. Works with farmd down."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farmd.cli.errors import Unhealthy
from farmd.cli.output import Style, envelope, note, say, say_json
from farmd.cli.session import Session, verb

if TYPE_CHECKING:
    from farmd.doctor.finding import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    verb(app)(doctor)


def doctor(
    session: Session,
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", readable=False, help="This node's farm.toml")
    ] = Path("/etc/farmd/farm.toml"),
    flood_test: Annotated[
        bool, typer.Option("--flood-test", help="Only test the switch; run it on two nodes or more at the same time")
    ] = False,
    seconds: Annotated[
        float, typer.Option("--for", metavar="SECONDS", min=1, max=600, help="How long the flooding test takes")
    ] = 10,
) -> None:
    """Check whether this server, its interface and its switch are fit for the farm.

    Each finding is ok, warn or fail, with what to do. Needs root, but no farmd, and changes nothing. Exit 0 if nothing
    fails, 3 otherwise.
    """
    from farmd.doctor import examine
    from farmd.doctor.finding import Level, worst
    from farmd.model import farmfile

    settings = farmfile.load(config)
    if flood_test:
        note(f"testing for {seconds:g} s; run the same on another node now")
    findings = list(examine.flooding(settings, seconds) if flood_test else examine.examine(settings))
    level = worst(findings)
    if session.json:
        found = [asdict(finding) for finding in findings]
        say_json(envelope("DoctorReport", {"level": level, "findings": found}, node=settings.me.name))
    else:
        say(render(findings, session.style))
    if level is Level.FAIL:
        failed = sum(finding.level is Level.FAIL for finding in findings)
        cause = f"{failed} check{'' if failed == 1 else 's'} failed"
        raise Unhealthy(settings.me.name, cause, "Do what stands beside them and run the doctor again")


def render(findings: list[Finding], style: Style) -> str:
    """The findings as text, in the order of their asking; each fix on a line of its own."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        level = style(f"{finding.level.upper():<4}", _COLOURS[finding.level])
        lines.append(f"{level}  {finding.check:<{width}}  {finding.text}")
        if finding.fix:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.fix}")
    counts = Counter(finding.level for finding in findings)
    lines.append(", ".join(f"{counts[level]} {level}" for level in counts))
    return "\n".join(lines)
