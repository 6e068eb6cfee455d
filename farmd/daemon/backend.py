# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the local API: every answer from the engine's report, the filter and the event log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from farmd.daemon.clock import boot_ns
from farmd.daemon.eventlog import EventLog
from farmd.daemon.explain import explain
from farmd.daemon.refusals import refuse_dark_groups, refuse_dark_leave
from farmd.daemon.status import LocalFacts, farm_status
from farmd.daemon.supervisor import EngineSupervisor
from farmd.dataplane.filter import Filter
from farmd.dataplane.reasons import verdict_of
from farmd.model.answers import (
    CounterData,
    Counters,
    EventList,
    Explanation,
    FarmStatus,
    FilterData,
    Operation,
    ProblemData,
)
from farmd.model.config import FarmConfig, Member
from farmd.model.errors import NotFound, Refused
from farmd.model.nodes import Role
from farmd.model.question import Question


class DaemonBackend:
    """Implements `farmd.daemon.api.Backend`."""

    def __init__(
        self,
        config: FarmConfig,
        hash_key: bytes,
        engine: EngineSupervisor,
        filter_: Filter | None,
        events: EventLog,
        problems: list[ProblemData],
        reload: Callable[[], None],
    ) -> None:
        self._config = config
        self._hash_key = hash_key
        self._engine = engine
        self._filter = filter_
        self._events = events
        self._problems = problems
        self._reload = reload

    @property
    def name(self) -> str:
        """This node's name."""
        return self._config.me.name

    def warnings(self) -> Sequence[str]:
        """What a reader of any answer should know."""
        return ("events are kept in memory only: the state folder cannot be written",) if self._events.lost else ()

    async def status(self) -> FarmStatus:
        """The farm as this node sees it."""
        report = await self._engine.report()
        return farm_status(self._config, report, boot_ns(), LocalFacts(self._filters(), tuple(self._problems)))

    async def counters(self) -> Counters:
        """Packets by rule and reason; none on a witness."""
        names = {rule.index: rule.name for rule in self._config.rules}
        counted = {} if self._filter is None else self._filter.counters()
        return Counters(
            counters=[
                CounterData(rule=names.get(index), reason=reason, verdict=verdict_of(reason), packets=packets)
                for (index, reason), packets in sorted(counted.items())
                if packets
            ]
        )

    async def events(self, after: int, limit: int, wait_s: float) -> EventList:
        """Up to `limit` events after id `after`, waiting for the first if there is none."""
        return EventList(events=await self._events.wait(after, limit, wait_s))

    async def drain(self, member: str, force: bool, reason: str | None) -> Operation:
        """Give `member` no new clients."""
        target = self._serving(member)
        report = await self._engine.report()
        if not force:
            refuse_dark_groups(self._config, report, target.id, f"drain {member}")
        await self._engine.ask("request", kind="drain", member=target.id)
        why = f": {reason}" if reason else ""
        self._events.append(
            "drain.requested", f"drain of {member} requested{why}", {"member": member, "reason": reason}
        )
        return Operation(accepted=True, text=f"{member} takes no new clients from the next view on")

    async def ready(self, member: str) -> Operation:
        """End the drain of `member`."""
        target = self._serving(member)
        await self._engine.ask("request", kind="ready", member=target.id)
        self._events.append("ready.requested", f"{member} is to serve again", {"member": member})
        return Operation(accepted=True, text=f"{member} takes its share again from the next view on")

    async def set_weight(self, member: str, weight: int, group: str | None) -> Operation:
        """Set the weight of `member` in one group, or in every group."""
        target = self._serving(member)
        index = None if group is None else self._group(group)
        if weight == 0:
            refuse_dark_groups(self._config, await self._engine.report(), target.id, f"give {member} the weight 0")
        await self._engine.ask("request", kind="weight", member=target.id, weight=weight, group=index)
        where = f" in group {group}" if group else ""
        text = f"weight {weight} for {member}{where}"
        self._events.append(
            "weight.requested", f"{text} requested", {"member": member, "weight": weight, "group": group}
        )
        return Operation(accepted=True, text=f"{text} from the next view on")

    async def explain(self, question: Question) -> Explanation:
        """Which node serves this client, with the loaded program's word for it."""
        report = await self._engine.report()
        probe = None if self._filter is None else self._filter.probe
        return explain(self._config, self._hash_key, report, question, probe, boot_ns())

    async def reload(self) -> Operation:
        """Put farm.toml as it is now in force; ConfigError if it is not valid."""
        self._reload()
        return Operation(
            accepted=True, text="farm.toml is valid; this farmd starts again with it, the filter serves on"
        )

    async def leave(self, force: bool) -> Operation:
        """Leave the farm in the planned way; farmd ends once the engine has left."""
        if not force:
            refuse_dark_leave(self._config, await self._engine.report())
        self._engine.leaving = True
        await self._engine.ask("request", kind="leave")
        self._events.append("leave.requested", f"{self.name} leaves the farm", {})
        return Operation(accepted=True, text=f"{self.name} hands its buckets over and stops")

    def _filters(self) -> tuple[FilterData, ...]:
        if self._filter is None:
            return ()
        return tuple(
            FilterData(interface=one.interface, mode=one.mode, reason=one.reason, reattached=one.reattached)
            for one in self._filter.attachments
        )

    def _serving(self, name: str) -> Member:
        member = self._config.member(name)
        if member is None:
            names = ", ".join(one.name for one in self._config.nodes)
            raise NotFound(f"node {name}", "the farm has no such member", f"It has {names}")
        if member.role is not Role.NODE:
            raise Refused(f"node {name}", "it is a witness and serves nothing", "Name a serving node")
        return member

    def _group(self, name: str) -> int:
        for group in self._config.groups:
            if group.name == name:
                return group.index
        names = ", ".join(group.name for group in self._config.groups)
        raise NotFound(f"group {name}", "the farm has no such group", f"It has {names}")
