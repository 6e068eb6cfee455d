# SPDX-License-Identifier: Apache-2.0
"""Requests of people on their way into a view: ours (`Asker`), and those that reached us as proposer (`Inbox`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from farmd.membership.commands import EventType, Send
from farmd.membership.messages import Ask
from farmd.membership.requests import Drain, Leave, Ready, Request, RequestId, SetWeight
from farmd.membership.settings import FAR_NS
from farmd.membership.state import State
from farmd.model.nodes import NodeId
from farmd.model.view import View

REQUEST_LIFE_NS = 10_000_000_000
"""A request that no view has carried out by then is given up."""
LEAVE_LIFE_NS = 3_000_000_000
"""A node that cannot leave in order by then leaves all the same."""
_INBOX_LIFE_NS = 2_000_000_000
_MOST_IN_ONE_VIEW = 64


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the next view should say besides who is in it."""

    drained: frozenset[NodeId]
    weights: tuple[bytes, ...]
    leaving: frozenset[NodeId]
    answered: tuple[RequestId, ...]

    def differ(self, view: View) -> bool:
        """`view` does not say all this yet."""
        return self.drained != view.drained or self.weights != view.weights or bool(self.leaving & view.members)


def describe(state: State, node: NodeId, request: Request) -> str:
    """`request` of `node` in words."""
    match request:
        case Drain(target):
            return f"drain {state.name(target)}"
        case Ready(target):
            return f"take {state.name(target)} back from draining"
        case SetWeight(target, weight, _):
            return f"set the weight of {state.name(target)} to {weight}"
        case Leave():
            return f"let {state.name(node)} leave"


def carried_out(view: View, node: NodeId, request: Request) -> bool:
    """`view` already says what `request` of `node` wants."""
    match request:
        case Drain(target):
            return target in view.drained
        case Ready(target):
            return target not in view.drained
        case SetWeight(target, weight, None):
            return all(table[target] == weight for table in view.weights)
        case SetWeight(target, weight, group):
            return group is not None and view.weights[group][target] == weight
        case Leave():
            return node not in view.members


def fold(view: View, asks: Iterable[Ask]) -> Wishes:
    """What `view` becomes when `asks` are applied in order."""
    drained: set[NodeId] = set(view.drained)
    leaving: set[NodeId] = set()
    weights = [bytearray(table) for table in view.weights]
    answered = []
    for ask in asks:
        answered.append(ask.id)
        match ask.request:
            case Drain(node):
                drained.add(node)
            case Ready(node):
                drained.discard(node)
            case SetWeight(node, weight, group):
                for table in weights if group is None else weights[group : group + 1]:
                    table[node] = weight
            case Leave():
                leaving.add(ask.id.node)
    return Wishes(frozenset(drained), tuple(bytes(table) for table in weights), frozenset(leaving), tuple(answered))


class Inbox:
    """Requests that this node would carry out if it proposed, in the order they came."""

    def __init__(self) -> None:
        self._asks: dict[RequestId, tuple[int, Ask]] = {}

    def put(self, now_ns: int, ask: Ask) -> None:
        """Take a request in; asked again it keeps its place."""
        first = self._asks.pop(ask.id, None)
        self._asks[ask.id] = (now_ns, ask)
        if first is not None:
            self._asks = dict(sorted(self._asks.items(), key=lambda item: item[0].number))

    def wishes(self, state: State, now_ns: int) -> Wishes:
        """What the next view should say; requests that are old, answered or carried out are dropped."""
        view, answered = state.view, state.answered if state.started else ()
        if not self._asks:
            return Wishes(view.drained, view.weights, frozenset(), ())
        self._asks = {
            key: (at, ask)
            for key, (at, ask) in self._asks.items()
            if now_ns - at <= _INBOX_LIFE_NS and key not in answered and self._sensible(state, ask)
        }
        pending = [ask for _, ask in self._asks.values()]
        if state.started and not fold(view, pending).differ(view):
            self._asks.clear()
            pending = []
        return fold(view, pending[:_MOST_IN_ONE_VIEW])

    @staticmethod
    def _sensible(state: State, ask: Ask) -> bool:
        match ask.request:
            case SetWeight(node, _, group):
                return node in state.settings.nodes and (group is None or group < len(state.view.weights))
            case Drain(node) | Ready(node):
                return node in state.settings.nodes
            case Leave():
                return ask.id.node in state.settings.everyone


@dataclass(frozen=True, slots=True)
class _Wanted:
    ask: Ask
    until_ns: int
    attempts: int
    next_ns: int


class Asker:
    """Our own requests: asked again until a started view carries them, or given up with an event."""

    def __init__(self) -> None:
        self._wanted: dict[RequestId, _Wanted] = {}
        self._number = 0

    def want(self, state: State, now_ns: int, request: Request) -> None:
        """Begin to ask."""
        self._number += 1
        key = RequestId(state.me, state.boot, self._number)
        life_ns = LEAVE_LIFE_NS if isinstance(request, Leave) else REQUEST_LIFE_NS
        self._wanted[key] = _Wanted(Ask(key, request), now_ns + life_ns, 0, now_ns)

    def step(self, state: State, now_ns: int, inbox: Inbox) -> None:
        """Notice what has been carried out, give up what is too old, ask again for the rest."""
        for key, wanted in list(self._wanted.items()):
            request = wanted.ask.request
            what = describe(state, state.me, request)
            if state.started and (key in state.answered or carried_out(state.view, state.me, request)):
                del self._wanted[key]
                epoch = state.view.epoch
                state.tell(EventType.REQUEST_DONE, f"done: {what} (view {epoch})", request=what, epoch=epoch)
            elif now_ns >= wanted.until_ns:
                del self._wanted[key]
                state.tell(EventType.REQUEST_EXPIRED, f"given up, no view carried it out: {what}", request=what)
            elif now_ns >= wanted.next_ns:
                self._wanted[key] = replace(
                    wanted,
                    attempts=wanted.attempts + 1,
                    next_ns=now_ns + 2 * state.settings.timing.heartbeat_ns,
                )
                self._ask(state, now_ns, wanted, inbox)

    def _ask(self, state: State, now_ns: int, wanted: _Wanted, inbox: Inbox) -> None:
        """The lowest voter that may propose gets it; from the third attempt on, everybody."""
        if state.voting:
            inbox.put(now_ns, wanted.ask)
        leader = next((node for node, peer in state.peers.items() if peer.leads and state.alive(now_ns, node)), None)
        if wanted.attempts >= 2 or leader is None:
            state.out.append(Send(None, wanted.ask))
        elif not (state.proposes(now_ns) and state.me < leader):
            state.out.append(Send(leader, wanted.ask))

    def next_ns(self) -> int:
        """When to step again."""
        return min((min(wanted.next_ns, wanted.until_ns) for wanted in self._wanted.values()), default=FAR_NS)

    def is_leaving(self) -> bool:
        """A Leave is on its way."""
        return any(isinstance(wanted.ask.request, Leave) for wanted in self._wanted.values())
