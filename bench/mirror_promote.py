# SPDX-License-Identifier: Apache-2.0
"""From `promote` to a writable directory, after the primary node died, by the number of files in the mirror.

`python -m bench.mirror_promote` takes about five minutes. Two nodes in namespaces; each time the primary is killed,
the other is promoted, and the clock runs from the order to the first byte that an application has written. `order` is
the time over the local API, `farmctl` that of the command with its own start. Below stands where the time of the order
went as the node itself tells it; `first write` is what is left: the answer's way back and the application's byte.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.report import publish, spread, table
from tests.mirror.nodes import MirrorNode, TwoNodes

FOLDERS = 100
GOAL_MS = 200
_SYNC_S = 300.0


def fill(folder: Path, files: int) -> None:
    """`files` small files in a hundred folders, written before there is a mirror."""
    for number in range(FOLDERS):
        (folder / f"d{number}").mkdir()
    data = os.urandom(200)
    for number in range(files):
        (folder / f"d{number % FOLDERS}" / f"f{number}").write_bytes(data)


def by_order(node: MirrorNode) -> float:
    """Milliseconds until a byte is written, the order given over the API."""
    api = node.api()
    began = time.perf_counter()
    api.order_mirror("promote", {"accept": "nothing"})
    return _written(node, began)


def by_command(node: MirrorNode) -> float:
    """The same with `farmctl`."""
    enter = ["nsenter", f"--net=/run/netns/{node.netns}", sys.executable, "-m", "farmd.cli", "mirror", "promote", "m"]
    where = os.environ | {"FARMCTL_MIRRORS": str(node.state)}
    began = time.perf_counter()
    subprocess.run(enter, check=True, capture_output=True, env=where)
    return _written(node, began)


def _written(node: MirrorNode, began: float) -> float:
    (node.data / "first-byte").write_bytes(b"1")
    return (time.perf_counter() - began) * 1000


def parts(node: MirrorNode) -> dict[str, float]:
    """Where the node says that the time of its last promotion went."""
    told: dict[str, float] = node.api().mirror().data["last_promotion_ms"]
    return told


def measure(files: int, rounds: int) -> tuple[dict[str, list[float]], list[dict[str, float]]]:
    """Kill and promote `rounds` times, in turn by order and by command; and the parts of each."""
    found: dict[str, list[float]] = {"order": [], "farmctl": []}
    told: list[dict[str, float]] = []
    with TwoNodes(f"bp{os.getpid() % 10_000}") as nodes:
        primary, other = nodes.nodes
        fill(primary.data, files)
        # A seeded copy: the first resync is not what is measured here.
        subprocess.run(["cp", "-a", f"{primary.data}/.", other.data], check=True)
        primary.ctl("promote", "--accept", "first")
        for number in range(2 * rounds):
            other.wait_in_sync(_SYNC_S)
            primary.kill()
            other.wait("alone", lambda status: not status["peer"]["connected"])
            if number % 2:
                found["farmctl"].append(by_command(other))
            else:
                found["order"].append(by_order(other))
                rest = found["order"][-1] - parts(other)["total"]
                told.append(parts(other) | {"first write": round(rest, 1)})
            primary.ctl("start")
            other.wait_in_sync(_SYNC_S)
            primary, other = other, primary
    return found, told


def main() -> None:
    """Measure, print a table, keep JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rows: list[list[object]] = []
    results: list[dict[str, object]] = []
    for files in arguments.files:
        times, told = measure(files, arguments.rounds)
        found = {how: spread(each) for how, each in times.items()}
        names = sorted({name for each in told for name in each})
        where = {name: spread([each.get(name, 0.0) for each in told]) for name in names}
        results.append({"files": files, "rounds": arguments.rounds, "parts": where} | found)
        rows += [[files, how, one["min"], one["p50"], one["max"]] for how, one in found.items()]
        rows += [[files, f"  of that order: {name}", one["min"], one["p50"], one["max"]] for name, one in where.items()]
    print(table(["files", "promoted by", "min ms", "median ms", "worst ms"], rows))
    print(f"goal: {GOAL_MS} ms by order at 100,000 files")
    print(publish("mirror_promote", {"results": results}))


if __name__ == "__main__":
    main()
