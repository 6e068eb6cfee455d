# SPDX-License-Identifier: Apache-2.0
"""What can be replicated, with real nodes: exclusions, an image, a directory that is a mount point; the cage in use."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mirror.nodes import DEADLINE_S, MirrorNode, TwoNodes, begin
from tests.mirror.trees import differences

pytestmark = [pytest.mark.root, pytest.mark.lab]

MB = 1 << 20
IMAGE = "farmd.image"


def _fail_over(nodes: TwoNodes) -> None:
    nodes.one.kill()
    nodes.two.wait("alone", lambda status: not status["peer"]["connected"])
    nodes.two.ctl("promote")


def _names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# ---- exclusions ----


def test_what_is_excluded_stays_on_its_node_through_a_whole_life() -> None:
    patterns = ("--exclude", "*.tmp", "--exclude", "/cache")
    with TwoNodes("mex", *patterns) as nodes:
        one, two = nodes.nodes
        for node in nodes.nodes:
            (node.data / "cache").mkdir()
            (node.data / "cache/own").write_text(f"of node {node.number}")
            (node.data / "own.tmp").write_text(f"of node {node.number}")
        (one.data / "before").write_text("replicated")
        begin(nodes)
        (one.data / "folder").mkdir()
        for name in ("live.tmp", "folder/deep.tmp", "cache/live", "folder/kept"):
            (one.data / name).write_text(name)
        assert one.ctl("verify")["equal"]
        assert _names(two.data) == {"before", "cache", "cache/own", "own.tmp", "folder", "folder/kept"}

        _fail_over(nodes)
        (two.data / "alone").write_text("x")
        (two.data / "own.tmp").write_text("node 2, as primary")
        one.ctl("start")
        two.wait_in_sync()
        assert two.ctl("verify")["equal"]
        assert two.ctl("diff")["differences"] == 0
        assert (one.data / "own.tmp").read_text() == (one.data / "cache/own").read_text() == "of node 1"
        assert (one.data / "live.tmp").exists()
        assert (one.data / "alone").exists()

        (two.data / "folder/kept").unlink()
        (two.data / "folder").rmdir()  # there it still holds deep.tmp: a resync settles it
        two.wait("in sync without the folder", lambda status: status["in_sync"] and not (one.data / "folder").exists())
        assert (one.data / "live.tmp").exists()


def test_nodes_that_exclude_different_things_do_not_replicate() -> None:
    with TwoNodes("mxu", "--exclude", "*.tmp") as nodes:
        one, two = nodes.nodes
        (two.data / "own.log").write_text("not to be lost")
        two.ctl("stop")
        file = two.state / "m/mirror.json"
        file.write_text(file.read_text().replace("*.tmp", "*.log"))
        two.ctl("start")
        one.ctl("promote", "--accept", "first")
        status = one.wait("refused", lambda status: "not created alike" in status["trouble"])
        assert "*.log" in status["trouble"]
        assert (two.data / "own.log").exists()


def test_a_mistake_in_the_file_is_named_by_line_and_column() -> None:
    with TwoNodes("mxf", "--exclude", "*.tmp") as nodes:
        one = nodes.one
        one.ctl("stop")
        file = one.state / "m/mirror.json"
        file.write_text(file.read_text().replace("*.tmp", "a/../b"))
        said = str(one.ctl("start", code=9)["stderr"])
        line = 1 + next(number for number, text in enumerate(file.read_text().splitlines()) if "a/../b" in text)
        assert f"{file}:{line}:" in said
        assert "'..'" in said


# ---- the cage ----


def _receiver(node: MirrorNode) -> Path:
    """The confined process of a secondary."""
    for pid in node.pids():
        if "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text():
            return Path(f"/proc/{pid}")
    raise AssertionError("no process of this node is confined")


def test_the_secondary_receives_in_a_cage_and_a_new_primary_leaves_it() -> None:
    with TwoNodes("mcg") as nodes:
        begin(nodes)
        process = _receiver(nodes.two)
        status = process.joinpath("status").read_text()
        assert "NoNewPrivs:\t1" in status
        mounts = {line.split()[4] for line in process.joinpath("mountinfo").read_text().splitlines()}
        assert "/etc" not in mounts
        assert str(nodes.base) not in mounts
        (nodes.one.data / "program").write_text("x")
        (nodes.one.data / "program").chmod(0o4755)
        os.mknod(nodes.one.data / "device", 0o20600, os.makedev(1, 3))
        os.setxattr(nodes.one.data / "program", "security.NTACL", b"as Samba has it")
        assert nodes.one.ctl("verify")["equal"]
        assert differences(nodes.one.data, nodes.two.data) == []

        nodes.one.ctl("swap")
        nodes.two.wait("primary", lambda status: status["role"] == "primary" and status["in_sync"])
        assert not process.exists()
        assert _receiver(nodes.one)
        (nodes.two.data / "after").write_text("x")
        assert (nodes.one.data / "after").read_text() == "x"


# ---- a mount point of its own ----


@contextmanager
def _disk(node: MirrorNode) -> Iterator[None]:
    node.make_folders()
    image = node.home / "disk"
    with image.open("wb") as file:
        file.truncate(96 * MB)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(node.data)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(node.data)], check=False, capture_output=True)


def _unmount(point: Path) -> None:
    """When the node's last process is gone."""
    end = time.monotonic() + DEADLINE_S
    while subprocess.run(["umount", str(point)], check=False, capture_output=True).returncode:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_directory_that_is_a_mount_point() -> None:
    nodes = TwoNodes("mmo")
    with _disk(nodes.one), _disk(nodes.two), nodes:
        one, two = nodes.nodes
        (one.data / "before").write_text("x")
        begin(nodes)
        (one.data / "live").write_bytes(os.urandom(MB))
        assert one.ctl("verify")["equal"]
        _fail_over(nodes)
        (two.data / "alone").write_text("x")
        one.ctl("start")
        two.wait_in_sync()
        assert (one.data / "alone").exists()
        two.ctl("swap")
        one.wait("primary", lambda status: status["role"] == "primary" and status["in_sync"])
        for node in nodes.nodes:
            node.ctl("stop")
        assert differences(one.data, two.data) == []

        # What is below would be taken for the copy, and the peer's files would go.
        _unmount(two.data)
        said = two.ctl("start", code=1)["stderr"]
        assert "nothing is mounted there" in said
        subprocess.run(["mount", "-o", "loop", str(two.home / "disk"), str(two.data)], check=True)
        two.ctl("start")


