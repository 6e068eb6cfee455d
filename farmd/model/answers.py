# SPDX-License-Identifier: Apache-2.0
"""The shapes of what the local API answers: the `data` of every envelope, by kind.

Keys are the JSON keys. Times are RFC 3339 in UTC; durations are seconds and end in `_seconds`. Version 1 only grows:
keys and enum values may be added, so a reader passes over what it does not know.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

API_VERSION = "farm/v1"


class Envelope(TypedDict):
    """What every answer is wrapped in."""

    apiVersion: str
    kind: str
    generatedAt: str
    node: str
    warnings: list[str]
    data: Any


class ErrorData(TypedDict):
    """kind Error. `code` is `FarmError.code`."""

    code: str
    subject: str
    cause: str
    next_step: str


class ViewData(TypedDict):
    """The view a node has adopted; `started` once a majority promised it."""

    epoch: int
    ballot: str
    started: bool
    since: str | None


class LeaseData(TypedDict):
    """This node's kernel lease; not valid = its filter accepts nothing. `left_seconds` is 0 then."""

    left_seconds: float
    valid: bool


class FilterData(TypedDict):
    """The filter on one interface. `mode` is native or generic, `reason` says why."""

    interface: str
    mode: str
    reason: str
    reattached: bool


class GroupShare(TypedDict):
    """A member's part of one group. `share` is buckets / 4096."""

    group: str
    weight: int
    effective_weight: int
    buckets: int
    share: float


class MemberData(TypedDict):
    """A member as the answering node sees it; None = not known, or never."""

    name: str
    number: int
    role: str
    voter: bool
    self: bool
    state: str
    since: str | None
    last_heard_seconds: float | None
    groups: list[GroupShare]
    connections: int | None
    held_connections: int | None


class RuleData(TypedDict):
    """A rule of farm.toml. `port` is the first of `ports`, which are told as there: `80`, `8000-8099` or `any`."""

    name: str
    vip: str
    protocol: str
    port: int
    ports: NotRequired[str]
    affinity: str
    group: str


class ProblemData(TypedDict):
    """Something a person should look at. `severity` is warning or error."""

    severity: str
    text: str
    next_step: str


class EngineData(TypedDict):
    """The answering node's membership engine, since it was started."""

    datagrams_dropped: dict[str, int]
    """Datagrams received and not accepted, by reason."""
    send_errors: int
    """Datagrams that the kernel refused to send."""


class FarmStatus(TypedDict):
    """kind FarmStatus: the farm as the answering node sees it."""

    farm: str
    profile: str
    exclusive: bool
    delivery: str
    phase: str
    view: ViewData | None
    lease: LeaseData
    filter: list[FilterData]
    vips: list[str]
    members: list[MemberData]
    groups: list[str]
    rules: list[RuleData]
    problems: list[ProblemData]
    engine: NotRequired[EngineData]
    health: NotRequired[str]
    """Where the health URLs of the answering node begin; missing if it serves none."""
    config_hash: NotRequired[str]
    """Of everything in farm.toml that all nodes must agree on: two hashes in a farm mean two farm.toml."""


class CounterData(TypedDict):
    """Packets judged for one reason under one rule (None = no rule) since the filter's maps were made."""

    rule: str | None
    reason: str
    verdict: str
    packets: int


class Counters(TypedDict):
    """kind Counters."""

    counters: list[CounterData]


class EventData(TypedDict):
    """Something that happened. Ids increase, also across restarts of farmd."""

    id: int
    at: str
    type: str
    text: str
    data: dict[str, Any]


class EventList(TypedDict):
    """kind EventList, oldest first."""

    events: list[EventData]


class Operation(TypedDict):
    """kind Operation: a change was asked for. It takes effect when a view carries it."""

    accepted: bool
    text: str


class PlanesData(TypedDict):
    """In which planes of the answering node the bucket is."""

    own: bool
    held: bool
    fresh: bool


class ProofData(TypedDict):
    """What the loaded program of `node` said to a made-up frame, and whether that is what the view says."""

    node: str
    verdict: str
    reason: str | None
    sent_to: str | None
    """The node that the frame goes on to (delivery `directed`)."""
    agrees: bool


class Explanation(TypedDict):
    """kind Explanation: which node serves a client, and why. `packet` is a `PacketKind`."""

    client: str
    port: int | None
    vip: str | None
    vport: int | None
    protocol: str | None
    rule: str | None
    ports: NotRequired[str | None]
    """All ports of the rule, as farm.toml says them."""
    packet: NotRequired[str]
    affinity: str
    key: str
    hash: str
    bucket: int
    group: str
    owner: str | None
    why: str
    planes: PlanesData
    proof: ProofData | None
