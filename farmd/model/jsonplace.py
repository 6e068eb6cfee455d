# SPDX-License-Identifier: Apache-2.0
"""Where in a JSON text a value stands, so that an error can name its line and column."""

from __future__ import annotations

import json
import re

Place = tuple[str | int, ...]
_BLANK = re.compile(r"[\s,:]*")


class Places:
    """The places of a text that is valid JSON: of each value, by the keys and numbers that lead to it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._decoder = json.JSONDecoder()
        self._offsets: dict[Place, int] = {}
        self._walk(self._skip(0), ())

    def of(self, place: Place) -> tuple[int, int]:
        """Line and column, from 1, of the value at `place`; of what it is missing from if it is not there."""
        while place and place not in self._offsets:
            place = place[:-1]
        offset = self._offsets.get(place, 0)
        return self._text.count("\n", 0, offset) + 1, offset - self._text.rfind("\n", 0, offset)

    def _skip(self, at: int) -> int:
        found = _BLANK.match(self._text, at)
        return found.end() if found else at

    def _walk(self, at: int, place: Place) -> int:
        """Notes the value at `at` and all in it; returns the offset behind it."""
        self._offsets[place] = at
        opening = self._text[at]
        if opening not in "{[":
            return int(self._decoder.raw_decode(self._text, at)[1])
        at, number = self._skip(at + 1), 0
        while self._text[at] not in "}]":
            key: str | int = number
            if opening == "{":
                key, at = self._decoder.raw_decode(self._text, at)
                at = self._skip(at)
            at = self._skip(self._walk(at, (*place, key)))
            number += 1
        return at + 1
