# SPDX-License-Identifier: Apache-2.0
"""The whole examination: gathers facts, asks the rules, and never stops at the first trouble."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from farmd.doctor import ask_farm, ask_health, ask_host, ask_link, farm, flood, flood_wire, host, link, outside
from farmd.doctor.facts import VipFacts
from farmd.doctor.finding import Finding, of_error, ok
from farmd.model.config import Delivery, FarmConfig
from farmd.model.errors import FarmError, Refused
from farmd.model.interfaces import InterfaceFacts
from farmd.model.nodes import Role
from farmd.net import interfaces, linkstate

_T = TypeVar("_T")


def examine(config: FarmConfig) -> Iterator[Finding]:
    """Every finding about this node. Changes nothing; takes a few seconds, most of it waiting for answers."""
    if config.delivery is Delivery.EXTERNAL and config.me.role is Role.NODE:
        yield from _guarded("host", lambda: host.judge_witness(ask_host.ask(config.pin_dir)))
        yield from _behind_balancer(config)
    elif config.me.role is Role.NODE:
        yield from _guarded("host", lambda: host.judge(ask_host.ask(config.pin_dir), config.pin_dir))
        yield from _data_path(config)
    else:
        yield from _guarded("host", lambda: host.judge_witness(ask_host.ask(config.pin_dir)))
    if config.health is not None:
        yield outside.health(ask_health.ask(config.health), ask_farm.running(config))
    yield farm.key_file(ask_farm.key_file(config.key_file))
    yield from _guarded("port", lambda: map(farm.port, ask_farm.ports(config)))
    yield from _guarded("peer", lambda: map(farm.peer, ask_farm.peers(config)))


def flooding(config: FarmConfig, seconds: float) -> Iterator[Finding]:
    """The flooding test on every interface of the filter, one after another."""
    if config.delivery is Delivery.EXTERNAL:
        step = "Nothing to do: no switch has to flood for it"
        raise Refused("flooding test", "with delivery external a load balancer outside decides", step)
    if config.delivery is Delivery.DIRECTED:
        yield ok("flooding", 'delivery "directed" needs no flooding')
        return
    links, trouble = _interfaces(config)
    yield from trouble
    for each in links:
        yield from _guarded("flooding", partial(_flooding, config, each, seconds))


def _flooding(config: FarmConfig, link_: InterfaceFacts, seconds: float) -> Iterator[Finding]:
    return flood.judge(config, link_.name, flood_wire.run(config, link_, seconds))


def _data_path(config: FarmConfig) -> Iterator[Finding]:
    """Interfaces and VIPs."""
    links, trouble = _interfaces(config)
    yield from trouble
    attached = False
    for each in links:
        facts, trouble = _try("link", partial(ask_link.ask, each, config.pin_dir))
        yield from trouble
        if facts is not None:
            attached = attached or facts.ours is not None
            ipv4 = any(vip.version == 4 for vip in config.vips)
            yield from link.judge(facts, config.attach_mode, config.virtual_mac, ipv4, config.delivery)
    yield from _guarded("vip-place", lambda: _vips(config, links, attached))


def _behind_balancer(config: FarmConfig) -> Iterator[Finding]:
    """Interfaces and VIPs where nothing is filtered."""
    yield outside.delivery()
    links, trouble = _interfaces(config)
    yield from trouble
    on_host = any(vip.version == 4 for vip in config.host_vips)
    for each in links:
        facts, trouble = _try("link", partial(ask_link.ask, each, config.pin_dir))
        yield from trouble
        if facts is not None:
            yield from outside.link(facts, on_host)
    running = ask_farm.running(config)
    places, trouble = _try("vip-place", linkstate.addresses)
    yield from trouble
    for vip in config.vips if places is not None else ():
        facts_of_vip = VipFacts(vip, (places or {}).get(vip, ()), ())
        yield outside.vip(facts_of_vip, vip in config.host_vips, running)


def _vips(config: FarmConfig, links: tuple[InterfaceFacts, ...], attached: bool) -> Iterator[Finding]:
    for facts in ask_farm.vips(config, links):
        yield farm.vip_place(facts, attached)
        yield farm.vip_conflict(facts)


def _interfaces(config: FarmConfig) -> tuple[tuple[InterfaceFacts, ...], list[Finding]]:
    """Those that the filter is to be attached to: by name, or the one that has this member's first address."""
    found, trouble = _try("link", lambda: interfaces.facts(config.interfaces or config.me.addresses[:1]))
    return found or (), trouble


def _try(check: str, question: Callable[[], _T]) -> tuple[_T | None, list[Finding]]:
    try:
        return question(), []
    except FarmError as error:
        return None, [of_error(check, error)]


def _guarded(check: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings; a check that cannot be made becomes one itself."""
    try:
        yield from findings()
    except FarmError as error:
        yield of_error(check, error)
