# SPDX-License-Identifier: Apache-2.0
"""A mirror's file: written and read back, and every mistake in it named by line and column."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from farmd.model.errors import ConfigError
from farmd.model.jsonplace import Places
from farmd.model.mirrorfile import Directory, MirrorConfig, as_file, check, clash, load, parse, save

GOOD = MirrorConfig(
    "db", "0" * 32, 1, (Directory("/srv/db", exclude=("*.tmp", "/a/b")),), "192.0.2.1:7800", "192.0.2.2:7800"
)


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


SEVERAL = replace(
    GOOD,
    directories=(Directory("/srv/db", "db", ("*.tmp", "/a")), Directory("/ssd/wal", "wal", ("x",), own_mount=True)),
)


def test_several_directories_are_written_and_read_back(tmp_path: Path) -> None:
    save(tmp_path / "db", check(SEVERAL))
    assert load(tmp_path / "db") == SEVERAL
    assert SEVERAL.exclude == ("//db/*.tmp", "//db//a", "//wal/x")
    assert SEVERAL.identity["exclude"] == ["db:*.tmp", "db:/a", "wal:x"]
    assert "name" not in as_file(GOOD)["directories"][0]


def test_a_directory_is_called_by_the_last_part_of_its_path() -> None:
    config = parse("mirror.json", _lines(directories=[{"path": "/a/data"}, {"path": "/b/x", "name": "wal"}]))
    assert [each.name for each in config.directories] == ["data", "wal"]


def test_nodes_are_alike_by_names_and_not_by_places_or_order() -> None:
    other = replace(SEVERAL, directories=tuple(replace(each, path=f"/n2{each.path}") for each in SEVERAL.directories))
    assert replace(other, directories=other.directories[::-1]).shape == SEVERAL.shape
    assert GOOD.shape == {"exclude": ["*.tmp", "/a/b"], "image": False}
    renamed = (replace(SEVERAL.directories[0], name="data"), SEVERAL.directories[1])
    assert replace(SEVERAL, directories=renamed).shape != SEVERAL.shape


def test_people_are_told_whole_paths_of_several_directories() -> None:
    assert SEVERAL.place(b"wal/00/1") == b"/ssd/wal/00/1"
    assert SEVERAL.place(b"db") == b"/srv/db"
    assert GOOD.place(b"wal/00/1") == b"wal/00/1"


@pytest.mark.parametrize(
    ("directories", "at", "cause"),
    [
        ([{"path": "/a"}, {"path": "/a"}], 1, "is the same as /a"),
        ([{"path": "/a"}, {"path": "/b"}, {"path": "/a/b/c"}], 2, "is below /a"),
        ([{"path": "/a/b"}, {"path": "/a"}], 1, "holds /a/b"),
        ([{"path": "/a/data"}, {"path": "/b/data"}], 1, "name 'data' is that of /a/data"),
        ([{"path": "/a"}, {"path": "/b b"}], 1, "has letters, digits"),
        ([{"path": "/a"}, {"path": "/b", "image_bytes": 1 << 30}], 1, "only directory"),
        ([{"path": "/a"}, {"path": "b"}], 1, "begin with /"),
    ],
)
def test_directories_that_cannot_be_one_mirror(directories: list[dict[str, object]], at: int, cause: str) -> None:
    text = _lines(directories=directories)
    ((line, _, said),) = _where(text)
    assert cause in said
    starts = [number for number, each in enumerate(text.splitlines(), 1) if '"path"' in each]
    assert starts[at] - 1 <= line <= starts[at] + 1


@pytest.mark.parametrize("count", [0, 33])
def test_how_many_directories_there_may_be(count: int) -> None:
    ((_, _, said),) = _where(_lines(directories=[{"path": f"/{number}"} for number in range(count)]))
    assert "1 to 32" in said


def test_a_directory_is_in_one_mirror_only(tmp_path: Path) -> None:
    save(tmp_path / "db", SEVERAL)
    assert clash(SEVERAL, tmp_path) is None
    for path, how in (("/ssd/wal", "is the same as"), ("/srv/db/x", "is below"), ("/ssd", "holds")):
        refused = clash(replace(GOOD, name="other", directories=(Directory(path),)), tmp_path)
        assert refused is not None
        assert how in refused.cause
        assert "mirror db" in refused.cause
    assert clash(replace(GOOD, name="other", directories=(Directory("/srv/db2"),)), tmp_path) is None


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
