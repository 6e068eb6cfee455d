# SPDX-License-Identifier: Apache-2.0
"""The demo's chapters: each breaks or changes something under traffic and notes what it promised and what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from farmd.lab import netns, probe
from farmd.lab.connections import Connections, Tally
from farmd.lab.farm import Farm, event_ns
from farmd.lab.lab import Lab
from farmd.lab.load import Load
from farmd.lab.netns import Part
from farmd.lab.observer import Observer
from farmd.lab.packets import Flow
from farmd.lab.probe import Prober
from farmd.model.buckets import BUCKETS
from farmd.model.config import TIMINGS

CONNECTIONS = 200
PROBES_PER_SECOND = 800
TAKEOVER_BOUND_MS = 1000
"""What the demo promises; `bench/takeover.py` measures the distribution."""
_FLOWS_PER_ADDRESS = 2
_WATCH_S = 1.5
"""How long we go on watching after a change, so that what it broke has time to show."""
_GRACE_MS = 100
"""A packet that was accepted just before the lease ended is still answered, and then seen by the observer."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A sentence that must hold, whether it did, and what was seen."""

    text: str
    kept: bool
    seen: str


@dataclass
class Story:
    """A farm under traffic, and what was promised and measured so far. `say` shows one line to people."""

    lab: Lab
    farm: Farm
    observer: Observer
    connections: Connections
    say: Callable[[str], None]
    promises: list[Promise] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        """The serving nodes, by name."""
        return [host.name for host in self.lab.plan.serving]

    def promise(self, text: str, kept: bool, seen: str) -> None:
        """Note a promise and show it."""
        self.promises.append(Promise(text, kept, seen))
        self.say(f"{'ok    ' if kept else 'BROKEN'} {text}: {seen}")

    def prober(self) -> Prober:
        """Probes of buckets of all nodes."""
        return Prober(self.lab.plan, self.flows, PROBES_PER_SECOND)

    @property
    def flows(self) -> list[Flow]:
        """What `prober` sends."""
        return probe.flows_of(self.lab.plan, _FLOWS_PER_ADDRESS)

    def answered_by(self, since_ns: int) -> dict[str, int]:
        """How many SYNs each node has answered since then."""
        return self.observer.observation(since_ns).by_node


def distribution(story: Story) -> None:
    """Who serves what: buckets, new connections, long-lived connections, and load as HTTP clients make it."""
    began = time.time_ns()
    with story.prober(), Load(story.lab.plan) as load:
        time.sleep(2)
        result = load.stop()
    buckets = story.farm.buckets(story.nodes[0])
    answered = story.answered_by(began)
    held = story.connections.tally().open_by_node
    for node in story.nodes:
        story.say(
            f"{node}: {buckets[node]} of {BUCKETS} buckets, {held.get(node, 0)} of {CONNECTIONS} connections,"
            f" {answered.get(node, 0)} of {sum(answered.values())} probes answered"
        )
    story.say(f"wrk from {len(story.lab.plan.client_hosts)} clients: {result.text}")
    story.figures["distribution"] = {"buckets": buckets, "connections": held, "requests_per_second": result.per_second}
    even = max(buckets.values()) - min(buckets.values()) <= 1
    story.promise("equal weights, equal shares", even, f"{min(buckets.values())} to {max(buckets.values())} buckets")
    story.promise("healthy farm, no request fails", result.failed == 0, result.text)


def drain(story: Story, node: str) -> None:
    """No new client for `node`, its connections stay; then back in."""
    before = story.connections.tally()
    story.say(f"farmctl drain {node}")
    story.lab.api(story.nodes[0]).drain(node, reason="demo")
    took = story.farm.wait(f"{node} is drained", lambda: story.farm.buckets(node)[node] == 0)
    settled = time.time_ns()
    with story.prober():
        time.sleep(_WATCH_S)
    answered = story.answered_by(settled)
    tally = story.connections.tally()
    kept = tally.open_by_node.get(node, 0)
    story.say(f"drained in {took:.2f} s; {kept} connections still live on {node} and go on")
    _promise_whole(story, f"drain of {node}", tally.since(before))
    new = answered.get(node, 0)
    story.promise(f"no new client for {node} while drained", new == 0, f"{new} of {sum(answered.values())} probes")
    before = tally
    story.say(f"farmctl ready {node}")
    story.lab.api(story.nodes[0]).ready(node)
    story.farm.wait_serving(story.nodes)
    time.sleep(_WATCH_S)
    _promise_whole(story, f"return of {node}", story.connections.tally().since(before))


