# SPDX-License-Identifier: Apache-2.0
"""What a resync will do, how much that is and how long it takes, from the journals alone. Nothing is read or sent.

The order is that of `Tracker.next_unsent`: names, attributes, contents, each by handle, which is about the order of a
disk. A resync that was interrupted is planned anew from the journal, which lost what both nodes had durably: there is
no other cursor, except for the walk of the tree, whose position is a line of the journal, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from farmd.mirror.zones import BLOCK_BYTES, Cover, Kind, Zone

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Step:
    """One zone to do. `suspect`: the target's digests first, then only the blocks that differ."""

    zone: Zone
    mask: int
    suspect: bool

    @property
    def content_bytes(self) -> int:
        """How much content its blocks are at most."""
        return self.mask.bit_count() * BLOCK_BYTES if self.zone.kind is Kind.DATA else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A resync from journals."""

    steps: tuple[Step, ...]
    walk_above: bytes | None
    """Handle above which all of the tree is compared as well; None: no walk."""

    @property
    def send_bytes(self) -> int:
        """Content that surely travels."""
        return sum(step.content_bytes for step in self.steps if not step.suspect)

    @property
    def compare_bytes(self) -> int:
        """Content that is read and compared on both sides; of it only what differs travels."""
        return sum(step.content_bytes for step in self.steps if step.suspect)

    @property
    def directories(self) -> int:
        """Directories whose names are compared."""
        return sum(step.zone.kind is Kind.ENTRIES for step in self.steps)

    @property
    def files(self) -> int:
        """Files of which something is done."""
        return len({step.zone.handle for step in self.steps if step.zone.kind is not Kind.ENTRIES})


def plan(covers: Iterable[Cover]) -> Plan:
    """The resync that these journals (the primary's and its target's) ask for."""
    zones: dict[Zone, Step] = {}
    above: bytes | None = None
    for cover in covers:
        if cover.tree is not None:
            above = cover.tree if above is None else min(above, cover.tree)
        for zone, mark in cover.marks.items():
            before = zones.get(zone)
            known = 0 if before is None or before.suspect else before.mask
            hot = mark.hot or (before is not None and before.suspect)
            zones[zone] = Step(zone, zone.full, True) if hot else Step(zone, known | mark.mask, False)
    whole = {zone.handle for zone in zones if zone.kind is Kind.WHOLE}
    kept = (step for zone, step in sorted(zones.items()) if zone.kind is not Kind.DATA or zone.handle not in whole)
    return Plan(tuple(kept), above)


@dataclass(frozen=True, slots=True)
class Progress:
    """A resync under way. `compare_left_bytes` includes what the walk of the tree has not reached."""

    sent_bytes: int
    left_bytes: int
    compare_left_bytes: int
    since_ns: int


def eta_s(progress: Progress, now_ns: int, rate_bytes_s: float, compare_bytes_s: float) -> float | None:
    """Seconds until the end, or None if nothing is known yet.

    The rate is what was seen so far, once two seconds have passed, and what the controller allows before that.
    Sending and comparing overlap, so the longer one counts.
    """
    passed_s = (now_ns - progress.since_ns) / 1e9
    seen = progress.sent_bytes / passed_s if passed_s >= 2 and progress.sent_bytes else rate_bytes_s
    if progress.left_bytes and seen <= 0:
        return None
    sending = progress.left_bytes / seen if progress.left_bytes else 0.0
    comparing = progress.compare_left_bytes / compare_bytes_s if compare_bytes_s > 0 else 0.0
    return max(sending, comparing)
