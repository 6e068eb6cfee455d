# SPDX-License-Identifier: Apache-2.0
"""What the lab's tests put on the wire, and what they ask of what came back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from farmd.lab import probe
from farmd.lab.connections import Connections, Tally
from farmd.lab.farm import Farm
from farmd.lab.observer import Observer
from farmd.lab.probe import Prober

PATIENCE_S = 30
"""A generous bound for anything that has to happen at all; benches measure how fast."""


@dataclass
class Traffic:
    """Probes and long-lived connections on a farm, and the observer."""

    farm: Farm
    observer: Observer
    connections: Connections
    began_ns: int

    def tally(self) -> Tally:
        return self.connections.tally()

    def answered_by(self, since_ns: int) -> set[str]:
        return set(self.observer.observation(since_ns).by_node)

    def wait_recovered(self, node: str, fault_ns: int) -> float:
        """Wait until every sampled client of `node` is served by another node again; milliseconds after the fault."""

        def recovered() -> bool:
            return probe.takeover_of(self.observer, node, fault_ns).all_ms is not None

        self.farm.wait(f"clients of {node} are served again", recovered, seconds=PATIENCE_S)
        result = probe.takeover_of(self.observer, node, fault_ns)
        assert result.sampled > 0
        assert result.all_ms is not None
        return result.all_ms

    def assert_exclusive(self) -> None:
        seen = self.observer.observation(self.began_ns)
        assert seen.syns > 0
        assert seen.clean, seen


@contextmanager
def traffic(farm: Farm, *, connections: int = 60) -> Iterator[Traffic]:
    """Put traffic on the farm; at the end the observer must have seen no SYN answered twice."""
    plan = farm.lab.plan
    flows = probe.flows_of(plan, 1) + probe.flows_of(plan, 1, ipv6=True)
    with (
        Observer(plan) as observer,
        Connections(plan, connections) as opened,
        Prober(plan, flows, 500),
    ):
        began = time.time_ns()
        time.sleep(1)  # so that everybody's owner is known before anything happens
        running = Traffic(farm, observer, opened, began)
        yield running
        running.assert_exclusive()


def curl(farm: Farm, client: str, url: str, *options: str) -> tuple[int, str]:
    """curl from a client: its exit status and what it got."""
    done = farm.lab.exec(client, ["curl", "-sS", "--globoff", "-m", "5", *options, url])
    return done.returncode, done.stdout.strip()
