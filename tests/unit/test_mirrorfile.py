# SPDX-License-Identifier: Apache-2.0
"""A mirror's file: written and read back, and every mistake in it named by line and column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farmd.model.errors import ConfigError
from farmd.model.jsonplace import Places
from farmd.model.mirrorfile import MirrorConfig, as_file, check, load, parse, save

GOOD = MirrorConfig("db", "0" * 32, 1, "/srv/db", "192.0.2.1:7800", "192.0.2.2:7800", exclude=("*.tmp", "/a/b"))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    save(tmp_path / "db", check(GOOD))
    assert load(tmp_path / "db") == GOOD
    assert json.loads((tmp_path / "db/mirror.json").read_text())["directories"][0]["exclude"] == ["*.tmp", "/a/b"]


def _lines(**changes: object) -> str:
    return json.dumps(as_file(GOOD) | changes, indent=2)


def _where(text: str) -> list[tuple[int, int, str]]:
    with pytest.raises(ConfigError) as caught:
        parse("mirror.json", text)
    return [(each.line, each.column, each.cause) for each in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "at", "cause"),
    [
        (_lines(node=3), '"node": 3', "1 and 2"),
        (_lines(ack="later"), '"ack": "later"', "strict, barrier"),
        (_lines(peer="nowhere"), '"peer": "nowhere"', "HOST:PORT"),
        (_lines(node="one"), '"node": "one"', "whole number"),
        (_lines(node=True), '"node": true', "whole number"),
        (_lines(colour=1), '"colour": 1', "not known"),
        (_lines(directories=[{"path": "srv"}]), '"path": "srv"', "begin with /"),
        (_lines(directories=[{"path": "/a", "exclude": ["*.x", "a/../b"]}]), '"a/../b"', "'..'"),
        (_lines(directories=[{"path": "/a", "exclude": "x"}]), '"exclude": "x"', "list of patterns"),
        (_lines(directories=[{"path": "/a", "image_bytes": 5}]), '"image_bytes": 5', "16 MiB"),
    ],
)
def test_a_mistake_is_named_by_its_line_and_column(text: str, at: str, cause: str) -> None:
    ((line, column, said),) = _where(text)
    offset = text.index(at) + (at.index(": ") + 2 if ": " in at else 0)
    assert cause in said
    assert (line, column) == (text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))


def test_several_directories_are_refused_where_they_stand() -> None:
    text = _lines(directories=[{"path": "/a"}, {"path": "/b"}])
    ((line, _, said),) = _where(text)
    assert "exactly one" in said
    assert "directories" in text.splitlines()[line - 1]


def test_all_mistakes_are_named_at_once_and_broken_json_by_its_place() -> None:
    assert len(_where(_lines(node=3, ack="later", listen="x"))) == 3
    ((line, column, said),) = _where('{\n  "node": ,\n}')
    assert (line, column) == (2, 11)
    assert "JSON" in said
    assert "missing" in _where("{}")[0][2]
    assert "one object" in _where("[]")[0][2]


def test_places() -> None:
    places = Places('{"a": [1, {"b": "x,]"}],\n "c": {}}')
    assert places.of(("a", 1, "b")) == (1, 17)
    assert places.of(("c",)) == (2, 7)
    assert places.of(("c", "missing")) == (2, 7)
