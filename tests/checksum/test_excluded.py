# SPDX-License-Identifier: Apache-2.0
"""What is excluded is nobody's: it is neither copied nor deleted nor reported, on either side."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from farmd.mirror.checksum import Mode, Options, Pass, Run
from farmd.model.errors import FarmError
from tests.checksum.rig import run
from tests.checksum.trees import Maker

pytestmark = pytest.mark.root

PATTERNS = ("*.tmp", "/cache", "logs/old")


def _plant(root: Path, text: str) -> None:
    for folder in ("cache/deep", "logs/old", "logs/new"):
        (root / folder).mkdir(parents=True)
    for name in ("kept.tmp", "cache/deep/file", "logs/old/file", "logs/new/x.tmp"):
        (root / name).write_text(text)


def _names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.parametrize("passes", list(Pass))
def test_excluded_names_stay_as_they_are_on_both_sides(tmp_path: Path, passes: Pass) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for root in (source, target):
        root.mkdir()
        _plant(root, f"of {root.name}")
    Maker(1).grow(source, 30)
    (source / "only-here.tmp").write_text("not copied")
    (source / "logs/new/file").write_text("copied")
    (target / "extra").write_text("deleted")
    options = Options(target, excluded=PATTERNS, passes=passes)
    record = tmp_path / "record"
    run(source, target, options, record)
    for name in ("kept.tmp", "cache/deep/file", "logs/old/file", "logs/new/x.tmp"):
        assert (source / name).read_text() == "of source"
        assert (target / name).read_text() == "of target"
    assert not (target / "only-here.tmp").exists()
    assert not (target / "extra").exists()
    assert (target / "logs/new/file").read_text() == "copied"

    (source / "kept.tmp").write_text("another length, another time")
    (source / "cache/more").write_text("x")
    outcome = run(source, target, Options(target, mode=Mode.VERIFY, excluded=PATTERNS))
    assert outcome.equal, outcome.findings
    assert not run(source, target, Options(target, mode=Mode.VERIFY)).equal, "without the patterns it all counts"


def test_a_directory_that_the_source_lacks_goes_with_what_is_excluded_in_it(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (target / "gone").mkdir(parents=True)
    (target / "gone/x.tmp").write_text("x")
    run(source, target, Options(target, excluded=PATTERNS))
    assert _names(target) == []


def test_a_source_that_excludes_less_is_refused_before_it_overwrites_anything(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "a.tmp").write_text("theirs")
    (target / "a.tmp").write_text("mine")
    ours, theirs = socket.socketpair()
    giving, taking = Run(Options(source)), Run(Options(target, excluded=PATTERNS))

    def give() -> None:
        with contextlib.suppress(FarmError):
            giving.source(theirs.fileno(), theirs.fileno())

    thread = threading.Thread(target=give)
    thread.start()
    with ours, theirs:
        with pytest.raises(FarmError, match="not replicated here"):
            taking.target(ours.fileno(), ours.fileno())
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()
    giving.close()
    taking.close()
    assert (target / "a.tmp").read_text() == "mine"
