# SPDX-License-Identifier: Apache-2.0
"""A directory that was replaced is not taken for the copy that the node's record is about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from farmd.mirrord.identity import FILE, check, identity
from farmd.model.errors import FarmError, Refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    (tmp_path / "data").mkdir()
    return tmp_path / "state"


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def start(folder: Path, *, is_part: bool, path: Path | None = None) -> None:
    path = path or folder.parent / "data"
    with opened(path) as fd:
        check(folder, {str(path): fd}, is_part=is_part)


def test_the_same_directory_is_known_again(folder: Path) -> None:
    start(folder, is_part=False)
    (folder.parent / "data/file").write_text("content")
    os.utime(folder.parent / "data", (1, 1))
    start(folder, is_part=True)
    moved = (folder.parent / "data").rename(folder.parent / "elsewhere")
    start(folder, is_part=True, path=moved)


def test_one_made_anew_is_refused_until_the_node_is_a_new_one(folder: Path) -> None:
    start(folder, is_part=False)
    (folder.parent / "data").rename(folder.parent / "kept")
    (folder.parent / "data").mkdir()
    for _ in range(2):
        with pytest.raises(Refused, match=r"not the directory that this node's copy was in.*\n?.*--id"):
            start(folder, is_part=True)
    start(folder, is_part=False)
    start(folder, is_part=True)


def test_one_at_the_same_inode_is_told_by_its_birth(folder: Path) -> None:
    with opened(folder.parent / "data") as fd:
        seen = identity(fd)
    assert seen.inode == (folder.parent / "data").stat().st_ino
    assert seen.born_ns > 0
    start(folder, is_part=False)
    text = (folder / FILE).read_text()
    (folder / FILE).write_text(text.replace(str(seen.born_ns), str(seen.born_ns - 1)))
    with pytest.raises(Refused, match="made"):
        start(folder, is_part=True)


def test_a_node_that_remembers_nothing_yet_begins_to(folder: Path) -> None:
    start(folder, is_part=True)
    assert (folder / FILE).exists()
    start(folder, is_part=True)


def test_what_cannot_be_read_is_said(folder: Path) -> None:
    (folder / FILE).write_text("[[1]]")
    with pytest.raises(FarmError, match="cannot be read"):
        start(folder, is_part=True)
