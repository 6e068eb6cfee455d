# SPDX-License-Identifier: Apache-2.0
"""One root over several directories: what names, handles, syncs and comparisons make of it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from farmd.mirror import handles
from farmd.mirror.checksum import Mode, Options, Pass, Progress, Run
from farmd.mirror.datapath import compose
from farmd.mirror.durable import sync_file_system
from farmd.mirror.native import excludes
from farmd.mirror.places import Places, Unfindable
from farmd.mirror.spread import Spread
from farmd.model.errors import KernelError
from tests.mirror.power import Disk
from tests.mirror.trees import differences

pytestmark = pytest.mark.root


@pytest.fixture(name="disks")
def _disks(tmp_path: Path) -> Iterator[list[Path]]:
    """Two directories on two new file systems: inode numbers are the same in both."""
    disks = [Disk(tmp_path / f"{name}.image", tmp_path / name, "64M") for name in ("wal", "data")]
    try:
        for disk in disks:
            disk.make()
            (disk.point / "lost+found").rmdir()
        yield [disk.point for disk in disks]
    finally:
        for disk in disks:
            disk.unmount()


def _composed(*directories: Path) -> int:
    opened = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in directories]
    try:
        return compose([path.name for path in directories], opened)
    finally:
        for fd in opened:
            os.close(fd)


def test_it_holds_the_directories_and_nobody_can_write_it(disks: list[Path]) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    root = _composed(*disks)
    assert Path("/proc/self/mountinfo").read_text() == before, "it must be mounted nowhere"
    assert handles.has_parts(root)
    assert handles.parts(root) == [b"data", b"wal"]
    calls: list[Callable[[], None]] = [
        lambda: os.mkdir("new", dir_fd=root),
        lambda: os.utime(root),
        lambda: os.chmod(root, 0o777),
    ]
    for call in calls:
        with pytest.raises(OSError, match="Read-only") as caught:
            call()
        assert caught.value.errno == errno.EROFS
    os.mkdir("wal/new", dir_fd=root)
    assert (disks[0] / "new").is_dir()
    assert os.listdir(f"/proc/self/fd/{root}/wal/../../..") == os.listdir(root), "there is a way up"
    sync_file_system(root)
    os.close(root)


def test_a_directory_alone_is_no_such_root_even_if_it_is_read_only(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "x", tmp_path], check=True)
    try:
        fd = os.open(tmp_path, os.O_RDONLY)
        assert not handles.has_parts(fd)
        os.mkdir(tmp_path / "below")
        subprocess.run(["mount", "-t", "tmpfs", "x", tmp_path / "below"], check=True)
        with pytest.raises(OSError, match="cross-device"):
            handles.open_below(fd, b"below", os.O_PATH)
        os.close(fd)
    finally:
        subprocess.run(["umount", "-R", tmp_path], check=True)


def test_inodes_are_found_by_handle_and_by_name_in_their_directory(disks: list[Path]) -> None:
    for disk in disks:
        (disk / "sub").mkdir()
        (disk / "sub/file").write_text(disk.name)
    assert len({(disk / "sub/file").stat().st_ino for disk in disks}) == 1
    root = _composed(*disks)
    found = {}
    for name in (b"data", b"wal"):
        path = name + b"/sub/file"
        fd = handles.open_below(root, path, os.O_RDONLY)
        part = handles.part_of(root, path)
        handle = found[name] = handles.of(fd, part)
        again = handles.open_by(root, handle, os.O_RDONLY)
        assert os.read(again, 100) == name
        at = Places(root, {}).inode(handle)
        assert at is not None
        assert at.path == path
        for each in (fd, again, at.fd):
            os.close(each)
    assert found[b"data"] != found[b"wal"]
    outside = handles.open_below(root, b"wal", os.O_PATH)
    with suppress(Unfindable):
        assert Places(root, {}).folder(handles.of(outside, 2)) == b"wal"
    os.close(outside)
    with pytest.raises(OSError, match="cross-device"):
        handles.open_below(root, b"wal/../data", os.O_PATH)
    os.close(root)


def test_what_is_mounted_below_a_directory_is_not_entered(disks: list[Path]) -> None:
    (disks[0] / "below").mkdir()
    root = _composed(*disks)
    subprocess.run(["mount", "-t", "tmpfs", "x", disks[0] / "below"], check=True)
    try:
        (disks[0] / "below/foreign").touch()
        fd = handles.open_below(root, b"wal/below", os.O_RDONLY)
        assert os.listdir(fd) == []
        os.close(fd)
    finally:
        subprocess.run(["umount", disks[0] / "below"], check=True)
        os.close(root)


def _compare(
    source: int, target: int, mode: Mode, records: Path | None = None, passes: Pass = Pass.CONTENTS
) -> tuple[Progress, list[str]]:
    ends = socket.socketpair()
    runs = []
    for fd, name in ((source, "source"), (target, "target")):
        record = records / name if records else None
        excluded = ("//wal/*.tmp", "//data//only")
        options = Options(Path(f"/proc/self/fd/{fd}"), record, mode, passes, excluded=excluded, resume=bool(records))
        runs.append(Run(options))
    thread = threading.Thread(target=lambda: runs[0].source(ends[0].fileno(), ends[0].fileno()))
    thread.start()
    try:
        progress = runs[1].target(ends[1].fileno(), ends[1].fileno())
        found = [os.fsdecode(one.path) for one in runs[1].findings()]
    finally:
        for end in ends:
            end.shutdown(socket.SHUT_RDWR)
        thread.join()
        for run, sock in zip(runs, ends, strict=True):
            run.close()
            sock.close()
    return progress, found


def test_the_checksum_engine_compares_all_directories_as_one_tree(disks: list[Path], tmp_path: Path) -> None:
    copies = [tmp_path / "copy" / disk.name for disk in disks]
    for disk, copy in zip(disks, copies, strict=True):
        copy.mkdir(parents=True)
        (disk / "sub").mkdir()
        (disk / "sub/first").write_bytes(os.urandom(100_000))
        os.link(disk / "sub/first", disk / "sub/second")  # of the same inode number in both
        for name in ("x.tmp", "only"):
            (disk / name).write_text("excluded in one of them")
        (copy / "extra").write_text("goes")
    records = tmp_path / "records"
    records.mkdir()
    source, target = _composed(*disks), _composed(*copies)
    _compare(source, target, Mode.SYNC, records)
    assert {path.name for path in copies[0].iterdir()} == {"sub", "only"}
    assert {path.name for path in copies[1].iterdir()} == {"sub", "x.tmp"}
    for disk, copy in zip(disks, copies, strict=True):
        assert differences(disk / "sub", copy / "sub") == []
        assert (copy / "sub/first").stat().st_nlink == 2
    assert _compare(source, target, Mode.VERIFY)[1] == []

    for number in range(3):  # ctime must be older than the pass that records it
        progress, _ = _compare(source, target, Mode.SYNC, records, Pass.QUICK)
        if number:
            assert progress.bytes_hashed + progress.bytes_compared == 0, "the record was not believed"
    (copies[0] / "sub/first").write_bytes(b"other")
    (found,) = _compare(source, target, Mode.VERIFY)[1]  # one of its names
    assert found.startswith("wal/sub/")
    for fd in (source, target):
        os.close(fd)


@pytest.mark.parametrize(
    ("pattern", "path", "out"),
    [
        ("//wal/*.tmp", b"wal/x.tmp", True),
        ("//wal/*.tmp", b"wal/deep/x.tmp", True),
        ("//wal/*.tmp", b"data/x.tmp", False),
        ("//wal/*.tmp", b"walnut/x.tmp", False),
        ("//wal//cache", b"wal/cache/below", True),
        ("//wal//cache", b"wal/deep/cache", False),
        ("//wal/a/*", b"wal/a/b", True),
        ("//wal/wal", b"wal", False),
        ("//wal/*", b"wal", False),
    ],
)
def test_a_pattern_counts_in_its_directory(pattern: str, path: bytes, out: bool) -> None:
    assert excludes((pattern,), path) is out


def test_all_places_are_mounted_or_none(tmp_path: Path) -> None:
    tree, places = tmp_path / "tree", [tmp_path / name for name in ("one", "two")]
    for path in (tree / "one", tree / "two", places[0]):
        path.mkdir(parents=True)
    spread = Spread(tree, tuple((path.name, path) for path in places))
    (tree / "one/file").touch()
    with pytest.raises(KernelError, match="two"):
        spread.put_up()
    assert not (places[0] / "file").exists()
    places[1].mkdir()
    spread.put_up()
    assert (places[0] / "file").exists()
    for place in places:
        subprocess.run(["umount", place], check=True)
