# SPDX-License-Identifier: Apache-2.0
"""The engine under three sanitizers; peers that mean harm; libFuzzer."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.checksum.build import build, fuzz
from tests.checksum.rig import LONG
from tests.checksum.trees import Maker, differences

pytestmark = pytest.mark.root

ATTACKS = (
    "dotdot",
    "slash",
    "absolute",
    "nul",
    "twice",
    "odd-type",
    "huge-size",
    "two-selves",
    "xattr-length",
    "truncated",
    "folder-dotdot",
    "late-folder",
    "unknown-frame",
    "beyond-the-part",
    "before-the-part",
    "unasked",
    "endless-zeros",
    "list-for-contents",
)


def end(program: Path, *words: object, fd: int) -> subprocess.Popen[str]:
    return subprocess.Popen([str(program), *map(str, words)], pass_fds=[fd], stdout=-1, stderr=-1, text=True)


def both(program: Path, source: Path, target: Path, mode: int = 0, passes: int = 0) -> str:
    """What the target says at its end; neither end may have broken a rule."""
    ours, theirs = socket.socketpair()
    record = source.parent / "record"
    with ours, theirs:
        first = end(program, "source", source, theirs.fileno(), f"{record}.s", mode, passes, 0, fd=theirs.fileno())
        second = end(program, "target", target, ours.fileno(), f"{record}.t", mode, passes, 0, fd=ours.fileno())
    said, complaints = second.communicate(timeout=120)
    _, others = first.communicate(timeout=120)
    assert (complaints, others) == ("", "")
    assert (first.returncode, second.returncode) == (0, 0)
    return said


@pytest.mark.parametrize("sanitizers", ["address,undefined", *(["thread"] if LONG else [])])
@pytest.mark.parametrize("seed", [1, 2] if LONG else [1])
def test_random_trees_under_sanitizers(tmp_path: Path, sanitizers: str, seed: int) -> None:
    program = build("driver", sanitizers)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    maker = Maker(seed)
    maker.grow(source, 50)
    maker.grow(target, 30)
    both(program, source, target)
    for _ in range(2):
        maker.change(source, 10)
        maker.change(target, 5)
        both(program, source, target, mode=1)
        both(program, source, target, passes=1)
        assert differences(source, target) == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_source_is_refused(tmp_path: Path, attack: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    build("driver")  # before the peer starts to wait
    ours, theirs = socket.socketpair()
    with ours, theirs:
        evil = end(build("hostile"), theirs.fileno(), attack, fd=theirs.fileno())
        victim = end(build("driver"), "target", target, ours.fileno(), "-", 0, 0, 0, fd=ours.fileno())
    said, complaints = victim.communicate(timeout=60)
    _, others = evil.communicate(timeout=60)
    assert (complaints, others, evil.returncode) == ("", "", 0)
    assert said.startswith("71 "), said  # EPROTO
    assert os.listdir(tmp_path) == ["target"]


def test_a_symlink_from_the_source_is_never_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    build("driver")  # before the peer starts to wait
    ours, theirs = socket.socketpair()
    with ours, theirs:
        evil = end(build("hostile"), theirs.fileno(), "through-symlink", fd=theirs.fileno())
        victim = end(build("driver"), "target", target, ours.fileno(), "-", 0, 0, 0, fd=ours.fileno())
    _, complaints = victim.communicate(timeout=60)
    evil.communicate(timeout=60)
    assert complaints == ""
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("end_name", ["source", "target"])
def test_noise_instead_of_a_peer_is_refused(tmp_path: Path, end_name: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        one = end(build("driver"), end_name, tmp_path, ours.fileno(), "-", 0, 0, 0, fd=ours.fileno())
        theirs.sendall(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
        said, complaints = one.communicate(timeout=60)
    assert (complaints, said[:3]) == ("", "71 ")


if LONG:

    def test_the_fuzzer_finds_nothing_in_seconds() -> None:
        done = fuzz(8)
        assert done.returncode == 0, done.stderr[-3000:]
