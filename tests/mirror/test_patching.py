# SPDX-License-Identifier: Apache-2.0
"""A lying primary's failback gets nothing but errors out of the target, and reaches nothing outside of its directory.

The target is the confined process as a node has it. What it refuses is refused by its own checks; the last test takes
these away, and the cage alone holds.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farmd.mirror.zonewire import Link, Meta, Op
from farmd.mirrord.logbook import handed
from farmd.model.errors import FarmError
from tests.mirror.pair import EngineProcess

pytestmark = pytest.mark.root

PLAIN = {"m": 0o644, "u": 0, "g": 0, "t": 1_700_000_000_000_000_000}
TAKEN = {"m": 0o666, "u": 1234, "g": 1234, "t": 1}


class Target:
    """A directory `inside` with ways out of it, and a process that takes failbacks into it; `victim` is outside."""

    def __init__(self, base: Path, *excluded: str) -> None:
        self.base, self.inside, self.excluded = base, base / "inside", excluded
        for name in ("inside", "records", "outside"):
            (base / name).mkdir()
        self.victim = base / "outside/victim"
        self.victim.write_text("untouched")
        (self.inside / "folder").mkdir()
        (self.inside / "out").symlink_to(base / "outside")
        (self.inside / "file-out").symlink_to(self.victim)
        (self.inside / "up").symlink_to("..")
        (self.inside / "good").write_text("good")
        self._folders = [os.open(base / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("inside", "records")]
        self.process = EngineProcess(*self._folders, module="farmd.mirrord.worker")
        self.process.do("confine", root=self._folders[0], records=self._folders[1], readable=[])
        self._before = self._outside()

    def take(self, *frames: tuple[Op, Meta, bytes]) -> str:
        """One failback of these frames and an end; the error that it came to, or nothing."""
        self.answers: list[Meta] = []
        ours, theirs = socket.socketpair()
        order = {"root": self._folders[0], "token": 1, "excluded": self.excluded, "keys": None, "peer": ""}
        with ours, theirs, os.fdopen(handed({"paths": [], "folders": [], "files": []})) as cover:
            self.process.do("patch", theirs.fileno(), cover.fileno(), **order)
            theirs.close()
            link = Link(ours)
            assert link.receive()[0] is Op.COVER
            try:
                for frame in (*frames, (Op.SYNC, {"durable": False}, b""), (Op.ANSWER, {}, b"")):
                    link.send(*frame)
                    link.flush()
                self.answers = [link.answer()[0] for frame in (*frames, (Op.SYNC,)) if frame[0] in (Op.ASK, Op.SYNC)]
            except FarmError:
                pass  # it has hung up
            ended = self.process.wait_for("passed")
            link.close()
        self.check()
        return str(ended.get("error", ""))

    def check(self) -> None:
        """Nothing outside has changed."""
        assert self.victim.read_text() == "untouched"
        assert self._outside() == self._before

    def _outside(self) -> list[tuple[str, int, int, int, int]]:
        paths = [self.base, *sorted(self.base.iterdir()), *sorted((self.base / "outside").iterdir())]
        found = [(path, path.lstat()) for path in paths if path != self.inside]
        return [(str(path), st.st_mode, st.st_uid, st.st_size, st.st_mtime_ns) for path, st in found]

    def close(self) -> None:
        """End its process."""
        self.process.close()
        for fd in self._folders:
            os.close(fd)


@pytest.fixture(name="target")
def _target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path)
    try:
        yield target
    finally:
        target.close()


def at(path: str, **more: Any) -> Meta:
    return {"p": path.encode().hex(), "n": 1, "a": PLAIN, "size": 3, "whole": True, "r": [], **more}


def hexed(text: str) -> str:
    return text.encode().hex()


LEADS_OUT = ["..", "../outside/victim", "folder/../../outside/victim", "/etc/passwd", "out/victim", "up/outside/victim"]
LEADS_OUT += ["out/new", "./good", "folder//x", "", "folder/", "a\0b", "out/../outside/victim", "up/inside/good"]


def frames_at(path: str) -> list[tuple[Op, Meta, bytes]]:
    """Each kind of frame that names a path."""
    link, fifo, device = (stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o666, stat.S_IFBLK | 0o666)
    return [
        (Op.REMOVE, at(path), b""),
        (Op.FOLDER, at(path, names=[]), b""),
        (Op.FOLDER, at(path, expected=True, names=[]), b""),
        (Op.SPECIAL, at(path, mode=link, rdev=0, to=hexed("/etc")), b""),
        (Op.SPECIAL, at(path, mode=fifo, rdev=0), b""),
        (Op.SPECIAL, at(path, mode=device, rdev=os.makedev(1, 1)), b""),
        (Op.SMALL, at(path), b"bad"),
        (Op.NAMES, at(path, names=[hexed("good")]), b""),
        (Op.NAMES, at("good", names=[hexed(path)]), b""),
        (Op.LINK, at(path, to=hexed("good")), b""),
        (Op.LINK, at("stolen", to=hexed(path)), b""),
        (Op.ASK, at(path, r=[[0, 65536]]), b""),
        (Op.ASK, at(path, r=[[0, 65536]], whole=False), b""),
        (Op.FILE, at(path), b""),
        (Op.FILE, at(path, whole=False), b""),
        (Op.META, at(path, a=TAKEN), b""),
    ]


@pytest.mark.parametrize("path", LEADS_OUT)
def test_no_frame_leads_out_of_the_directory(target: Target, path: str) -> None:
    for frame in frames_at(path):
        if path == "" and frame[0] in (Op.FOLDER, Op.META):
            continue  # the directory itself
        error = target.take(frame)
        lacking = bool(target.answers and target.answers[-1].get("missing"))
        gone = frame[0] in (Op.REMOVE, Op.ASK, Op.FILE, Op.META, Op.NAMES, Op.LINK) and not error
        assert error or lacking or gone, frame
        assert not (target.inside / "stolen").exists()
        assert (target.inside / "good").read_text() == "good"


@pytest.mark.parametrize("path", ["out", "file-out", "up"])
def test_a_symlink_that_leads_out_is_replaced_and_never_followed(target: Target, path: str) -> None:
    """Each frame may do what it says to the link itself."""
    to = os.readlink(target.inside / path)
    for frame in frames_at(path):
        target.take(frame, (Op.DATA, {"o": 0}, b"bad"), (Op.ZERO, {"o": 0, "l": 3}, b""), (Op.END, {}, b""))
        subprocess.run(["rm", "-rf", str(target.inside / path), str(target.inside / "stolen")], check=True)
        (target.inside / path).symlink_to(to)
    target.check()


def test_a_link_that_the_failback_itself_makes_is_not_followed_either(target: Target) -> None:
    link = stat.S_IFLNK | 0o777
    outside = str(target.victim.parent)
    assert "could not be made" in target.take(
        (Op.SPECIAL, at("new", mode=link, rdev=0, to=hexed(outside)), b""), (Op.SMALL, at("new/victim"), b"bad")
    )
    assert os.readlink(target.inside / "new") == outside
    # A folder that is looked at, becomes a link, and is named again: what was open before is not what is there now.
    frames = [(Op.SMALL, at("folder/a"), b"abc"), (Op.SPECIAL, at("folder", mode=link, rdev=0, to=hexed(outside)), b"")]
    assert "could not be made" in target.take(*frames, (Op.SMALL, at("folder/victim"), b"bad"))
    assert not (target.inside / "folder/a").exists()


def test_what_is_excluded_is_neither_written_nor_removed(tmp_path: Path) -> None:
    target = Target(tmp_path, "*.tmp", "/cache")
    mine = {"own.tmp": "root", "folder/own.tmp": "deep", "cache/own": "cache"}
    (target.inside / "cache").mkdir()
    for name, text in mine.items():
        (target.inside / name).write_text(text)
    try:
        for path in ("own.tmp", "new.tmp", "cache", "cache/own", "cache/new", "folder/own.tmp", "own.tmp/below"):
            for frame in frames_at(path):
                assert "not replicated here" in target.take(frame), frame
        assert (
            target.take((Op.FOLDER, at("folder", names=[]), b""), (Op.FOLDER, at("", names=[hexed("folder")]), b""))
            == ""
        )
        assert {name: (target.inside / name).read_text() for name in mine} == mine
        assert sorted(os.listdir(target.inside)) == ["cache", "folder", "own.tmp"]
    finally:
        target.close()


DEEP = b'{"p":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
WRONG: list[tuple[Op, Meta, bytes]] = [
    (Op.SMALL, {}, b""),
    (Op.SMALL, {"p": 7}, b""),
    (Op.SMALL, {"p": "zz"}, b""),
    (Op.SMALL, {"p": ["67"]}, b""),
    (Op.SMALL, at("x", a=[]), b"x"),
    (Op.SMALL, at("x", a={"m": 0, "u": 2**70, "g": 0, "t": 0}), b"x"),
    (Op.SMALL, at("x", a=PLAIN | {"t": "now"}), b"x"),
    (Op.SMALL, at("x", a=PLAIN | {"x": [1]}), b"x"),
    (Op.SMALL, at("x", a=PLAIN | {"x": {hexed("user.a"): 5}}), b"x"),
    (Op.SMALL, at("n" * 300), b"x"),
    (Op.SPECIAL, at("x", mode=2**40, rdev=0), b""),
    (Op.SPECIAL, at("x", mode=stat.S_IFDIR | 0o777, rdev=0), b""),
    (Op.SPECIAL, at("x", mode=stat.S_IFLNK | 0o777, rdev=0, to=""), b""),
    (Op.FOLDER, at("folder", names=5), b""),
    (Op.FOLDER, at("folder", names=["zz"]), b""),
    (Op.NAMES, at("good", names=5), b""),
    (Op.NAMES, at("good", names=["zz"]), b""),
    (Op.ASK, at("good", r=[[0, 2**62]]), b""),
    (Op.ASK, at("good", r=[[-1, 65536]]), b""),
    (Op.ASK, at("good", r=[[0, -(2**50)], [0, 2**50]]), b""),
    (Op.ASK, at("good", r=[[2**70, 1]]), b""),
    (Op.ASK, at("good", r=7), b""),
    (Op.FILE, at("good", size=2**70), b""),
    (Op.FILE, at("good", size=-1), b""),
    (Op.FILE, at("good", size="big"), b""),
    (Op.COVER, {}, b""),
    (Op.FAILED, {}, b""),
]


def test_a_frame_that_means_nothing_ends_the_failback_and_not_the_process(target: Target) -> None:
    for frame in WRONG:
        assert target.take(frame), frame
        assert target.take() == "", frame


def test_an_offset_that_is_none_is_refused(target: Target) -> None:
    for offset in (-1, 2**63, 2**70, "x", None):
        for op, meta in ((Op.DATA, {"o": offset}), (Op.ZERO, {"o": offset, "l": 1}), (Op.ZERO, {"o": 0, "l": offset})):
            assert target.take((Op.FILE, at("good"), b""), (op, meta, b"bad")), (op, meta)


@pytest.mark.parametrize("data", [b"\xff" * 9, b"\x63" + bytes(8), b"\x04" + b"\xff" * 8, os.urandom(4096)])
def test_bytes_that_are_no_frames_are_refused(target: Target, data: bytes) -> None:
    def send(self: Link, op: Op, meta: Meta | None = None, body: bytes = b"") -> None:
        self._out += data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Link, "send", send)
        assert target.take()
    assert target.take() == ""


def test_a_frame_of_endless_depth_is_refused(target: Target) -> None:
    def send(self: Link, op: Op, meta: Meta | None = None, body: bytes = b"") -> None:
        self._out += bytes((op,)) + len(DEEP).to_bytes(4, "little") + bytes(4) + DEEP

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Link, "send", send)
        assert target.take()
    assert target.take() == ""


def test_what_it_may_do_it_does(target: Target) -> None:
    """The control: the same frames with paths of the directory."""
    error = target.take(
        (Op.FOLDER, at("", names=[hexed("good"), hexed("folder")]), b""),
        (Op.SMALL, at("folder/new"), b"new"),
        (Op.FILE, at("good"), b""),
        (Op.DATA, {"o": 0}, b"bad"),
        (Op.END, {}, b""),
        (Op.META, at("folder", a=TAKEN), b""),
    )
    assert error == ""
    assert sorted(os.listdir(target.inside)) == ["folder", "good"]
    assert (target.inside / "folder/new").read_text() == "new"
    assert (target.inside / "good").read_text() == "bad"
    assert (target.inside / "folder").stat().st_uid == 1234


# Runs the target's own code with its checks taken away, and hands it what a lying primary sends.
UNCHECKED = """
import errno, json, os, socket, sys
from farmd.mirror import handles, patching
from farmd.mirror.confine import confine
from farmd.mirror.zonewire import Link

