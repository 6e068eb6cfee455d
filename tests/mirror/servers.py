# SPDX-License-Identifier: Apache-2.0
"""The real database servers of Debian's packages, each with clients that write down what was acknowledged to them.

A client commits (client, 1), (client, 2), ... one after the other and appends a number to its ledger only when the
server has acknowledged it. Ledgers, sockets and logs lie outside of the mirror.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.mirror.test_databases import as_postgres, postgres_programs

_DEADLINE_S = 120.0
_ROWS = 20_000
"""More than a client commits in its life."""


class Database(ABC):
    """One server and its data. `scratch` is a folder of its own outside of the mirror."""

    name: str
    client_count = 3
    second = ""
    """It uses a second directory of the mirror, on a file system of this kind."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._server: subprocess.Popen[bytes] | None = None
        self.wal_of: dict[Path, Path] = {}
        """The second directory that is beside a first one."""

    @abstractmethod
    def create(self, folder: Path) -> None:
        """A new database in `folder`, with a table t (client, n); the server does not run afterwards."""

    @abstractmethod
    def start(self, folder: Path) -> None:
        """The server on `folder`; on return it has recovered and answers."""

    @abstractmethod
    def client(self, number: int, ledger: Path) -> subprocess.Popen[bytes]:
        """Commits rows until it is ended or the server is."""

    @abstractmethod
    def rows(self, client: int) -> set[int]:
        """What the table has of this client."""

    @abstractmethod
    def check(self) -> None:
        """The server's own check of its data. Raises AssertionError."""

    def load(self) -> list[subprocess.Popen[bytes]]:
        """Further load whose commits nobody counts; it ends with the server."""
        return []

    def pids(self) -> list[int]:
        """The server's processes."""
        return [] if self._server is None else [self._server.pid, *children(self._server.pid)]

    def crash(self) -> None:
        """kill -9 of all of them."""
        end_at_once(self.pids())
        if self._server is not None:
            self._server.wait(_DEADLINE_S)
        self._server = None

    def stop(self) -> None:
        """The orderly end."""
        assert self._server is not None
        self._server.terminate()
        assert self._server.wait(_DEADLINE_S) == 0
        self._server = None

    def _run(self, command: Sequence[object], user: str, out: Path | None = None) -> subprocess.Popen[bytes]:
        """A process of `user` whose output goes to `out`."""
        words = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", *map(str, command)]
        with (out or self._scratch / "log").open("ab") as file:
            errors = subprocess.DEVNULL if out else file
            return subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=errors, cwd="/", env=self._env()
            )

    def _feed(self, command: Sequence[object], user: str, text: str, ledger: Path) -> subprocess.Popen[bytes]:
        """A client that reads `text` and writes its ledger."""
        script = ledger.with_suffix(".sql")
        script.write_text(text)
        words = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", *map(str, command)]
        with script.open("rb") as source, ledger.open("wb") as out:
            errors = subprocess.DEVNULL
            process = subprocess.Popen(words, stdin=source, stdout=out, stderr=errors, cwd="/", env=self._env())
        script.unlink()
        return process

    def _answers(self, command: Sequence[object]) -> None:
        end = time.monotonic() + _DEADLINE_S
        while True:
            done = subprocess.run([str(word) for word in command], capture_output=True, check=False, env=self._env())
            if done.returncode == 0:
                return
            self._wait(end)

    def _wait(self, end: float) -> None:
        """A little, while the server starts."""
        assert self._server is not None
        assert self._server.poll() is None, f"{self.name} ended: {self._log()}"
        assert time.monotonic() < end, f"{self.name} does not answer: {self._log()}"
        time.sleep(0.05)

    def _env(self) -> dict[str, str]:
        return dict(os.environ)

    def _log(self) -> str:
        path = self._scratch / "log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def end_at_once(pids: Sequence[int]) -> None:
    """kill -9, and wait until they touch nothing any more."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    end = time.monotonic() + 30
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < end, f"of {pids} some do not end"
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ask(command: Sequence[object], env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def found(path: str, package: str) -> str:
    """A program of a Debian package."""
    assert Path(path).exists(), f"{path} is missing: apt-get install {package}"
    return path


class Postgres(Database):
    """With data checksums, and pgbench beside the counting clients."""

    name = "postgresql"

    def create(self, folder: Path) -> None:
        shutil.chown(self._scratch, "postgres", "postgres")
        pg = folder / "pg"
        pg.mkdir(mode=0o700)
        shutil.chown(pg, "postgres", "postgres")
        as_postgres(postgres_programs() / "initdb", "-D", pg, "-A", "trust", "-k", "--no-instructions")
        self.start(folder)
        self._sql("CREATE TABLE t (client int, n int, PRIMARY KEY (client, n))")
        as_postgres(postgres_programs() / "pgbench", "-h", self._scratch, "postgres", "-i", "-q", "-s", "2")
        self.stop()

    def start(self, folder: Path) -> None:
        (folder / "pg/postmaster.pid").unlink(missing_ok=True)
        settings = ["listen_addresses=", f"unix_socket_directories={self._scratch}", "shared_buffers=32MB"]
        options = [word for setting in settings for word in ("-c", setting)]
        self._server = self._run([postgres_programs() / "postgres", "-D", folder / "pg", *options], "postgres")
        self._answers([postgres_programs() / "pg_isready", "-q", "-h", self._scratch, "-d", "postgres"])

    def client(self, number: int, ledger: Path) -> subprocess.Popen[bytes]:
        rows = f"SELECT 'INSERT INTO t VALUES ({number}, ' || n || ') RETURNING n' FROM generate_series(1, {_ROWS}) n"
        command = [postgres_programs() / "psql", "-h", self._scratch, "-qAt", "postgres", "-f", "-"]
        return self._feed(command, "postgres", f"{rows} \\gexec\n", ledger)

    def load(self) -> list[subprocess.Popen[bytes]]:
        bench = [postgres_programs() / "pgbench", "-h", self._scratch, "-n", "-c", "2", "-T", "3600", "postgres"]
        return [self._run(bench, "postgres", Path("/dev/null"))]

    def rows(self, client: int) -> set[int]:
        return {int(word) for word in self._sql(f"SELECT n FROM t WHERE client = {client}").split()}

    def check(self) -> None:
        balances = [f"(SELECT sum({kind[0]}balance) FROM pgbench_{kind}s)" for kind in ("account", "branche", "teller")]
        delta = "(SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
        assert len(set(self._sql(f"SELECT {', '.join([*balances, delta])}").strip().split("|"))) == 1

    def stop(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGINT)  # "fast"
        assert self._server.wait(_DEADLINE_S) == 0, self._log()
        self._server = None

    def _sql(self, text: str) -> str:
        return as_postgres(postgres_programs() / "psql", "-h", self._scratch, "-At", "postgres", "-c", text)


class PostgresTwoDirectories(Postgres):
    """Its write-ahead log is in the mirror's second directory, on another file system than the tables."""

    name = "postgresql-wal"
    second = "ext4"

    def start(self, folder: Path) -> None:
        log, place = folder / "pg/pg_wal", self.wal_of[folder] / "pg_wal"
        if not log.is_symlink():  # as `initdb --waldir` would have made it
            shutil.move(log, place)
            ask(["chown", "-R", "postgres:postgres", place])
        elif log.readlink() != place:  # on real nodes the paths are the same
            log.unlink()
        if not log.is_symlink():
            log.symlink_to(place)
        super().start(folder)


