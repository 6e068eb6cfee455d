# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of leases: what a voter promises, and what a holder may conclude from it.

A holder counts from before it sent (`Lease`), a voter from after it received (`Promises`), and the voter's span is
longer by twice the clock error. So a promise outlasts every lease that rests on it, whatever the network did.
"""

from __future__ import annotations

from collections.abc import Callable

from farmd.membership.settings import NEVER_NS
from farmd.model.nodes import BootId, NodeId
from farmd.model.view import Ballot

_KEPT_SENDS = 256


class Promises:
    """What this voter stands by: for each incarnation of a node until when, and under which view (rule 2).

    Kept by incarnation, so that a stray message of an old one can neither shorten nor release the promise to a new one.
    """

    def __init__(self, length_ns: int) -> None:
        self._length_ns = length_ns
        self._given: dict[tuple[NodeId, BootId], tuple[int, Ballot]] = {}

    def give(self, now_ns: int, node: NodeId, boot: BootId, ballot: Ballot) -> None:
        """Stand by `node` under `ballot` for the promise's length from now."""
        self._given[node, boot] = (now_ns + self._length_ns, ballot)

    def forget(self, node: NodeId, boot: BootId) -> None:
        """That incarnation has closed everything for good."""
        self._given.pop((node, boot), None)

    def until(self, node: NodeId) -> int:
        """When the last promise to `node` runs out; NEVER_NS if there is none."""
        return max((until for (one, _), (until, _) in self._given.items() if one == node), default=NEVER_NS)

    def blocking(self, now_ns: int, ballot: Ballot, moved: Callable[[NodeId, BootId], bool]) -> int:
        """Until when promises under older views forbid a lease under `ballot` (rule 6); not above `now_ns`: they don't.

        `moved(node, boot)`: that incarnation has said that it adopted exactly `ballot`, so it released what it had to.
        """
        self._given = {key: given for key, given in self._given.items() if given[0] > now_ns}
        return max(
            (until for key, (until, under) in self._given.items() if under < ballot and not moved(*key)),
            default=NEVER_NS,
        )

    def remaining(self, now_ns: int) -> tuple[tuple[NodeId, int], ...]:
        """For each node that we still stand by, the microseconds left, rounded up."""
        left: dict[NodeId, int] = {}
        for (node, _), (until, _) in self._given.items():
            if until > now_ns:
                left[node] = max(left.get(node, 0), (until - now_ns) // 1000 + 1)
        return tuple(sorted(left.items()))


class Lease:
    """This node's right to serve: a deadline that a majority of voters has promised to respect (rule 3)."""

    def __init__(self, length_ns: int, majority: int) -> None:
        self._length_ns = length_ns
        self._majority = majority
        self._sent: dict[int, int] = {}
        self._echoed: dict[NodeId, int] = {}
        self.deadline_ns = 0
        """0 while there is none."""
        self.proven = False
        """The deadline rests on echoes under the view adopted now."""

    def sending(self, seq: int, now_ns: int) -> None:
        """Heartbeat `seq` is about to be sent; `now_ns` was read before."""
        self._sent[seq] = now_ns
        if len(self._sent) > _KEPT_SENDS:
            del self._sent[next(iter(self._sent))]

    def echoed(self, now_ns: int, voter: NodeId, seq: int, clear: bool) -> bool:
        """A voter echoed `seq` under our view; True if the deadline moved or became proven.

        Only a voter whose older promises are over counts (`clear`, rule 6), and the lease runs from when the heartbeat
        was sent, never from now.
        """
        if not clear:
            return False
        return self._extend(now_ns, voter, self._sent.get(seq))

    def _extend(self, now_ns: int, voter: NodeId, from_ns: int | None) -> bool:
        if from_ns is None or from_ns <= self._echoed.get(voter, NEVER_NS):
            return False
        self._echoed[voter] = from_ns
        if len(self._echoed) < self._majority:
            return False
        deadline = sorted(self._echoed.values())[-self._majority] + self._length_ns
        if deadline <= now_ns:
            return False
        moved = deadline > self.deadline_ns or not self.proven
        self.deadline_ns = max(self.deadline_ns, deadline)
        self.proven = True
        return moved

    def new_view(self) -> None:
        """Another view was adopted: the deadline stands, but only echoes under the new view can extend it (rule 5)."""
        self._echoed.clear()
        self.proven = False

    def self_made(self, deadline_ns: int) -> None:
        """A deadline that rests on nobody's promise (profile `available`, alone)."""
        self.deadline_ns = max(self.deadline_ns, deadline_ns)
        self.proven = True

    def close(self) -> None:
        """The lease is over."""
        self._echoed.clear()
        self.deadline_ns = 0
        self.proven = False
