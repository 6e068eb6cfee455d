# SPDX-License-Identifier: Apache-2.0
"""What people may ask of the farm, on any node. A request is idempotent: asked twice it does no more than once."""

from __future__ import annotations

from dataclasses import dataclass

from farmd.model.nodes import BootId, NodeId


@dataclass(frozen=True, slots=True)
class Drain:
    """Give `node` no new clients: it stays a member and owns nothing."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Ready:
    """Take `node` back from draining."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class SetWeight:
    """Set the weight of `node` in one group, or in every group if `group` is None."""

    node: NodeId
    weight: int
    group: int | None


@dataclass(frozen=True, slots=True)
class Leave:
    """Take the asking node out of the farm."""


Request = Drain | Ready | SetWeight | Leave


@dataclass(frozen=True, slots=True, order=True)
class RequestId:
    """Who asked, in which incarnation, and the how-manieth request it was."""

    node: NodeId
    boot: BootId
    number: int
