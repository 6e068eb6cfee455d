# SPDX-License-Identifier: Apache-2.0
"""Nodes: numbers, roles and the states that people see."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

NodeId = NewType("NodeId", int)
"""A node's number, 0..63. It is the node's identity on the wire and in bucket maps."""

BootId = NewType("BootId", int)
"""64 random bits drawn when an engine starts: one incarnation of one node."""

MAX_NODES = 64
MAX_WEIGHT = 255


class Role(StrEnum):
    """What a member does in the farm."""

    NODE = "node"
    """Serves VIPs; votes unless the farm has chosen other voters."""
    WITNESS = "witness"
    """Only votes: it has no buckets, no VIP and no filter."""


class MemberState(StrEnum):
    """A member as one node sees it."""

    UP = "up"
    DRAINING = "draining"
    """Weight 0 by request, connections left."""
    DRAINED = "drained"
    """Weight 0 by request, no connection left."""
    JOINING = "joining"
    """Heard, not in the view yet (hold-down, or no quorum)."""
    LEFT = "left"
    """Said goodbye."""
    UNFIT = "unfit"
    """Heard, but clients cannot reach it: its service network is down."""
    FAILED = "failed"
    """Was in the view and went silent."""
    UNSEEN = "unseen"
    """Configured, never heard since this daemon started."""
