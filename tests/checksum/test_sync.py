# SPDX-License-Identifier: Apache-2.0
"""A sync makes trees equal, whatever is in them; a verify names exactly what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from farmd.mirror.checksum import Mode, Options, Pass
from farmd.model.errors import BadRequest
from tests.checksum.rig import LONG, run, verify
from tests.checksum.trees import Maker, differences

pytestmark = pytest.mark.root


@pytest.mark.parametrize("seed", range(12 if LONG else 3))
def test_random_trees_become_equal(pair: tuple[Path, Path], seed: int) -> None:
    source, target = pair
    maker = Maker(seed)
    maker.grow(source, 60)
    maker.grow(target, 40)
    run(source, target)
    assert differences(source, target) == []
    assert verify(source, target) == set()
    for _ in range(3):
        maker.change(source, 12)
        maker.change(target, 4)
        expected = differences(source, target)
        assert bool(verify(source, target)) == bool(expected)
        run(source, target)
        assert differences(source, target) == []


@pytest.mark.parametrize("seed", range(100, 105 if LONG else 102))
def test_random_trees_with_records_become_equal_in_quick_passes(pair: tuple[Path, Path], seed: int) -> None:
    source, target = pair
    record = source.parent / "record"
    maker = Maker(seed)
    maker.grow(source, 60)
    run(source, target, record=record)
    for _ in range(5):
        maker.change(source, 8)
        maker.change(target, 3)
        run(source, target, Options(target, passes=Pass.QUICK), record)
        assert differences(source, target) == []


def test_only_blocks_that_differ_travel(pair: tuple[Path, Path]) -> None:
    source, target = pair
    data = os.urandom(10_000_000)
    (source / "big").write_bytes(data)
    run(source, target)
    with (source / "big").open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"changed")
    outcome = run(source, target)
    assert outcome.progress.bytes_differing == 65536
    assert outcome.progress.bytes_received < 100_000
    assert differences(source, target) == []


def test_a_first_sync_from_a_seeded_copy_moves_only_what_differs(pair: tuple[Path, Path]) -> None:
    source, target = pair
    for number in range(20):
        data = os.urandom(300_000)
        (source / f"f{number}").write_bytes(data)
        (target / f"f{number}").write_bytes(data[:-1] + b"x" if number == 7 else data)
    outcome = run(source, target)
    assert outcome.progress.bytes_differing <= 65536
    assert differences(source, target) == []


def test_a_huge_sparse_file_stays_sparse_and_costs_nothing(pair: tuple[Path, Path]) -> None:
    source, target = pair
    with (source / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(700_000_000_123)
        file.write(b"in the middle")
    run(source, target)
    info = (target / "sparse").stat()
    assert (info.st_size, info.st_blocks * 512 < 1 << 20) == (1 << 40, True)
    with (target / "sparse").open("rb") as file:
        file.seek(700_000_000_123)
        assert file.read(13) == b"in the middle"
    os.truncate(source / "sparse", 1 << 39)
    run(source, target)
    assert (target / "sparse").stat().st_size == 1 << 39
    assert verify(source, target) == set()


def test_a_hole_that_was_punched_is_punched_at_the_target(pair: tuple[Path, Path]) -> None:
    source, target = pair
    (source / "f").write_bytes(os.urandom(4 << 20))
    run(source, target)
    os.truncate(source / "f", 0)
    os.truncate(source / "f", 4 << 20)
    run(source, target)
    assert (target / "f").read_bytes() == bytes(4 << 20)
    assert (target / "f").stat().st_blocks * 512 < 1 << 20


def test_verify_names_each_kind_and_changes_nothing(pair: tuple[Path, Path]) -> None:
    source, target = pair
    for name in ("same", "data", "meta", "missing", "type", "a", "b"):
        (source / name).write_text(name[:1] if name == "data" else "text")
        os.utime(source / name, ns=(0, 10**18))
    run(source, target)
    (source / "missing").rename(source / "renamed")
    (target / "data").write_text("x")
    os.utime(target / "data", ns=(0, (source / "data").stat().st_mtime_ns))
    (target / "meta").chmod(0o600)
    (target / "type").unlink()
    (target / "type").mkdir()
    (source / "b").unlink()
    os.link(source / "a", source / "b")
    before = [(path.name, path.lstat()) for path in sorted(target.iterdir())]

    found = verify(source, target)

    assert found >= {("LINKS", b"a"), ("LINKS", b"b")}
    assert found - {("META", b""), ("LINKS", b"a"), ("LINKS", b"b")} == {
        ("MISSING", b"renamed"),
        ("EXTRA", b"missing"),
        ("DATA", b"data"),
        ("META", b"meta"),
        ("TYPE", b"type"),
    }
    assert [(path.name, path.lstat()) for path in sorted(target.iterdir())] == before


def test_hard_links_are_not_written_through(pair: tuple[Path, Path]) -> None:
    """A name of the target's file outside of the directory must keep its contents."""
    source, target = pair
    (source / "f").write_text("new")
    outside = target.parent / "outside"
    outside.write_text("old")
    os.link(outside, target / "f")
    run(source, target)
    assert ((target / "f").read_text(), outside.read_text()) == ("new", "old")


def test_links_that_changed_partners_are_rejoined(pair: tuple[Path, Path]) -> None:
    source, target = pair
    for root, partners in ((source, (("a", "b"), ("c", "d"))), (target, (("a", "c"), ("b", "d")))):
        for first, second in partners:
            (root / first).write_text("same")
            os.link(root / first, root / second)
            os.utime(root / first, ns=(0, 10**18))
    os.utime(source, ns=(0, 10**18))
    assert {kind for kind, _ in verify(source, target)} >= {"LINKS"}
    run(source, target)
    assert differences(source, target) == []


def test_deep_paths_and_many_names(pair: tuple[Path, Path]) -> None:
    source, target = pair
    deep = source.joinpath(*["d" * 100] * 30)
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("leaf")
    for number in range(2000):
        (source / f"name{number}").touch()
    run(source, target)
    assert differences(source, target) == []
    (source / ("d" * 100)).rename(source / "moved")
    run(source, target)
    assert differences(source, target) == []


def test_diff_tells_how_much_a_sync_moves(pair: tuple[Path, Path]) -> None:
    source, target = pair
    (source / "f").write_bytes(os.urandom(1_000_000))
    outcome = run(source, target, Options(target, mode=Mode.DIFF, probe_bytes=1 << 20))
    assert outcome.progress.bytes_differing >= 1_000_000
    assert outcome.estimate_s is not None
    assert outcome.estimate_s > 0
    assert list(target.iterdir()) == []
    assert run(source, target).progress.bytes_differing <= outcome.progress.bytes_differing + 65536


def test_a_root_that_is_no_directory_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="No such file"):
        run(tmp_path, tmp_path / "absent")
