# SPDX-License-Identifier: Apache-2.0
"""The protocol with one safeguard removed at a time. A simulator that does not notice proves nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import StrEnum

from farmd.membership.commands import Command, Send
from farmd.membership.core import Node
from farmd.membership.election import Election
from farmd.membership.messages import Heard, Heartbeat
from farmd.membership.peers import boot_tag
from farmd.membership.settings import NEVER_NS, Settings
from farmd.membership.support import Lease, Promises
from farmd.model.nodes import BootId, NodeId
from farmd.model.view import Ballot
from tests.sim.patching import Patch, patched


class Mutant(StrEnum):
    """Which safeguard is missing, with its rule."""

    NO_PROMISE = "no promise (rule 2)"
    LEASE_FROM_ACK = "lease from ack time (rule 3)"
    NO_RESIDUAL_WAIT = "no residual wait (rule 6)"
    BALLOT_REUSE = "ballot reuse after restart"
    NO_RESTART_WAIT = "no restart wait (rule 7)"
    EXTEND_BEFORE_START = "extend before start (rules 3, 6)"
    OPEN_BEFORE_LEASE = "open at START without a lease under it (rule 6)"
    PROMISE_BEFORE_RELEASE = "promise before release (rule 5)"
    NO_TWO_WAY = "no two-way rule (rule 2; availability)"


def _promise_nothing(self: Promises, now_ns: int, node: NodeId, boot: BootId, ballot: Ballot) -> None:
    pass


def _from_ack(self: Lease, now_ns: int, voter: NodeId, seq: int, clear: bool) -> bool:
    return clear and self._extend(now_ns, voter, now_ns)


def _no_wait(self: Promises, now_ns: int, ballot: Ballot, moved: object) -> int:
    return NEVER_NS


def _reused_ballot(self: Election) -> Ballot:
    state = self._state
    return Ballot(max(state.top_counter, state.reserved.counter) + 1, state.me, BootId(0))


def _extend_early(self: Lease, now_ns: int, voter: NodeId, seq: int, clear: bool) -> bool:
    """Any voter's echo extends the deadline; what is gained still waits for clear ones."""
    proven = self.proven
    moved = self._extend(now_ns, voter, self._sent.get(seq))
    early: set[NodeId] = self.__dict__.setdefault("clear_voters", set())
    if clear:
        early.add(voter)
    self.proven = proven or (self.proven and len(early & set(self._echoed)) >= self._majority)
    return moved or self.proven != proven


def _forget_early(self: Lease) -> None:
    self._echoed.clear()
    self.proven = False
    self.__dict__["clear_voters"] = set()


def _still_proven(self: Lease) -> None:
    self._echoed.clear()


def _send_first(self: Node) -> list[Command]:
    out, self._state.out = self._state.out, []
    return sorted(out, key=lambda command: not isinstance(command, Send))


def _always_mine(self: Node, heartbeat: Heartbeat) -> Heard | None:
    tag = boot_tag(self._state.boot)
    me = self._state.me
    mine = next((one for one in heartbeat.heard if one.node == me and one.boot_tag == tag), None)
    return mine or Heard(me, tag, 0, False)


_PATCHES: dict[Mutant, list[Patch]] = {
    Mutant.NO_PROMISE: [(Promises, "give", _promise_nothing)],
    Mutant.LEASE_FROM_ACK: [(Lease, "echoed", _from_ack)],
    Mutant.NO_RESIDUAL_WAIT: [(Promises, "blocking", _no_wait)],
    Mutant.BALLOT_REUSE: [(Election, "_new_ballot", _reused_ballot)],
    Mutant.NO_RESTART_WAIT: [(Settings, "restart_ns", property(lambda self: 0))],
    Mutant.EXTEND_BEFORE_START: [(Lease, "echoed", _extend_early), (Lease, "new_view", _forget_early)],
    Mutant.OPEN_BEFORE_LEASE: [(Lease, "new_view", _still_proven)],
    Mutant.PROMISE_BEFORE_RELEASE: [(Node, "_done", _send_first)],
    Mutant.NO_TWO_WAY: [(Node, "_mine", _always_mine)],
}


def mutated(mutant: Mutant | None) -> AbstractContextManager[None]:
    """The protocol without this safeguard, as long as the context lasts."""
    return patched(_PATCHES[mutant] if mutant else ())
