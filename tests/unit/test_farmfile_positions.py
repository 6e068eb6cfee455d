# SPDX-License-Identifier: Apache-2.0
"""Places in a TOML text, however its author writes tables."""

from __future__ import annotations

import pytest

from farmd.model.positions import Part, Path, Place, Positions

TEXT = """\
# a comment with [[rule]] in it
title = "wéb"
[farm]
  name = "a"
"key file" = 3
[[rule]]
port = 1
[[ "rule" ]]
[[rule]] # third
weights = { node1 = 50 }

limits.high = 9
"""


@pytest.mark.parametrize(
    ("path", "part", "place"),
    [
        (("title",), Part.KEY, Place(2, 1)),
        (("title",), Part.VALUE, Place(2, 9)),
        (("farm",), Part.KEY, Place(3, 2)),
        (("farm", "name"), Part.KEY, Place(4, 3)),
        (("farm", "name"), Part.VALUE, Place(4, 10)),
        (("farm", "key file"), Part.KEY, Place(5, 1)),
        (("farm", "missing"), Part.KEY, Place(3, 2)),
        (("rule", 0, "port"), Part.VALUE, Place(7, 8)),
        (("rule", 0, "missing"), Part.KEY, Place(6, 3)),
        (("rule", 1), Part.VALUE, Place(8, 5)),
        (("rule", 2, "weights", "node1"), Part.KEY, Place(10, 13)),
        (("rule", 2, "weights", "node1"), Part.VALUE, Place(10, 21)),
        (("rule", 2, "limits", "high"), Part.VALUE, Place(12, 15)),
        (("rule", 7, "port"), Part.VALUE, Place(6, 3)),
        (("nothing",), Part.KEY, Place(1, 1)),
        ((), Part.KEY, Place(1, 1)),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_places(path: Path, part: Part, place: Place, line_end: str) -> None:
    assert Positions(TEXT.replace("\n", line_end)).find(path, part) == place


def test_an_array_of_inline_tables_needs_no_headers() -> None:
    positions = Positions('rule = [\n  { name = "a" },\n  { nmae = "b" },\n]\n')

    assert positions.find(("rule", 1), Part.VALUE) == Place(3, 3)
    assert positions.find(("rule", 1, "nmae"), Part.KEY) == Place(3, 5)
    assert positions.find(("rule", 1, "name"), Part.KEY) == Place(3, 3)


def test_a_text_that_is_not_toml_has_no_places() -> None:
    with pytest.raises(ValueError, match="Expected"):
        Positions("[farm\n")
