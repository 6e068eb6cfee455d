# SPDX-License-Identifier: Apache-2.0
"""What the farm in a lab says of itself, and waiting for it to say something."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import datetime

from farmd.lab.lab import Lab
from farmd.model.answers import EventData, FarmStatus
from farmd.model.errors import FarmError, NotFound, TimedOut

_POLL_S = 0.05


class Farm:
    """The nodes' own words, over their APIs. Every method may raise the errors of `farmd.client`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def status(self, node: str) -> FarmStatus:
        """The farm as `node` sees it."""
        return self.lab.api(node).status().data

    def buckets(self, node: str, *, group: str = "default") -> dict[str, int]:
        """How many buckets of a group each node has in the view of `node`."""
        return {
            member["name"]: share["buckets"]
            for member in self.status(node)["members"]
            for share in member["groups"]
            if share["group"] == group
        }

    def connections(self, node: str) -> dict[str, int]:
        """How many connections each node has, as `node` knows it from heartbeats."""
        return {member["name"]: member["connections"] or 0 for member in self.status(node)["members"]}

    def serves(self, node: str) -> bool:
        """Whether `node` says that it serves: a started view and a valid lease."""
        status = self.status(node)
        view = status["view"]
        return status["phase"] == "serving" and view is not None and view["started"] and status["lease"]["valid"]

    def wait_serving(self, nodes: Collection[str], *, seconds: float = 30) -> float:
        """Wait until exactly `nodes` own buckets, all agree on the view, and each serves; the seconds it took."""

        def formed() -> bool:
            owners = [{name for name, count in self.buckets(node).items() if count} for node in nodes]
            views = {(self.status(node)["view"] or {"ballot": node})["ballot"] for node in nodes}
            return all(self.serves(node) for node in nodes) and owners == [set(nodes)] * len(nodes) and len(views) == 1

        return self.wait(f"{', '.join(sorted(nodes))} serve and nobody else does", formed, seconds=seconds)

    def wait(self, what: str, condition: Callable[[], bool], *, seconds: float = 30) -> float:
        """Wait until `condition` holds; an API that does not answer yet is no answer.

        Returns the seconds it took. Raises TimedOut, which says what the wait was for.
        """
        began = time.monotonic()
        last: FarmError | None = None
        while True:
            try:
                if condition():
                    return time.monotonic() - began
                last = None
            except FarmError as error:
                last = error
            if time.monotonic() - began > seconds:
                reason = f"; the last answer was: {last}" if last else ""
                subject = f"lab {self.lab.plan.name}"
                raise TimedOut(subject, f"{seconds:.0f} s were not enough until {what}{reason}", "Read the nodes' logs")
            time.sleep(_POLL_S)

    def last_event(self, node: str) -> int:
        """The id of the newest event of `node`; 0 if it has none."""
        events = self.lab.api(node).events(after=-1, limit=1).data["events"]
        return events[-1]["id"] if events else 0

    def events(self, node: str, *, after: int = 0) -> list[EventData]:
        """Events of `node` after an id, oldest first."""
        return self.lab.api(node).events(after=after, limit=1000).data["events"]

    def first_event(self, node: str, kind: str, *, after: int) -> EventData:
        """The first event of type `kind` after an id. NotFound if there is none yet."""
        for event in self.events(node, after=after):
            if event["type"] == kind:
                return event
        raise NotFound(f"event {kind}", f"{node} has none after {after}", "Wait for it")


def event_ns(event: EventData) -> int:
    """When an event happened: nanoseconds of CLOCK_REALTIME, as the observer's times are."""
    return int(datetime.fromisoformat(event["at"]).timestamp() * 1e9)
