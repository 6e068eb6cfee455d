# SPDX-License-Identifier: Apache-2.0
"""Orders that would darken the farm, refused before anything happens. Pure: from the configuration and one report."""

from __future__ import annotations

from farmd.daemon.report import EngineReport
from farmd.model.config import FarmConfig, Profile
from farmd.model.errors import Refused
from farmd.model.nodes import MemberState, NodeId
from farmd.model.view import View

_SILENT = frozenset({MemberState.LEFT, MemberState.FAILED, MemberState.UNSEEN})
"""States of members that give no vote."""


def refuse_dark_groups(config: FarmConfig, report: EngineReport, target: NodeId, action: str) -> None:
    """Refuse an `action` that takes new clients away from `target`, if no other node of the view would serve a group.

    Raises:
        Refused: it would; or there is no view, so nobody can say.
    """
    view = report.view
    if view is None:
        raise Refused(
            action, "this node is in no view, so nobody can say who would serve", "Wait for `farmctl status --wait`"
        )
    for group in config.groups:
        if not _served_without(view, group.index, target):
            raise Refused(
                action,
                f"no other node would serve group {group.name}, so the farm would go dark",
                "Bring another node up first, or use --force",
            )


def refuse_dark_leave(config: FarmConfig, report: EngineReport) -> None:
    """Refuse that this node leaves, if those who stay could not serve: too few voters, or nobody for a group.

    A farm that is dark already loses nothing, so then anybody may go.

    Raises:
        Refused: the farm serves now and would not without this node.
    """
    me, view = config.me, report.view
    if view is None or report.deadline_ns <= report.at_ns:
        return
    _refuse_minority(config, report)
    for group in config.groups:
        if view.weight(group.index, me.id) and me.id in view.members and not _served_without(view, group.index, me.id):
            raise Refused(
                f"leave of {me.name}",
                f"no other node would serve group {group.name}, so the farm would go dark",
                "Bring another node up first, or use --force",
            )


def _refuse_minority(config: FarmConfig, report: EngineReport) -> None:
    """In the profile `available` the last one serves without a majority."""
    me, majority = config.me, len(config.voters) // 2 + 1
    heard = {peer.id for peer in report.peers if peer.state not in _SILENT} | {me.id}
    staying = config.voters & heard - {me.id}
    if config.profile is Profile.AVAILABLE or me.id not in config.voters or len(staying) >= majority:
        return
    silent = ", ".join(member.name for member in config.members if member.id in config.voters - heard)
    raise Refused(
        f"leave of {me.name}",
        f"{len(staying)} of {len(config.voters)} voters would stay, {majority} must agree, so the farm would go dark",
        f"Bring {silent} back first, or use --force" if silent else "Use --force",
    )


def _served_without(view: View, group: int, target: NodeId) -> bool:
    return any(view.weight(group, node) for node in view.members if node != target)
