# SPDX-License-Identifier: Apache-2.0
"""Shows a ConfigError to a person: each problem, and below it the line it is about with a caret."""

from __future__ import annotations

import re
from pathlib import Path

from farmd.model.errors import ConfigError, Problem

MAX_WIDTH = 100
_TOKEN = re.compile(r"\"[^\"]*\"|'[^']*'|[^\s=,\[\]{}#\"']+|\S")
"""What to underline at a place: a string, a bare word, or a single character."""


def render(error: ConfigError, text: str | None = None) -> str:
    """All problems with their source lines. `text` is the file as it was read; None reads it again if it can be."""
    sources: dict[str, list[str]] = {}
    blocks = []
    for problem in error.problems:
        if problem.file not in sources:
            sources[problem.file] = (text if text is not None else _read(problem.file)).splitlines()
        blocks.append("\n".join([str(problem), *_excerpt(problem, sources[problem.file])]))
    return "\n".join(blocks)


def _excerpt(problem: Problem, lines: list[str]) -> list[str]:
    if not 1 <= problem.line <= len(lines):
        return []
    # Tabs and control characters would put the caret elsewhere, or worse, talk to the terminal.
    line = "".join(character if character.isprintable() else " " for character in lines[problem.line - 1])
    if not line.strip() or problem.column > MAX_WIDTH:
        return []
    token = _TOKEN.match(line, problem.column - 1)
    width = max(1, min(len(token[0]) if token else 1, MAX_WIDTH - problem.column + 1))
    number = f"{problem.line:>5}"
    return [f"{number} | {line[:MAX_WIDTH]}", f"{'':>5} | {' ' * (problem.column - 1)}{'^' * width}"]


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
