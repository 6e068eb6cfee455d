# SPDX-License-Identifier: Apache-2.0
"""Why the filter let a frame through or not, by name. Mirrors `enum farm_reason` of `ebpf/farm_abi.h`."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What becomes of a frame."""

    PASS = "pass"
    """On to this node's stack."""
    DROP = "drop"
    TX = "tx"
    """Out by the interface that it came in by: back as an answer, or on to the node whose it is."""
    ABORTED = "aborted"
    """The program failed; never seen unless it is broken."""


class Reason(StrEnum):
    """Why a VIP's frame met its fate; each is a counter. In the order of `enum farm_reason`, from its number 1."""

    ACCEPT_OWN = "accept-own"
    """A bucket of ours."""
    ACCEPT_FRESH_NEW = "accept-fresh-new"
    """A fresh bucket: a new connection, or traffic without connections."""
    ACCEPT_FRESH_SOCKET = "accept-fresh-socket"
    """A fresh bucket: the connection's socket is here."""
    ACCEPT_HELD_SOCKET = "accept-held-socket"
    """A bucket that moved away: the connection's socket is still here."""
    ACCEPT_COOKIE = "accept-cookie"
    """A bucket in transition: the ACK returns a SYN cookie of ours."""
    ARP_ANSWERED = "arp-answered"
    ND_ANSWERED = "nd-answered"
    SENT_TO_OWNER = "sent-to-owner"
    """Directed: a bucket of another node, to which the frame was sent on."""
    SENT_TO_PREVIOUS = "sent-to-previous"
    """Directed: sent on to the next node that had the bucket before and may have the connection."""
    ARP_NOT_OWNER = "arp-not-owner"
    """Asked for a VIP by a client whose bucket another node owns: that node answers."""
    ND_NOT_OWNER = "nd-not-owner"
    ARP_ANNOUNCED = "arp-announced"
    """Directed: another node of the farm announces a VIP after a takeover. Dropped."""
    ARP_CLAIM = "arp-claim"
    """Somebody else announces a VIP as its own: an address conflict. Dropped."""
    DROP_LEASE_OVER = "drop-lease-over"
    DROP_NO_RULE = "drop-no-rule"
    DROP_NOT_OWNER = "drop-not-owner"
    DROP_HELD_NEW = "drop-held-new"
    """A bucket that moved away: a new connection, or traffic without connections, is its owner's."""
    DROP_HELD_UNKNOWN = "drop-held-unknown"
    """A bucket that moved away: no socket of this connection is here."""
    DROP_FRESH_UNKNOWN = "drop-fresh-unknown"
    """A fresh bucket: the connection lives on the node that had the bucket before."""
    DROP_FRAGMENT_UNKNOWN = "drop-fragment-unknown"
    """A later fragment whose first fragment was not seen, so nobody knows its ports."""
    DROP_ICMP_UNKNOWN = "drop-icmp-unknown"
    """An ICMP error about a packet that the VIP did not send, or whose ports it does not carry."""
    DROP_HEADER_CHAIN = "drop-header-chain"
    """More IPv6 extension headers than the filter follows."""
    DROP_MALFORMED = "drop-malformed"
    DROP_NO_INTERFACE = "drop-no-interface"
    """Came in on an interface that the filter's table does not name."""
    DROP_NO_ROOM = "drop-no-room"
    """The frame could not be made long enough for the answer."""
    DROP_HOP_LIMIT = "drop-hop-limit"
    """Directed: sent on too often already, so the nodes disagree; passes once they agree again."""
    DROP_MAC_UNKNOWN = "drop-mac-unknown"
    """Directed: the node that it belongs to has not told its MAC address yet."""


def verdict_of(reason: Reason) -> Verdict:
    """What the filter does for this reason."""
    if reason.startswith("accept-"):
        return Verdict.PASS
    return Verdict.TX if reason.startswith("sent-") or reason.endswith("-answered") else Verdict.DROP


REASONS: tuple[Reason | None, ...] = (None, *Reason)
"""By number of `enum farm_reason`; number 0 ("not for a VIP") has no counter and no `Reason`."""
VERDICTS = {0: Verdict.ABORTED, 1: Verdict.DROP, 2: Verdict.PASS, 3: Verdict.TX}
"""By number of the kernel's `enum xdp_action`."""
