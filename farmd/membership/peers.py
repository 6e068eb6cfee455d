# SPDX-License-Identifier: Apache-2.0
"""What a node knows about one other member from the heartbeats it got."""

from __future__ import annotations

from dataclasses import dataclass

from farmd.membership.messages import Heard, Heartbeat
from farmd.membership.settings import NEVER_NS
from farmd.model.nodes import BootId, NodeId
from farmd.model.view import NO_BALLOT, Ballot


def boot_tag(boot: BootId) -> int:
    """The part of a boot id that heartbeats carry: an echo of an older incarnation must not count for a newer one."""
    return boot & 0xFFFFFFFF


@dataclass(slots=True)
class Peer:
    """One other member. All times are receive times on this node's clock, `NEVER_NS` if it has not happened."""

    id: NodeId
    last: Heartbeat | None = None
    """Its newest heartbeat."""
    heard_ns: int = NEVER_NS
    mutual_ns: int = NEVER_NS
    """Its newest heartbeat that said it hears this incarnation of ours: contact both ways."""
    steady_ns: int = NEVER_NS
    """Since when contact both ways has had no gap."""
    supported_seq: int = 0
    supported_ballot: Ballot = NO_BALLOT
    """The newest of its heartbeats that we stand by as a voter, and under which view (rule 2)."""
    idle_ns: int = NEVER_NS
    """Since when it has said, under our view, that it holds no lease; NEVER_NS while that is not so."""
    gone_boot: BootId | None = None
    """The incarnation that said goodbye."""
    failed: bool = False
    """It fell out of a view without a goodbye and has not been let in since."""
    resent_ns: int = NEVER_NS
    """When we last helped it to a view that it missed."""

    @property
    def ballot(self) -> Ballot:
        """The view it has adopted, as far as we know."""
        return self.last.ballot if self.last else NO_BALLOT

    @property
    def boot(self) -> BootId | None:
        """Its incarnation, as far as we know."""
        return self.last.boot if self.last else None

    @property
    def left(self) -> bool:
        """It said goodbye and has not come back since."""
        return self.gone_boot is not None and (self.last is None or self.last.boot == self.gone_boot)

    @property
    def leads(self) -> bool:
        """It says that it may propose."""
        return self.last is not None and self.last.leads

    def accept(self, now_ns: int, heartbeat: Heartbeat) -> bool:
        """Take in a heartbeat; False if it is older than what we have, or comes from an incarnation that has left."""
        if heartbeat.boot == self.gone_boot:
            return False
        if self.last is None or heartbeat.boot != self.last.boot:
            self.steady_ns = self.mutual_ns = NEVER_NS
            self.supported_ballot = NO_BALLOT
        elif heartbeat.seq <= self.last.seq:
            return False
        self.last = heartbeat
        self.heard_ns = now_ns
        return True

    def in_contact(self, now_ns: int, gap_ns: int) -> None:
        """Its heartbeat says it hears us; a silence longer than `gap_ns` before it starts the steady time anew."""
        if now_ns - self.mutual_ns > gap_ns:
            self.steady_ns = now_ns
        self.mutual_ns = now_ns

    def forgive(self, now_ns: int, for_ns: int) -> None:
        """We did not run for a while: that this peer was not heard meanwhile says nothing about it (rule 8)."""
        self.heard_ns = min(now_ns, self.heard_ns + for_ns)
        self.mutual_ns = min(now_ns, self.mutual_ns + for_ns)

    def heard(self, ballot: Ballot) -> Heard | None:
        """Our entry about it for a heartbeat of ours under `ballot`."""
        if self.last is None:
            return None
        supported = self.supported_ballot == ballot and ballot != NO_BALLOT
        seq = self.supported_seq if supported else self.last.seq
        return Heard(self.id, boot_tag(self.last.boot), seq, supported)
