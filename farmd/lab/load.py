# SPDX-License-Identifier: Apache-2.0
"""HTTP load with `wrk` from every client, and what it counted."""

from __future__ import annotations

import re
import signal
import subprocess
from dataclasses import dataclass

from farmd.lab import netns
from farmd.lab.plan import PORT_BY_CONNECTION, VIP, LabPlan
from farmd.model.errors import FarmError

WRK = {"wrk": "wrk"}
"""The command and the package it comes in, for `netns.require_tools`."""
_LONGEST_S = 600


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What wrk counted, over all clients. `failed` adds up connect, read, write, time-out and HTTP errors."""

    succeeded: int
    failed: int
    per_second: float

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.succeeded} requests succeeded, {self.failed} failed ({self.per_second:.0f} a second)"


def parse(output: str) -> LoadResult:
    """Read what wrk printed. FarmError if it is not a report. Pure."""
    done = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if done is None or rate is None:
        raise FarmError("wrk", f"it printed no report: {output.strip()[:200]!r}", "Run it by hand on a client")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    answers = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    bad = int(answers[1]) if answers else 0
    failed = (sum(map(int, errors.groups())) if errors else 0) + bad
    return LoadResult(int(done[1]) - bad, failed, float(rate[1]))


class Load:
    """One `wrk` on each client at the VIP's per-connection port, between `start` and `stop`."""

    def __init__(self, plan: LabPlan, connections: int = 16) -> None:
        self._plan = plan
        self._connections = connections
        self._running: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        """Begin. It keeps its connections open and asks as fast as it is answered."""
        url = f"http://{VIP}:{PORT_BY_CONNECTION}/"
        argv = ["nice", "wrk", "-t1", f"-c{self._connections}", f"-d{_LONGEST_S}s", "--timeout", "2s", url]
        for host in self._plan.client_hosts:
            self._running.append(
                subprocess.Popen(
                    netns.enter(host.namespace, argv),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,  # Ctrl-C is ours to handle
                )
            )

    def stop(self) -> LoadResult:
        """End it and add up what the clients counted."""
        running, self._running = self._running, []
        for process in running:
            process.send_signal(signal.SIGINT)
        results = [parse(process.communicate(timeout=10)[0]) for process in running]
        return LoadResult(
            sum(result.succeeded for result in results),
            sum(result.failed for result in results),
            sum(result.per_second for result in results),
        )

    def close(self) -> None:
        """End it without asking for numbers. Safe to repeat."""
        for process in self._running:
            process.kill()
            process.communicate()
        self._running = []

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
