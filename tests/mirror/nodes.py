# SPDX-License-Identifier: Apache-2.0
"""Two nodes of a mirror as users have them: `farmctl mirror`, each in a network namespace, joined by a cable.

Both share this machine's mounts: a killed node keeps its page cache, as after a crash of its processes. With
`disks` they have a file system of its own, whose power can fail. With `second` they replicate two directories, `data`
and `wal`, of which the second is on another file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from farmd.cli.mirrorshow import summary
from farmd.client import Client
from farmd.model.errors import DaemonUnreachable, TimedOut
from farmd.model.mirrorfile import FILE, SOCKET
from tests.mirror.power import Disk
from tests.mirror.trees import differences

DEADLINE_S = 60.0
_FARMCTL = [sys.executable, "-m", "farmd.cli"]


class Failed(Exception):
    """farmctl's exit code and what it said."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"exit {code}: {text}")
        self.code, self.text = code, text


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=30)


class MirrorNode:
    """One node."""

    def __init__(self, number: int, base: Path, tag: str) -> None:
        self.number = number
        self.netns = f"{tag}n{number}"
        self.address = f"10.93.0.{number}"
        self.home = base / f"node{number}"
        self.data = self.home / "data"
        self.state = self.home / "state"
        self.disk: Disk | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.second = base / f"second{number}"
        self.wal = self.second / "wal"
        self.wal_disk: Disk | None = None
        self.several = False

    @property
    def directories(self) -> list[Path]:
        """What it replicates."""
        return [self.data, self.wal] if self.several else [self.data]

    def make_folders(self) -> None:
        """Its home, with the directory to replicate."""
        for folder in self.directories:
            folder.mkdir(parents=True, exist_ok=True)
            for each in (folder, folder.parent):
                each.chmod(0o755)

    def mount_second(self, kind: str, disk: Callable[[], Disk]) -> None:
        """A file system for its second directory: `tmpfs`, or `ext4` on a disk whose power can fail."""
        self.several = True
        if kind == "ext4":
            self.wal_disk = disk()
            self.wal_disk.make()
        else:
            self.second.mkdir()
            _run("mount", "-t", "tmpfs", "-o", "size=512m", "wal", self.second)

    def ctl(self, verb: str, *arguments: str, code: int = 0, within: tuple[str, ...] = ()) -> dict[str, Any]:
        """`farmctl mirror VERB m --json`, and its data; raises Failed if it does not exit with `code`.

        `within` runs the command, in a mount namespace of its own for one.
        """
        enter = ["nsenter", f"--net=/run/netns/{self.netns}", *within]
        words = [*enter, *_FARMCTL, "mirror", verb, "m", "--json", *arguments]
        where = os.environ | {"FARMCTL_MIRRORS": str(self.state)}
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=where)
        if done.returncode != code:
            raise Failed(done.returncode, done.stderr + self.log())
        data: dict[str, Any] = json.loads(done.stdout)["data"] if done.stdout and code in (0, 3) else {}
        return data | {"stderr": done.stderr}

    def refused(self, verb: str, *arguments: str) -> str:
        """The order is refused (exit 8); what is said."""
        return str(self.ctl(verb, *arguments, code=8)["stderr"])

    def status(self) -> dict[str, Any]:
        """As `farmctl mirror status` has it."""
        status = self.ctl("status")
        assert f"node {self.number}" in summary(status), "what a node says can be written for people"
        return status

    def api(self) -> Client:
        """What farmctl talks to, for whoever counts milliseconds."""
        return Client(self.state / "m" / SOCKET, 60.0)

    def wait(self, what: str, is_so: Callable[[dict[str, Any]], bool], within_s: float = DEADLINE_S) -> dict[str, Any]:
        """Poll the status until `is_so`."""
        end = time.monotonic() + within_s
        while not is_so(status := self.api().mirror().data):
            assert time.monotonic() < end, f"node {self.number} is not {what}: {status}\n{self.log()}"
            time.sleep(0.05)
        return status

    def wait_in_sync(self, within_s: float = DEADLINE_S) -> dict[str, Any]:
        """Until both copies are equal, as this node sees it."""
        return self.wait("in sync", lambda status: bool(status["in_sync"]), within_s)

    def start(self) -> None:
        """As `farmctl mirror start`, without what it costs to start farmctl."""
        enter = ["nsenter", f"--net=/run/netns/{self.netns}"]
        command = [*enter, sys.executable, "-m", "farmd.mirrord", str(self.state / "m")]
        self.forget()
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True}
        with (self.state / "m/log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        end = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(DaemonUnreachable, TimedOut):
                if self.api().mirror().data["role"] != "starting":
                    return
            assert time.monotonic() < end, f"node {self.number} does not start: {self.log()}"
            time.sleep(0.02)

    def forget(self) -> None:
        """Its process, which has ended."""
        if self._process is not None:
            self._process.wait(DEADLINE_S)
        self._process = None

    def engine_pid(self) -> int:
        """Its data path's process, which a primary has."""
        pid = self.api().mirror().data["engine_pid"]
        assert pid is not None, "no data path"
        return int(pid)

    def pids(self) -> list[int]:
        """This node's process and its data path's."""
        try:
            with open(self.state / "m/api.sock.lock", "rb"):
                pass
            found = subprocess.run(["pgrep", "-f", f"farmd.mirrord {self.state}/m"], capture_output=True, text=True)
            main = [int(word) for word in found.stdout.split()]
        except FileNotFoundError:
            return []
        children = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in main]
        return main + [int(child) for each in children for child in each]

    def kill(self) -> None:
        """kill -9 of all of its processes at once."""
        pids = self.pids()
        assert pids, "the node does not run"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + DEADLINE_S
        while any(_alive(pid) for pid in pids):
            assert time.monotonic() < end
            time.sleep(0.01)

    def lose_power(self) -> None:
        """All of its processes end and what was not synced is gone. Its database must have ended before."""
        assert self.disk is not None
        if self.pids():
            self.kill()
        for disk in filter(None, (self.disk, self.wal_disk)):
            disk.lose()

    def power_on(self) -> None:
        """Its disk is there again; nothing of it runs."""
        assert self.disk is not None
        for disk in filter(None, (self.disk, self.wal_disk)):
            disk.mount()

    def log(self, most_chars: int = 3000) -> str:
        """The end of its log."""
        path = self.state / "m/log"
        return path.read_text(errors="replace")[-most_chars:] if path.exists() else ""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TwoNodes:
    """A mirror `m` that is created and started on both nodes; nobody is primary yet. Both see the arbiter's file."""

    def __init__(
        self,
        tag: str,
        *options: str,
        tls: bool = True,
        arbiter: str | None = None,
        disks: Mapping[int, str] | None = None,
        disk: Callable[[Path, Path, str], Disk] = Disk,
        peers: Mapping[int, str] | None = None,
        second: str = "",
        **values: float,
    ) -> None:
        """`disks`: sizes, for nodes with a `disk` of their own; `peers`: where a node reaches its peer, if not
        directly; `second`: of which kind a second directory's file system is; `values` go into both mirror.json.
        """
        tag = f"{tag}{os.getpid() % 100_000}"  # two runs on one machine do not meet
        self.tag, self._options, self._tls, self._arbiter = tag, options, tls, arbiter
        self._second = second
        self._disks, self._peers, self._values = disks or {}, peers or {}, values
        self._disk = disk
        self._witness: subprocess.Popen[bytes] | None = None
        self.base = Path(tempfile.mkdtemp(prefix=f"mirrord-{tag}-", dir=os.environ.get("TMPDIR", "/var/tmp")))
        self.base.chmod(0o755)
        self.one, self.two = (MirrorNode(number, self.base, tag) for number in (1, 2))
        self.nodes = (self.one, self.two)

    def __enter__(self) -> TwoNodes:
        try:
            self._plug_in()
            self._cable()
            self._create()
            for node in self.nodes:
                node.ctl("start")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _plug_in(self) -> None:
        for node in self.nodes:
            if node.number in self._disks:
                node.disk = self._disk(self.base / f"disk{node.number}", node.home, self._disks[node.number])
                node.disk.make()
            if self._second:
                place = (self.base / f"second{node.number}.image", node.second, "512M")
                node.mount_second(self._second, partial(self._disk, *place))
            node.make_folders()

    def _cable(self) -> None:
        for node in self.nodes:
            _run("ip", "netns", "add", node.netns)
        ends = [f"{self.tag}v{node.number}" for node in self.nodes]
        _run(
            "ip",
            "link",
            "add",
            ends[0],
            "netns",
            self.one.netns,
            "type",
            "veth",
            "peer",
            ends[1],
            "netns",
            self.two.netns,
        )
        for node, end in zip(self.nodes, ends, strict=True):
            _run("ip", "-n", node.netns, "addr", "add", f"{node.address}/24", "dev", end)
            _run("ip", "-n", node.netns, "link", "set", end, "up")
            _run("ip", "-n", node.netns, "link", "set", "lo", "up")

    def _create(self) -> None:
        identity: list[str] = []
        keys = self.base / "keys"
        arbiter = self._arbiter or f"file:{self.base}/register"
        if self._tls:
            self.one.ctl("keygen", "--out", str(keys))
        for node, other in ((self.one, self.two), (self.two, self.one)):
            place = [word for each in node.directories for word in ("--directory", str(each))]
            place += ["--node", str(node.number), "--arbiter", arbiter, *self._options]
            place += ["--listen", f"{node.address}:7800"]
            place += ["--peer", self._peers.get(node.number, f"{other.address}:7800")]
            place += ["--keys", str(keys / f"node-{node.number}")] if self._tls else ["--no-tls"]
            made = node.ctl("create", *place, *identity)
            identity = ["--id", made["mirror"]]
            path = node.state / "m" / FILE
            path.write_text(json.dumps(json.loads(path.read_text()) | self._values))

    def start_witness(self) -> None:
        """The third machine, for `arbiter="witness:10.93.0.1:7900"`; here it lives in the first node's namespace."""
        command = ["nsenter", f"--net=/run/netns/{self.one.netns}", sys.executable, "-m", "farmd.mirrord.witness"]
        command += ["--listen", f"{self.one.address}:7900", "--folder", str(self.base / "witness")]
        command += ["--keys", str(self.base / "keys/witness")]
        self._witness = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def kill_witness(self) -> None:
        """If it runs."""
        if self._witness is not None:
            self._witness.kill()
            self._witness.wait()
            self._witness = None

    def differences(self) -> list[str]:
        """What both copies have unlike, in all directories, looked at from outside."""
        copies = zip(self.one.directories, self.two.directories, strict=True)
        return [each for one, two in copies for each in differences(one, two)]

    def cut(self) -> None:
        """Pull the cable."""
        _run("ip", "-n", self.one.netns, "link", "set", f"{self.tag}v1", "down")

    def deafen(self, node: MirrorNode) -> None:
        """Nothing reaches `node` any more; what it sends still arrives."""
        rules = "add table inet deaf; add chain inet deaf in { type filter hook input priority 0; policy drop; }"
        _run("ip", "netns", "exec", node.netns, "nft", rules)

    def mend(self) -> None:
        """Plug it in again, and let everybody hear."""
        for node in self.nodes:
            delete = ["ip", "netns", "exec", node.netns, "nft", "delete table inet deaf"]
            subprocess.run(delete, capture_output=True, check=False)
        _run("ip", "-n", self.one.netns, "link", "set", f"{self.tag}v1", "up")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_witness()
        for node in self.nodes:
            if node.pids():
                node.kill()
            node.forget()
            for _ in range(4):
                points = [*map(str, node.directories), str(node.state / "m/mount")]  # the last: for root only
                subprocess.run(["umount", "-l", *points], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "delete", node.netns], capture_output=True, check=False)
            if node.disk is not None:
                node.disk.unmount()
            if node.several:
                node.wal_disk.unmount() if node.wal_disk else _run("umount", "-l", node.second)
        if error is None:
            shutil.rmtree(self.base, ignore_errors=True)
        else:
            subprocess.run(["rm", "-rf", "--one-file-system", *(str(node.data) for node in self.nodes)], check=False)


@contextlib.contextmanager
def mutated(folder: Path, lines: str) -> Iterator[None]:
    """Inside, Python processes that start run `lines` first: a safeguard taken away, or a death at some line."""
    (folder / "sitecustomize.py").write_text(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


def begin(nodes: TwoNodes) -> None:
    """The first node is primary, and both copies are equal."""
    nodes.one.ctl("promote", "--accept", "first")
    nodes.one.wait_in_sync()
    nodes.two.wait_in_sync()


def equal(nodes: TwoNodes, primary: MirrorNode | None = None) -> None:
    """Both copies are equal, by `verify` and looked at from outside. Without `primary`: whoever is it."""
    if primary is None:
        primary = next(node for node in nodes.nodes if node.status()["role"] == "primary")
    for node in (primary, nodes.two if primary is nodes.one else nodes.one):
        node.wait_in_sync()
    assert primary.ctl("verify")["equal"]
    assert nodes.differences() == []
