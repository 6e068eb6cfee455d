# SPDX-License-Identifier: Apache-2.0
"""A run over a few names finds again what a whole one found there, mends that, and looks at nothing else."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from farmd.mirror.again import look_again
from farmd.mirror.checksum import Finding, Kind, Mode, Options, Outcome
from farmd.model.errors import FarmError
from tests.checksum.rig import LONG, run, verify
from tests.checksum.trees import Maker, differences

pytestmark = pytest.mark.root


def only(pair: tuple[Path, Path], findings: tuple[Finding, ...], mode: Mode) -> Outcome:
    root = os.open(pair[0], os.O_RDONLY)
    try:
        names = look_again(findings, root)
    finally:
        os.close(root)
    return run(*pair, replace(Options(pair[1], mode=mode), only=names))


@pytest.mark.parametrize("seed", range(40 if LONG else 4))
def test_what_a_whole_run_found_is_found_again_and_can_be_mended(pair: tuple[Path, Path], seed: int) -> None:
    source, target = pair
    maker = Maker(seed)
    maker.grow(source, 60)
    run(source, target)
    for _ in range(3):
        maker.change(target, 6)
        maker.change(source, 3)
        first = run(source, target, Options(target, mode=Mode.VERIFY)).findings
        again = only(pair, first, Mode.VERIFY).findings
        assert {one.path for one in again} == {one.path for one in first}
        only(pair, first, Mode.SYNC)
        assert differences(source, target) == []
        assert verify(source, target) == set()


def test_nothing_else_is_looked_at_or_changed(pair: tuple[Path, Path]) -> None:
    source, target = pair
    for name in ("named", "other"):
        (source / name).write_bytes(os.urandom(100_000))
        (target / name).write_bytes(os.urandom(100_000))
    (source / "folder").mkdir()
    (source / "folder/missing").touch()
    (target / "extra").touch()
    kept = (target / "other").read_bytes()
    outcome = only(pair, (Finding(Kind.DATA, b"named", 0),), Mode.SYNC)
    assert {one.path for one in outcome.findings} - {b""} == {b"named"}
    assert outcome.progress.bytes_hashed <= 4 * 100_000
    assert (target / "named").read_bytes() == (source / "named").read_bytes()
    assert (target / "other").read_bytes() == kept
    assert sorted(os.listdir(target)) == ["extra", "named", "other"]


def test_no_name_at_all_is_nothing_to_do(pair: tuple[Path, Path]) -> None:
    (pair[0] / "file").touch()
    assert only(pair, (), Mode.SYNC).findings == ()
    assert os.listdir(pair[1]) == []


def test_a_path_that_leads_out_is_of_no_use(pair: tuple[Path, Path]) -> None:
    outside = pair[1].parent / "outside"
    outside.write_text("untouched")
    (pair[0].parent / "outside2").write_text("secret")
    (pair[0] / "away").symlink_to(pair[0].parent)
    (pair[1] / "away").symlink_to(pair[1].parent)
    for path in (b"../outside", b"away/outside", b"away/outside2", b"/etc/passwd"):
        with contextlib.suppress(FarmError):  # refused, or nothing there: either will do
            only(pair, (Finding(Kind.MISSING, path, 0),), Mode.SYNC)
    assert outside.read_text() == "untouched"