def reweight(story: Story, node: str) -> None:
    """Half the weight for `node`, then back."""
    before = story.connections.tally()
    story.say(f"farmctl weight {node} 50")
    story.lab.api(story.nodes[0]).set_weight(node, 50)
    want = BUCKETS * 50 // (50 + 100 * (len(story.nodes) - 1))
    story.farm.wait(f"{node} has its share", lambda: abs(story.farm.buckets(node)[node] - want) <= 1)
    buckets = story.farm.buckets(story.nodes[0])
    story.say("buckets: " + ", ".join(f"{name} {count}" for name, count in buckets.items()))
    time.sleep(_WATCH_S)
    story.lab.api(story.nodes[0]).set_weight(node, 100)
    story.farm.wait(f"{node} has its share", lambda: story.farm.buckets(node)[node] >= BUCKETS // len(story.nodes))
    time.sleep(_WATCH_S)
    _promise_whole(story, f"re-weight of {node}", story.connections.tally().since(before))


def link_loss(story: Story, node: str) -> None:
    """Pull the cable of `node` under load, see the others take over, plug it in again."""
    others = [name for name in story.nodes if name != node]
    before = story.connections.tally()
    last = story.farm.last_event(others[0])
    story.say(f"load on, then the cable of {node} is pulled")
    with story.prober(), Load(story.lab.plan) as load:
        time.sleep(_WATCH_S)
        fault = time.time_ns()
        story.lab.link_down(node)
        story.farm.wait_serving(others)
        time.sleep(2 * _WATCH_S)
        result = load.stop()
    tally = story.connections.tally().since(before)
    seen = probe.takeover_of(story.observer, node, fault)
    found = story.farm.first_event(others[0], "member.failed", after=last)
    detection = (event_ns(found) - fault) / 1e6
    story.figures["link_loss"] = {
        "detection_ms": round(detection, 1),
        "takeover_first_ms": seen.first_ms,
        "takeover_all_ms": seen.all_ms,
        "buckets_sampled": seen.sampled,
        "requests_succeeded": result.succeeded,
        "requests_failed": result.failed,
        "connections_lost_with_node": tally.lost - tally.lost_except(node),
        "connections_lost_elsewhere": tally.lost_except(node),
    }
    whole = seen.all_ms is not None and seen.all_ms <= TAKEOVER_BOUND_MS
    all_ms = "not all" if seen.all_ms is None else f"{seen.all_ms:.0f} ms"
    story.say(
        f"detected after {detection:.0f} ms; first client of {node} served again after {seen.first_ms or 0:.0f} ms"
    )
    story.say(f"wrk during all this: {result.text}")
    story.promise(
        f"dead link: takeover within {TAKEOVER_BOUND_MS} ms", whole, f"{all_ms}, {seen.sampled} buckets sampled"
    )
    _promise_others(story, node, tally)
    story.say(f"the cable of {node} is plugged in again")
    _promise_return(story, node, story.lab.link_up)


def freeze(story: Story, node: str) -> None:
    """SIGSTOP of farmd on `node`: its filter must stop by itself, while its nginx and its kernel go on."""
    others = [name for name in story.nodes if name != node]
    plan = story.lab.plan
    before = story.connections.tally()
    story.say(f"SIGSTOP for daemon and engine of {node}; its kernel, filter and nginx go on")
    with story.prober():
        time.sleep(_WATCH_S)
        fault = time.time_ns()
        story.lab.freeze(node)
        story.farm.wait_serving(others)
        lease_ms = _lease_left_ms(story, node)
        time.sleep(_WATCH_S)
    stopped_ms = probe.last_answer_ms(story.observer, node, fault)
    nginx = any(process.part is Part.NGINX for process in netns.processes(plan.host(node).namespace))
    seen = probe.takeover_of(story.observer, node, fault)
    bound = TIMINGS[plan.timing].lease_ns / 1e6 + _GRACE_MS
    lease = "over" if lease_ms <= 0 else f"valid for {lease_ms:.0f} ms"
    story.say(f"{node} answered its last SYN {stopped_ms:.0f} ms after the freeze; the lease in its kernel is {lease}")
    story.say(f"nginx on {node} {'still runs' if nginx else 'has ended'}; clients see the other nodes")
    story.figures["freeze"] = {"stopped_ms": round(stopped_ms, 1), "takeover_all_ms": seen.all_ms}
    stopped = stopped_ms <= bound and lease_ms <= 0 and nginx
    story.promise(
        "frozen node: its filter stops by itself", stopped, f"{stopped_ms:.0f} ms (lease {bound - _GRACE_MS:.0f})"
    )
    whole = seen.all_ms is not None and seen.all_ms <= TAKEOVER_BOUND_MS
    story.promise(
        f"frozen node: takeover within {TAKEOVER_BOUND_MS} ms",
        whole,
        "not all" if seen.all_ms is None else f"{seen.all_ms:.0f} ms",
    )
    tally = story.connections.tally().since(before)
    _promise_others(story, node, tally)
    story.say(f"SIGCONT for {node}")
    _promise_return(story, node, story.lab.thaw)


def verdict(story: Story) -> None:
    """What the wire says about the whole demo."""
    seen = story.observer.observation()
    story.figures["wire"] = {"syns": seen.syns, "answered": seen.answered, "doubles": seen.doubles}
    story.say(f"the observer saw {seen.syns} SYNs; answers: {seen.by_node}; frames it missed: {seen.lost_frames}")
    story.promise(
        "never two answers to one SYN", not seen.doubles and not seen.lost_frames, f"{seen.doubles} of {seen.syns}"
    )
    story.promise(
        "the virtual MAC is nobody's source and every VIP's address",
        not seen.virtual_mac_sources and not seen.wrong_announcements,
        f"{seen.virtual_mac_sources} frames, {len(seen.wrong_announcements)} announcements",
    )


def _promise_whole(story: Story, what: str, tally: Tally) -> None:
    story.promise(f"{what}: no connection reset", tally.whole and tally.open == CONNECTIONS, _losses(tally))


def _promise_others(story: Story, node: str, tally: Tally) -> None:
    lost = tally.lost_except(node)
    seen = f"{lost} lost, {tally.strays} astray; {tally.lost - lost} were on {node} and connected again"
    story.promise(f"failure of {node}: no connection of another node lost", lost == 0 and tally.strays == 0, seen)


def _promise_return(story: Story, node: str, heal: Callable[[str], None]) -> None:
    before = story.connections.tally()
    heal(node)
    took = story.farm.wait_serving(story.nodes)
    time.sleep(_WATCH_S)
    story.say(f"{node} serves again after {took:.1f} s")
    tally = story.connections.tally().since(before)
    # What still hung on the failed node was lost by its failure, not by its return.
    story.promise(f"return of {node}: no connection reset", tally.lost_except(node) == 0, _losses(tally))


def _losses(tally: Tally) -> str:
    return f"{tally.lost} lost, {tally.strays} astray, {tally.open} open, {tally.requests} requests answered"


def _lease_left_ms(story: Story, node: str) -> float:
    """What is left of a node's lease, read from the kernel's pinned map: the node itself is not asked."""
    from farmd.dataplane.planes import KernelPlanes

    with closing(KernelPlanes.open(story.lab.plan.pins / node)) as kernel:
        return kernel.lease_left_ns() / 1e6


CHAPTERS: tuple[tuple[str, Callable[[Story], None]], ...] = (
    ("Three nodes, one VIP, no load balancer", distribution),
    ("A node is drained and comes back", lambda story: drain(story, "node2")),
    ("A node gets another weight", lambda story: reweight(story, "node1")),
    ("A node's link dies under load", lambda story: link_loss(story, "node3")),
    ("A node's farmd freezes", lambda story: freeze(story, "node1")),
    ("The wire's own word", verdict),
)
