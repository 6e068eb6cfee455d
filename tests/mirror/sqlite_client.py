# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.mirror.sqlite_client PATH NUMBER`: commits rows to a SQLite database and prints each that is."""

from __future__ import annotations

import random
import sqlite3
import sys
import time


def patiently(base: sqlite3.Connection, sql: str, *values: int) -> None:
    """Wait for the lock in short steps: SQLite's own long ones starve one of two busy writers."""
    while True:
        try:
            base.execute(sql, values)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(random.uniform(0.001, 0.01))


def main() -> None:
    path, number = sys.argv[1], int(sys.argv[2])
    base = sqlite3.connect(path, isolation_level=None, timeout=0)
    # FULL does not sync the folder after the rollback journal is deleted: after a power loss the journal may be there
    # again and undo the last commit, on any disk (SQLite's manual, PRAGMA synchronous). EXTRA does.
    patiently(base, "PRAGMA synchronous=EXTRA")
    n = 0
    while True:
        n += 1
        patiently(base, "INSERT INTO t VALUES (?, ?)", number, n)
        print(n, flush=True)


if __name__ == "__main__":
    main()
