# SPDX-License-Identifier: Apache-2.0
"""Real database servers on a mounted mirror; afterwards the copy, opened by itself, has everything."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mirror.pair import Pair
from tests.mirror.trees import differences

pytestmark = [pytest.mark.root, pytest.mark.lab]


def postgres_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "PostgreSQL is missing: apt-get install postgresql"
    return found[-1].parent


def as_postgres(*command: object) -> str:
    done = subprocess.run(
        ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def postgres(data: Path, sockets: Path, shared_buffers: str = "32MB") -> Iterator[Path]:
    """A server on `data`, reachable only through a socket in `sockets`."""
    programs = postgres_programs()
    options = f"-c listen_addresses= -c unix_socket_directories={sockets} -c shared_buffers={shared_buffers}"
    control = [programs / "pg_ctl", "-D", data, "-w", "-s"]
    try:
        as_postgres(*control, "-l", sockets / "log", "-o", options, "start")
    except AssertionError as error:
        raise AssertionError((sockets / "log").read_text()[-2000:]) from error
    try:
        yield programs
    finally:
        as_postgres(*control, "-m", "fast", "stop")


def test_sqlite_keeps_every_commit_at_the_copy() -> None:
    with Pair() as pair:
        pair.join()
        for mode in ("delete", "wal"):
            path = pair.mount / f"{mode}.db"
            base = sqlite3.connect(path, isolation_level=None)
            base.execute(f"PRAGMA journal_mode={mode}")
            base.execute("PRAGMA synchronous=FULL")
            base.execute("CREATE TABLE t (n INTEGER)")
            for number in range(100):
                base.execute("INSERT INTO t VALUES (?)", (number,))
            # Without a clean close: what the copy has now is what a crash here would leave.
            taken = pair.base / f"taken-{mode}"
            shutil.copytree(pair.copy, taken)
            found = sqlite3.connect(taken / f"{mode}.db")
            assert found.execute("SELECT count(*), sum(n) FROM t").fetchone() == (100, 4950)
            assert found.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found.close()
            base.close()
        pair.settle()

        assert differences(pair.backing, pair.copy) == []


def test_postgresql_runs_on_the_mirror_and_on_its_copy() -> None:
    with Pair() as pair:
        pair.join()
        data, sockets = pair.mount / "data", pair.base / "sockets"
        for folder in (data, sockets):
            folder.mkdir(mode=0o700)
            shutil.chown(folder, "postgres", "postgres")
        as_postgres(postgres_programs() / "initdb", "-D", data, "-A", "trust", "--no-instructions")
        with postgres(data, sockets) as programs:
            bench = [programs / "pgbench", "-h", sockets, "postgres"]
            as_postgres(*bench, "-i", "-q", "-s", "2")
            as_postgres(*bench, "-c", "4", "-t", "100", "-n")
            ask = [programs / "psql", "-h", sockets, "-At", "postgres", "-c"]
            before = as_postgres(*ask, "SELECT count(*), sum(delta) FROM pgbench_history")
            assert before.startswith("400|")
        pair.settle()
        assert differences(pair.backing, pair.copy) == []

        with postgres(pair.copy / "data", sockets) as programs:
            ask = [programs / "psql", "-h", sockets, "-At", "postgres", "-c"]
            assert as_postgres(*ask, "SELECT count(*), sum(delta) FROM pgbench_history") == before


def test_postgresql_loses_no_commit_when_the_primary_node_is_killed() -> None:
    with Pair() as pair:
        pair.join()
        data, sockets, others = pair.mount / "data", pair.base / "sockets", pair.base / "others"
        for folder in (data, sockets, others):
            folder.mkdir(mode=0o700)
            shutil.chown(folder, "postgres", "postgres")
        programs = postgres_programs()
        as_postgres(programs / "initdb", "-D", data, "-A", "trust", "--no-instructions")
        options = f"-c listen_addresses= -c unix_socket_directories={sockets}"
        as_postgres(programs / "pg_ctl", "-D", data, "-w", "-s", "-l", sockets / "log", "-o", options, "start")
        server = int((data / "postmaster.pid").read_text().split()[0])
        psql = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        psql += [str(programs / "psql"), "-h", str(sockets), "-At", "postgres"]
        as_postgres(programs / "psql", "-h", sockets, "-c", "CREATE TABLE t (n int)", "postgres")
        statements = "".join(f"INSERT INTO t VALUES ({n}) RETURNING n;\n" for n in range(100_000))
        script = pair.base / "script.sql"
        script.write_text(statements)
        with (
            script.open() as source,
            subprocess.Popen(
                psql, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/"
            ) as client,
        ):
            assert client.stdout is not None
            acknowledged = [client.stdout.readline() for _ in range(600)]
            # The node goes: the engine first, then the server, which by then has an unusable directory.
            pair.primary.kill()
            subprocess.run(["kill", "-9", str(server)], check=False)
            acknowledged += client.stdout.readlines()
            client.kill()
        last = max(int(line) for line in acknowledged if line.strip().isdigit())
        pair.secondary.wait_for("ended")
        (pair.copy / "data/postmaster.pid").unlink(missing_ok=True)

        with postgres(pair.copy / "data", others) as programs:
            ask = [programs / "psql", "-h", others, "-At", "postgres", "-c"]
            found = {int(n) for n in as_postgres(*ask, "SELECT n FROM t").split()}
        assert set(range(last + 1)) - found == set()
        assert last >= 250