# ---- image mode ----


def test_an_image_through_failover_failback_and_swap() -> None:
    with TwoNodes("mig", "--image", "64M") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        (one.data / "sub").mkdir()
        (one.data / "sub/file").write_text("in the image")
        os.sync()
        assert os.listdir(two.data) == [IMAGE]
        assert one.ctl("verify")["equal"]
        with (one.data / "open").open("w"):
            assert "in use by" in one.refused("demote")

        _fail_over(nodes)
        assert (two.data / "sub/file").read_text() == "in the image"
        (two.data / "alone").write_text("x")
        one.ctl("start")
        two.wait_in_sync()
        assert os.listdir(one.data) == [IMAGE], "the dead mount of the earlier run is gone"
        two.ctl("swap")
        one.wait("primary", lambda status: status["role"] == "primary" and status["in_sync"])
        assert {"alone", "sub"} <= set(os.listdir(one.data))
        for node in nodes.nodes:
            node.ctl("stop")
        assert differences(one.data, two.data, times=False) == []
        subprocess.run(["e2fsck", "-fn", str(one.data / IMAGE)], check=True, capture_output=True)


def test_a_forced_demotion_ends_who_is_in_an_image() -> None:
    with TwoNodes("mif", "--image", "32M") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        with (one.data / "open").open("wb", buffering=0) as file:
            file.write(b"before\n")
            os.fsync(file.fileno())
            one.ctl("demote", "--force")
            with pytest.raises(OSError, match="error"):
                file.write(b"after\n")
        one.wait("demoted", lambda status: status["role"] != "primary")
        two.ctl("promote")
        assert (two.data / "open").read_text() == "before\n"


class _Acknowledged(threading.Thread):
    """Writes small files into the image with fsync, and remembers which were acknowledged."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self.names: list[str] = []

    def run(self) -> None:
        number = 0
        while True:
            number += 1
            name = f"row-{number}"
            try:
                fd = os.open(self._folder / name, os.O_CREAT | os.O_WRONLY, 0o644)
                try:
                    os.write(fd, name.encode())
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except OSError:
                return
            self.names.append(name)


def test_what_an_fsync_in_the_image_acknowledged_is_there_after_a_kill() -> None:
    """The cable goes first, so that nothing acknowledged is on one node alone; FARMD_MIRROR_ACK=async must fail."""
    kills = int(os.environ.get("FARMD_MIRROR_KILLS", "2"))
    ack = os.environ.get("FARMD_MIRROR_ACK", "strict")
    with TwoNodes("mik", "--image", "64M", "--ack", ack, tls=False) as nodes:
        begin(nodes)
        primary, other = nodes.one, nodes.two
        for number in range(kills):
            folder = primary.data / f"round-{number}"
            folder.mkdir()
            writer = _Acknowledged(folder)
            writer.start()
            primary.wait("writing", lambda _, writer=writer: len(writer.names) > 20)  # type: ignore[misc]
            nodes.cut()
            time.sleep(0.3)
            primary.kill()
            writer.join(60)
            nodes.mend()
            other.wait("alone", lambda status: not status["peer"]["connected"])
            other.ctl("promote")
            there = other.data / f"round-{number}"
            lost = [name for name in writer.names if not (there / name).exists() or (there / name).read_text() != name]
            assert not lost, f"{len(lost)} of {len(writer.names)} acknowledged files are lost"
            primary.ctl("start")
            other.wait_in_sync()
            primary, other = other, primary