class MariaDb(Database):
    """InnoDB with its defaults: the log is synced at each commit, the doublewrite buffer is on."""

    name = "mariadb"

    def create(self, folder: Path) -> None:
        program = found("/usr/bin/mariadb-install-db", "mariadb-server-core mariadb-client-core")
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        ask([program, "--no-defaults", "--user=root", f"--datadir={folder}/my", *options])
        self.start(folder)
        self._sql("CREATE DATABASE d; CREATE TABLE d.t (client INT, n INT, PRIMARY KEY (client, n)) ENGINE=InnoDB")
        self._sql("CREATE TABLE d.busy (id INT PRIMARY KEY, text VARCHAR(900)) ENGINE=InnoDB")
        self.stop()

    def start(self, folder: Path) -> None:
        options = ["--user=root", f"--datadir={folder}/my", f"--socket={self._scratch}/socket", "--skip-networking"]
        options += [f"--pid-file={self._scratch}/pid", f"--log-error={self._scratch}/log", "--performance-schema=OFF"]
        options += ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M"]
        self._server = self._run(["/usr/sbin/mariadbd", "--no-defaults", *options], "root")
        self._answers([*self._program(), "-e", "SELECT 1"])

    def client(self, number: int, ledger: Path) -> subprocess.Popen[bytes]:
        busy = "REPLACE INTO busy VALUES ({key}, REPEAT('x', {length}))"
        lines = [
            f"BEGIN; INSERT INTO t VALUES ({number}, {n});"
            f"{busy.format(key=n * 7919 % 2000, length=n % 900)}; COMMIT; SELECT {n};"
            for n in range(1, 6_001)
        ]
        return self._feed([*self._program(), "-n", "d"], "root", "\n".join(lines), ledger)

    def rows(self, client: int) -> set[int]:
        return {int(word) for word in self._sql(f"SELECT n FROM d.t WHERE client = {client}").split()}

    def check(self) -> None:
        said = self._sql("CHECK TABLE d.t EXTENDED; CHECK TABLE d.busy EXTENDED")
        assert said.count("\tOK\n") == 2, said

    def _program(self) -> list[str]:
        return ["/usr/bin/mariadb", "--no-defaults", "-u", "root", "-S", f"{self._scratch}/socket", "-N", "-B"]

    def _sql(self, text: str) -> str:
        return ask([*self._program(), "-e", text])


