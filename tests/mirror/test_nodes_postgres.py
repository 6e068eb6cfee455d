# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL on a mirror whose primary is killed at random moments: every acknowledged commit is there afterwards."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.mirror.nodes import MirrorNode, TwoNodes
from tests.mirror.test_databases import as_postgres, postgres_programs
from tests.mirror.trees import differences

pytestmark = [pytest.mark.root, pytest.mark.lab, pytest.mark.timeout(600)]

KILLS = int(os.environ.get("FARMD_MIRROR_KILLS", "4"))
ACK = os.environ.get("FARMD_MIRROR_ACK", "strict")
"""With `async` commits are lost, and this test must say so: the negative control."""
SEED = int(os.environ.get("FARMD_MIRROR_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
_AS = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]


class Server:
    """The database on one node's directory."""

    def __init__(self, node: MirrorNode, sockets: Path) -> None:
        self._data, self._sockets = node.data / "pg", sockets
        self._programs = postgres_programs()

    def start(self) -> None:
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        options = f"-c listen_addresses= -c unix_socket_directories={self._sockets} -c shared_buffers=32MB"
        control = [self._programs / "pg_ctl", "-D", self._data, "-w", "-s", "-l", self._sockets / "log"]
        as_postgres(*control, "-o", options, "start")
        self._pid = int((self._data / "postmaster.pid").read_text().split()[0])

    def ask(self, sql: str) -> str:
        return as_postgres(self._programs / "psql", "-h", self._sockets, "-At", "postgres", "-c", sql)

    def client(self, number: int, log: Path) -> subprocess.Popen[bytes]:
        """Commits one row after the other and writes down each that the server has acknowledged."""
        rows = f"SELECT 'INSERT INTO t VALUES ({number}, ' || n || ') RETURNING n' FROM generate_series(1, 200000) n"
        command = [self._programs / "psql", "-h", self._sockets, "-qAt", "postgres", "-f", "-"]
        with log.open("wb") as out:
            client = subprocess.Popen(
                [*_AS, *map(str, command)], stdin=subprocess.PIPE, stdout=out, stderr=subprocess.DEVNULL, cwd="/"
            )
        assert client.stdin is not None
        client.stdin.write(f"{rows} \\gexec\n".encode())
        client.stdin.close()
        return client

    def crash(self) -> None:
        """kill -9 of the server and all of its children; their directory is gone anyway."""
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        for pid in (self._pid, *map(int, children)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        end = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in (self._pid, *children)):
            assert time.monotonic() < end, "the server does not end"
            time.sleep(0.02)

    def stop(self) -> None:
        as_postgres(self._programs / "pg_ctl", "-D", self._data, "-w", "-s", "-m", "fast", "stop")


def test_no_acknowledged_commit_is_lost() -> None:
    dice = random.Random(SEED)
    total = 0
    with TwoNodes("mpg", "--ack", ACK) as nodes:
        sockets = nodes.base / "sockets"
        sockets.mkdir()
        shutil.chown(sockets, "postgres", "postgres")
        nodes.one.ctl("promote", "--accept", "first")
        nodes.one.wait_in_sync()
        pg = nodes.one.data / "pg"
        pg.mkdir(mode=0o700)
        shutil.chown(pg, "postgres", "postgres")
        as_postgres(postgres_programs() / "initdb", "-D", pg, "-A", "trust", "--no-instructions")
        server = Server(nodes.one, sockets)
        server.start()
        server.ask("CREATE TABLE t (client int, n int)")
        as_postgres(postgres_programs() / "pgbench", "-h", sockets, "postgres", "-i", "-q", "-s", "2")
        primary, other = nodes.nodes
        for turn in range(KILLS):
            logs = [nodes.base / f"acknowledged-{turn}-{number}" for number in range(3)]
            clients = [server.client(10 * turn + number, log) for number, log in enumerate(logs)]
            bench = subprocess.Popen(
                [
                    *_AS,
                    str(postgres_programs() / "pgbench"),
                    "-h",
                    str(sockets),
                    "-n",
                    "-c",
                    "2",
                    "-T",
                    "60",
                    "postgres",
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
            )
            end = time.monotonic() + 60
            while not all(log.stat().st_size for log in logs):
                assert time.monotonic() < end, "a client commits nothing"
                time.sleep(0.02)
            time.sleep(dice.uniform(0.0, 2.0))
            # Every other time the cable goes first, as with a node's power: what only waits in a socket never arrives.
            if turn % 2 == 0:
                nodes.cut()
                time.sleep(dice.uniform(0.0, 0.3))
            primary.kill()
            server.crash()
            for process in (*clients, bench):
                process.wait(60)

            other.wait("alone", lambda status: not status["peer"]["connected"])
            other.ctl("promote")
            server = Server(other, sockets)
            server.start()
            for number, log in enumerate(logs):
                said = {int(line) for line in log.read_text().split() if line.isdigit()}
                rows = server.ask(f"SELECT n FROM t WHERE client = {10 * turn + number}")
                lost = said - {int(row) for row in rows.split()}
                assert not lost, f"turn {turn} (seed {SEED}): {len(lost)} of {len(said)} acknowledged commits are lost"
                total += len(said)
            bench_again = postgres_programs() / "pgbench"
            as_postgres(bench_again, "-h", sockets, "-n", "-c", "2", "-t", "50", "postgres")

            nodes.mend()
            primary.ctl("start")
            other.wait_in_sync()
            primary, other = other, primary
        print(f"seed {SEED}: {KILLS} kills, {total} acknowledged commits, 0 lost")

        server.stop()
        primary.ctl("swap")
        other.wait("primary", lambda status: status["role"] == "primary" and status["in_sync"])
        server = Server(other, sockets)
        server.start()
        assert int(server.ask("SELECT count(*) FROM t")) >= total
        server.stop()
        assert other.ctl("verify")["equal"]
        assert differences(nodes.one.data, nodes.two.data) == []
