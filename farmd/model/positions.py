# SPDX-License-Identifier: Apache-2.0
"""Where a key or a value stands in a TOML text. Only used once something is wrong, so it may take its time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Path = tuple[str | int, ...]
"""The way to a value: keys of tables and indices of arrays, as in `("rule", 0, "port")`."""


class Part(StrEnum):
    """What of an entry is meant."""

    KEY = "key"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column, both from 1."""

    line: int
    column: int


class Positions:
    """Finds places in one text that `tomllib` has accepted."""

    def __init__(self, text: str) -> None:
        import spanned_toml

        # Like every TOML reader, spanned-toml counts a line end as one character however it is written.
        self._text = text.replace("\r\n", "\n")
        self._tree: Any = spanned_toml.loads(self._text)

    def find(self, path: Path, part: Part) -> Place:
        """The place of what `path` names; if it is not there (a key is missing), of the table that should have it."""
        offset = 0
        tree = self._tree
        for depth, step in enumerate(path):
            key, value = _child(tree, step)
            if value is None:
                break
            last = depth == len(path) - 1
            if key is not None and ((last and part is Part.KEY) or not _has_span(value)):
                offset = key.span().start
            elif _has_span(value):
                offset = value.span().start
            elif isinstance(step, int):
                offset = self._header(str(path[depth - 1]), step, offset)
            tree = value
        return self._place(offset)

    def _header(self, table: str, index: int, default: int) -> int:
        """Where the name in the `index`-th `[[table]]` header stands: array tables carry no span of their own."""
        headers = re.finditer(rf"^[ \t]*\[\[[ \t]*[\"']?({re.escape(table)})[\"']?[ \t]*\]\]", self._text, re.MULTILINE)
        starts = [match.start(1) for match in headers]
        return starts[index] if index < len(starts) else default

    def _place(self, offset: int) -> Place:
        before = self._text[:offset]
        return Place(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _child(tree: Any, step: str | int) -> tuple[Any, Any]:
    """The spanned key (None in an array) and value below `tree`; (None, None) if there is no such thing."""
    inner = tree.inner() if hasattr(tree, "inner") else tree
    if isinstance(inner, dict) and isinstance(step, str):
        return next(((key, value) for key, value in inner.items() if key.inner() == step), (None, None))
    if isinstance(inner, list) and isinstance(step, int) and step < len(inner):
        return None, inner[step]
    return None, None


def _has_span(value: Any) -> bool:
    span = value.span()
    return bool(span.stop > span.start)