class Sqlite(Database):
    """Two databases, one with a rollback journal and one with a WAL; the clients are the engine."""

    name = "sqlite"
    client_count = 4

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._folder = scratch
        self._clients: list[subprocess.Popen[bytes]] = []

    def create(self, folder: Path) -> None:
        for mode in ("delete", "wal"):
            with sqlite3.connect(folder / f"{mode}.db") as base:
                base.execute(f"PRAGMA journal_mode={mode}")
                base.execute("CREATE TABLE t (client INTEGER, n INTEGER, PRIMARY KEY (client, n))")
            base.close()

    def start(self, folder: Path) -> None:
        self._folder = folder

    def client(self, number: int, ledger: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.mirror.sqlite_client", str(self._path(number)), str(number)]
        with ledger.open("wb") as out:
            here = Path(__file__).parents[2]
            client = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, cwd=here)
        self._clients.append(client)
        return client

    def rows(self, client: int) -> set[int]:
        return {int(n) for (n,) in self._sql(self._path(client), f"SELECT n FROM t WHERE client = {client}")}

    def check(self) -> None:
        for mode in range(2):
            assert self._sql(self._path(mode), "PRAGMA integrity_check") == [("ok",)]

    def pids(self) -> list[int]:
        return [client.pid for client in self._clients]

    def crash(self) -> None:
        super().crash()
        self._clients.clear()

    def stop(self) -> None:
        self.crash()

    def _path(self, client: int) -> Path:
        return self._folder / f"{('delete', 'wal')[client % 2]}.db"

    def _sql(self, path: Path, text: str) -> list[tuple[Any, ...]]:
        base = sqlite3.connect(path, timeout=60)
        try:
            return base.execute(text).fetchall()
        finally:
            base.close()


class Firebird(Database):
    """Firebird 3 as a super server on a port of its own; forced writes are on, which is its default."""

    name = "firebird"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]

    def create(self, folder: Path) -> None:
        found("/usr/sbin/firebird", "firebird3.0-server firebird3.0-utils")
        (self._scratch / "firebird.conf").write_text(
            f"RemoteBindAddress = 127.0.0.1\nRemoteServicePort = {self._port}\n"
            f"SecurityDatabase = {self._scratch}/security3.fdb\nServerMode = Super\n"
        )
        shutil.copy("/etc/firebird/3.0/plugins.conf", self._scratch)
        shutil.copy("/var/lib/firebird/3.0/system/security3.fdb", self._scratch)
        (folder / "fb").mkdir()
        for place in (self._scratch, *self._scratch.iterdir(), folder / "fb"):
            shutil.chown(place, "firebird", "firebird")
        self._isql(
            ["-user", "sysdba", self._scratch / "security3.fdb"],
            "CREATE OR ALTER USER SYSDBA PASSWORD 'masterkey'; COMMIT;",
        )
        self._isql([], f"CREATE DATABASE '{folder}/fb/t.fdb'; CREATE TABLE t (client INT, n INT); COMMIT;")

    def start(self, folder: Path) -> None:
        self._base = f"127.0.0.1/{self._port}:{folder}/fb/t.fdb"
        self._server = self._run(["/usr/sbin/firebird", "-p", self._port], "firebird")
        end = time.monotonic() + _DEADLINE_S
        while True:
            try:
                return self.check()
            except AssertionError:
                self._wait(end)

    def client(self, number: int, ledger: Path) -> subprocess.Popen[bytes]:
        lines = (
            f"INSERT INTO t VALUES ({number}, {n}); COMMIT; SELECT {n} FROM RDB$DATABASE;" for n in range(1, 5_001)
        )
        command = ["stdbuf", "-oL", "isql-fb", "-q", "-bail", *self._as_sysdba(), self._base]
        return self._feed(command, "firebird", "SET HEADING OFF;\n" + "\n".join(lines), ledger)

    def rows(self, client: int) -> set[int]:
        said = self._isql(
            [*self._as_sysdba(), self._base], f"SET HEADING OFF; SELECT n FROM t WHERE client = {client};"
        )
        return {int(word) for word in said.split()}

    def check(self) -> None:
        """Reads every row; pages have checks of their own kind (`gfix -v` wants the database to itself)."""
        said = self._isql([*self._as_sysdba(), self._base], "SET HEADING OFF; SELECT count(n) FROM t;")
        assert said.strip().isdigit(), said

    def stop(self) -> None:
        """Firebird 3.0.11 does not end on SIGTERM after clients broke off, on a bare directory either."""
        self.crash()

    def _as_sysdba(self) -> list[str]:
        return ["-user", "SYSDBA", "-password", "masterkey"]

    def _isql(self, words: Sequence[object], text: str) -> str:
        user = ["setpriv", "--reuid", "firebird", "--regid", "firebird", "--clear-groups"]
        command = [*user, "isql-fb", "-q", "-bail", *map(str, words)]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, env=self._env(), cwd="/"
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    def _env(self) -> dict[str, str]:
        return os.environ | {"FIREBIRD": str(self._scratch), "FIREBIRD_LOCK": str(self._scratch)}


DATABASES: dict[str, type[Database]] = {
    each.name: each for each in (Postgres, PostgresTwoDirectories, MariaDb, Sqlite, Firebird)
}
