# SPDX-License-Identifier: Apache-2.0
"""How answers look: aligned tables without lines, relative times, colour that only underlines words, JSON.

stdout carries data and nothing else; everything that talks about the data goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from farmd.model.answers import API_VERSION

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}


@dataclass(frozen=True, slots=True)
class Style:
    """Colours words if `colour` is set, else leaves them as they are."""

    colour: bool = False

    def __call__(self, text: str, name: str | None) -> str:
        """`text` in the colour `name` (red, green, yellow, bold; None = as it is)."""
        return f"\x1b[{_COLOURS[name]}m{text}\x1b[0m" if self.colour and name else text


def wants_colour(environment: Mapping[str, str], no_color: bool) -> bool:
    """Whether stdout may carry colour: a terminal, and nobody said no (https://no-color.org)."""
    return not (no_color or environment.get("NO_COLOR") or environment.get("TERM") == "dumb") and sys.stdout.isatty()


class ReaderGone(Exception):
    """Whoever read our stdout has closed it. Not an OSError, so that nobody on the way up takes it for one."""


def say(text: str) -> None:
    """A line of data. Raises ReaderGone when nobody reads it any more."""
    try:
        print(text, flush=True)
    except BrokenPipeError as error:
        raise ReaderGone from error


def note(text: str) -> None:
    """A remark to the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def warn(warnings: Sequence[str]) -> None:
    """The warnings of an answer."""
    for warning in warnings:
        note(f"farmctl: warning: {warning}")


def say_json(value: Any, *, stream: bool = False) -> None:
    """JSON: indented when it is the whole output, one line when it is part of a stream."""
    say(json.dumps(value, ensure_ascii=False, indent=None if stream else 2))


def envelope(kind: str, data: Any, *, node: str = "", warnings: Sequence[str] = ()) -> dict[str, Any]:
    """What farmctl itself says, in the form of the API's answers. `node` is "" where no farmd was asked."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "generatedAt": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "node": node,
        "warnings": list(warnings),
        "data": data,
    }


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    style: Style | None = None,
    colours: Mapping[str, str] | None = None,
) -> str:
    """Columns two spaces apart; those named in `right` are flush right. A cell found in `colours` gets that colour.

    An empty cell becomes "-", so that every line has as many fields as the head.
    """
    style, colours = style or Style(), colours or {}
    cells = [list(head), *([cell or "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = []
    for number, line in enumerate(cells):
        parts = []
        for name, width, cell in zip(head, widths, line, strict=True):
            blank = " " * (width - len(cell))
            shown = style(cell, colours.get(cell)) if number else cell
            parts.append(blank + shown if name in right else shown + blank)
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time span in its two largest units: 0.41s, 12s, 3m12s, 2h05m, 4d03h."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.3g}s"
    whole = int(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def age(at: str | None, now: str) -> str:
    """How long before `now` the moment `at` was (both RFC 3339); "" if there was none."""
    if at is None:
        return ""
    seconds = (datetime.fromisoformat(now) - datetime.fromisoformat(at)).total_seconds()
    return duration(float(int(seconds)))


def local_clock(at: str) -> str:
    """The time of day of `at` in this machine's zone."""
    return datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S")
