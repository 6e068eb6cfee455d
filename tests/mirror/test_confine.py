# SPDX-License-Identifier: Apache-2.0
"""The receiving process in its cage: it does its work below the directory, and nothing anywhere else.

Every attempt is made by a process that is root and has confined itself, as one that a peer's bytes took over would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

# Runs inside. Each attempt is told as "done" or the error's name.
PROGRAM = """
import ctypes, errno, json, os, signal, socket, stat, subprocess, sys, threading
from farmd.mirror.confine import confine

root, records, outside, parent = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
libc = ctypes.CDLL(None, use_errno=True)
here = f"/proc/self/fd/{root}"
device = os.makedev(1, 3)

def call(value):
    if value < 0:
        raise OSError(ctypes.get_errno(), "")

def in_thread(work):
    failed = []
    def run():
        try:
            work()
        except OSError as error:
            failed.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]

def write(path):
    with open(path, "w") as file:
        file.write("x")

def as_user():
    libc.setfsuid(1000)
    call(libc.unshare(0x200))
    write(f"{here}/two")

confine(root, records)
at = dict(dir_fd=root)
attempts = {
    # its work
    "write inside": lambda: write(f"{here}/file"),
    "write a record": lambda: write(f"/proc/self/fd/{records}/record"),
    "owner": lambda: os.chown("file", 1234, 1234, **at),
    "mode": lambda: os.chmod("file", 0o6755, **at),
    "make a device": lambda: os.mknod("null", stat.S_IFCHR | 0o666, device, **at),
    "trusted attribute": lambda: os.setxattr(f"{here}/file", "trusted.one", b"1"),
    "security attribute": lambda: os.setxattr(f"{here}/file", "security.one", b"1"),
    "a thread that acts as a user": lambda: in_thread(as_user),
    "sync": lambda: call(libc.syncfs(root)),
    # the way out
    "path": lambda: write(outside),
    "up": lambda: os.stat(f"{here}/../victim"),
    "up by descriptor": lambda: os.open("../../victim", os.O_WRONLY, **at),
    "symlink": lambda: (os.symlink(outside, "link", **at), write(f"{here}/link")),
    "delete": lambda: os.unlink(outside),
    "mode outside": lambda: os.chmod("/usr/bin/env", 0o777),
    "attribute outside": lambda: os.setxattr("/usr/bin/env", "user.x", b"x"),
    "rename out": lambda: os.rename("file", "/usr/bin/farmd-was-here", src_dir_fd=root),
    "proc": lambda: write("/proc/sys/kernel/core_pattern"),
    "open a device": lambda: os.open("null", os.O_RDWR, **at),
    "mount": lambda: call(libc.mount(b"none", os.fsencode(here), b"tmpfs", 0, None)),
    "unmount": lambda: call(libc.umount2(b"/usr", 2)),
    "remount": lambda: call(libc.mount(b"none", b"/usr", None, 32 | 4096, None)),
    "namespace": lambda: call(libc.unshare(0x20000)),
    "user namespace": lambda: call(libc.unshare(0x10000000)),
    "chroot": lambda: os.chroot(here),
    "socket": lambda: socket.socket(),
    "program": lambda: os.execv("/usr/bin/true", ["true"]),
    "change what capabilities mean": lambda: call(libc.prctl(28, 0)),
    "kill": lambda: os.kill(parent, signal.SIGCONT),
    "memory of the parent": lambda: write(f"/proc/{parent}/mem"),
    "module": lambda: call(libc.syscall(313, root, b"", 0)),
    "bpf": lambda: call(libc.syscall(321, 0, 0, 0)),
    "become somebody else's parent": lambda: call(libc.ptrace(16, parent, 0, 0)),
    "shut the file system down": lambda: __import__("fcntl").ioctl(root, 0x8004587D, bytes(4)),
    "read secrets": lambda: os.open("/etc/shadow", os.O_RDONLY),
}
told = {}
for name, attempt in attempts.items():
    try:
        attempt()
        told[name] = "done"
    except OSError as error:
        told[name] = errno.errorcode.get(error.errno, "?")
told["status"] = open("/proc/self/status").read()
told["mounts"] = [line.split()[4] for line in open("/proc/self/mountinfo")]
print(json.dumps(told))
"""
WORK = (
    *("write inside", "write a record", "owner", "mode", "make a device", "trusted attribute", "security attribute"),
    *("a thread that acts as a user", "sync"),
)
NOT_ATTEMPTS = {"status", "mounts"}


@pytest.fixture(name="told", scope="module")
def _told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    base = tmp_path_factory.mktemp("confine")
    inside, records, victim = base / "inside", base / "records", base / "victim"
    inside.mkdir()
    records.mkdir()
    victim.write_text("untouched")
    fds = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in (inside, records)]
    command = [sys.executable, "-c", PROGRAM, *map(str, fds), str(victim), str(os.getpid())]
    done = subprocess.run(command, pass_fds=fds, capture_output=True, text=True, timeout=120, check=False)
    for fd in fds:
        os.close(fd)
    assert done.returncode == 0, done.stderr
    assert victim.read_text() == "untouched"
    assert {path.name for path in base.iterdir()} == {"inside", "records", "victim"}
    assert {path.name for path in inside.iterdir()} >= {"file", "null", "link", "two"}
    assert (inside / "two").stat().st_uid == 1000
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", WORK)
def test_its_work_goes_on(told: dict[str, object], name: str) -> None:
    assert told[name] == "done"


def test_nothing_else_does(told: dict[str, object]) -> None:
    others = {name: how for name, how in told.items() if name not in WORK and name not in NOT_ATTEMPTS}
    assert len(others) > 20
    assert {name for name, how in others.items() if how == "done"} == set()


def test_what_it_is_left_with(told: dict[str, object]) -> None:
    status = dict(line.split(":\t", 1) for line in str(told["status"]).splitlines() if ":\t" in line)
    # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, SYS_ADMIN, MKNOD, SETFCAP
    wanted = {0, 1, 2, 3, 4, 6, 7, 21, 27, 31}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == sum(1 << cap for cap in wanted)
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert not {"/etc", "/var", "/root", "/home"} & set(told["mounts"])  # type: ignore[call-overload]


def test_without_the_cage_the_same_attempts_succeed(tmp_path: Path) -> None:
    """A control: it is the cage that refuses, not this machine."""
    victim = tmp_path / "victim"
    victim.write_text("x")
    inside = tmp_path / "inside"
    inside.mkdir()
    fd = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.close(os.open("../victim", os.O_WRONLY, dir_fd=fd))
        Path(f"/proc/self/fd/{fd}/../victim").write_text("reached")
        os.kill(os.getpid(), 0)
    finally:
        os.close(fd)
    assert victim.read_text() == "reached"
