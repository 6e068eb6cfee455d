# SPDX-License-Identifier: Apache-2.0
"""Every metric of farmd, by name: the one list that code, README, dashboard and alerts are checked against."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """A metric's type in Prometheus."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


COMMON_LABELS = ("farm", "node")
"""On every metric: the farm, and the node that speaks. What it says about another node has that one in `member`."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A metric: its name, type and labels besides `COMMON_LABELS`, and what it says. No label ever names a client."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


_SPECS = (
    # This node.
    Spec("farm_up", Kind.GAUGE, ("role",), "1 if this node does its part: it serves under a valid lease, or votes."),
    Spec("farm_build_info", Kind.GAUGE, ("version", "python"), "Always 1; the labels say which release runs."),
    Spec("farm_config_info", Kind.GAUGE, ("profile", "delivery"), "Always 1; the labels say how the farm is set up."),
    Spec(
        "farm_config_hash_info", Kind.GAUGE, ("hash",), "Always 1; the hash of what nodes must agree on in farm.toml."
    ),
    Spec("farm_phase", Kind.GAUGE, ("phase",), "1 for the phase that this node is in, 0 for the others."),
    Spec("farm_exclusive", Kind.GAUGE, (), "0 while this node serves alone without proof that its peer does not."),
    Spec(
        "farm_lease_left_seconds", Kind.GAUGE, (), "What is left of this node's kernel lease; 0 = it accepts nothing."
    ),
    Spec("farm_problems", Kind.GAUGE, ("severity",), "Problems that `farmctl status` shows on this node."),
    # The filter.
    Spec("farm_filter_attached", Kind.GAUGE, ("interface", "mode"), "1 for the mode in which the filter is attached."),
    Spec(
        "farm_filter_packets_total",
        Kind.COUNTER,
        ("rule", "verdict", "reason"),
        "Packets for a VIP, by what the filter did and why; the rule is empty where none applied.",
    ),
    # The view.
    Spec("farm_view_epoch", Kind.GAUGE, (), "Number of the view that this node has adopted."),
    Spec("farm_view_started", Kind.GAUGE, (), "1 once a majority promised this node's view."),
    Spec("farm_view_start_timestamp_seconds", Kind.GAUGE, (), "When this node's view started."),
    Spec("farm_buckets", Kind.GAUGE, ("group",), "Buckets of a group."),
    # The members, as this node sees them.
    Spec("farm_member_info", Kind.GAUGE, ("member", "number", "role", "voter"), "Always 1; who is in farm.toml."),
    Spec("farm_member_state", Kind.GAUGE, ("member", "state"), "1 for the state of a member, 0 for the others."),
    Spec("farm_member_state_timestamp_seconds", Kind.GAUGE, ("member",), "Since when a member is in its state."),
    Spec("farm_member_silence_seconds", Kind.GAUGE, ("member",), "Time since the last heartbeat of another member."),
    Spec(
        "farm_member_weight",
        Kind.GAUGE,
        ("member", "group", "kind"),
        "Weight as configured, and as it counts now: effective is 0 while drained or away.",
    ),
    Spec("farm_member_buckets", Kind.GAUGE, ("member", "group"), "Buckets that a member owns in this node's view."),
    Spec("farm_member_connections", Kind.GAUGE, ("member",), "Connections to VIPs that live on a member."),
    Spec("farm_member_held_connections", Kind.GAUGE, ("member",), "Those of them whose bucket has moved away."),
    # What happened, counted on this node; goes on over restarts of farmd.
    Spec("farm_views_started_total", Kind.COUNTER, (), "Views that started on this node."),
    Spec("farm_membership_changes_total", Kind.COUNTER, ("reason",), "What new views changed, by reason."),
    Spec(
        "farm_failover_duration_seconds",
        Kind.HISTOGRAM,
        ("phase",),
        "Takeover after a failure: detect (last heartbeat to new view), agree (to its start), program (to open).",
    ),
    Spec("farm_leases_lost_total", Kind.COUNTER, (), "How often this node's lease ended while it served."),
    Spec("farm_engine_stalls_total", Kind.COUNTER, (), "How often this node's engine stood still too long."),
    Spec("farm_engine_starts_total", Kind.COUNTER, (), "How often farmd started an engine."),
    Spec(
        "farm_requests_total", Kind.COUNTER, ("outcome",), "Drain, ready and weight requests, by what became of them."
    ),
    Spec("farm_config_reloads_total", Kind.COUNTER, ("outcome",), "Reloads of farm.toml, by what became of them."),
    # The engine, since it was started.
    Spec("farm_engine_datagrams_dropped_total", Kind.COUNTER, ("reason",), "Datagrams that the engine did not accept."),
    Spec("farm_engine_send_errors_total", Kind.COUNTER, (), "Datagrams that the kernel refused to send."),
    # The exporter.
    Spec("farm_collector_success", Kind.GAUGE, ("collector",), "1 if this part of the scrape could be read."),
    Spec("farm_collector_duration_seconds", Kind.GAUGE, ("collector",), "How long this part of the scrape took."),
)

CATALOGUE = {spec.name: spec for spec in _SPECS}