root, records, caged = int(sys.argv[1]), int(sys.argv[2]), sys.argv[4] == "caged"
patching.path_from = lambda text, *, root=False: bytes.fromhex(text)
handles.open_below = lambda at, path, flags, mode=0: os.open(path or b".", flags, mode, dir_fd=at)
if caged:
    confine(root, records)
told = {}
for path in json.loads(sys.argv[3]):
    target = patching.Patching(root, Link(socket.socketpair()[0]))
    try:
        target._small({"p": path.encode().hex(), "n": 1, "a": json.loads(sys.argv[5])}, b"taken")
        told[path] = "done"
    except OSError as error:
        told[path] = errno.errorcode[error.errno]
print(json.dumps(told))
"""


@pytest.mark.parametrize("caged", [True, False])
def test_without_its_own_checks_the_cage_still_holds(tmp_path: Path, caged: bool) -> None:
    """And without the cage, too, the victim is lost: it is not this machine that refuses."""
    for name in ("inside", "records", "outside"):
        (tmp_path / name).mkdir()
    victim = tmp_path / "outside/victim"
    victim.write_text("untouched")
    (tmp_path / "inside/out").symlink_to(tmp_path / "outside")
    paths = ["../outside/victim", str(victim), "out/victim", "../../../../../../../../tmp/x-of-the-cage/y"]
    folders = [os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("inside", "records")]
    words = [*map(str, folders), json.dumps(paths), "caged" if caged else "free", json.dumps(PLAIN)]
    done = subprocess.run(
        [sys.executable, "-c", UNCHECKED, *words], pass_fds=folders, capture_output=True, text=True, check=False
    )
    for fd in folders:
        os.close(fd)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    if caged:
        assert victim.read_text() == "untouched"
        assert set(told.values()) <= {errno.errorcode[code] for code in (errno.ENOENT, errno.EROFS, errno.EXDEV)}
    else:
        assert victim.read_text() == "taken"
        assert [told[path] for path in paths[:3]] == ["done"] * 3
