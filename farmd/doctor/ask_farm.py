# SPDX-License-Identifier: Apache-2.0
"""Gathers what `farm` judges: VIPs, the port, the key file, peers."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Sequence
from ipaddress import IPv6Address
from pathlib import Path

from farmd.client import Client
from farmd.doctor import wire
from farmd.doctor.facts import KeyFacts, PeerFacts, PortFacts, PortHolder, VipFacts
from farmd.membership.keys import KeyRing
from farmd.model.config import Delivery, FarmConfig, Member
from farmd.model.errors import ConfigError, FarmError, KernelError
from farmd.model.interfaces import InterfaceFacts
from farmd.model.rules import Address
from farmd.net import gateway, interfaces, linkstate, portholder

_API_TIMEOUT_S = 2.0
_PEER_TIMEOUT_S = 0.6
_LARGEST_KEY = 65536


def vips(config: FarmConfig, links: Sequence[InterfaceFacts]) -> list[VipFacts]:
    """Every VIP with its places and who else claims it on `links`. Raises KernelError."""
    places = linkstate.addresses()
    claims: dict[Address, set[bytes]] = {vip: set() for vip in config.vips}
    own = [address for address in config.me.addresses if address.version == 6]
    farm = {config.virtual_mac}
    for link in links:
        if config.delivery is Delivery.DIRECTED:
            farm |= _macs_of_members(config, link, own)
        for vip, macs in wire.claims(config.vips, link, own[0] if own else None).items():
            claims[vip] |= macs - {*farm, link.mac}
    return [VipFacts(vip, places.get(vip, ()), tuple(sorted(claims[vip]))) for vip in config.vips]


def _macs_of_members(config: FarmConfig, link: InterfaceFacts, own: Sequence[Address]) -> set[bytes]:
    """Where the other members are on `link`: in delivery `directed` they rightly announce VIPs there."""
    others = [address for member in config.members if member.id != config.me.id for address in member.addresses]
    source = own[0] if own else None
    found = wire.claims(others, link, source if isinstance(source, IPv6Address) else None)
    return set().union(*found.values())


def ports(config: FarmConfig) -> list[PortFacts]:
    """Whether the membership port can be had on each of this member's addresses."""
    found = []
    for address in config.me.addresses:
        error = _try_port(address, config.port)
        holder = portholder.find(address, config.port) if error else None
        known = None
        if holder is not None:
            known = PortHolder(holder.pid, holder.command, is_engine="farmd.daemon.engine" in holder.words)
        found.append(PortFacts(address, config.port, error, known))
    return found


def _try_port(address: Address, port: int) -> int:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as attempt:
        try:
            attempt.bind((str(address), port))
        except OSError as error:
            return error.errno or 0
    return 0


def key_file(path: Path) -> KeyFacts:
    """Mode and usability of the key file."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        KeyRing.parse(path.read_bytes()[:_LARGEST_KEY].decode("ascii", "replace"), path)
    except FileNotFoundError:
        return KeyFacts(str(path), None, "")
    except ConfigError as error:
        return KeyFacts(str(path), mode, error.cause)
    except OSError as error:
        return KeyFacts(str(path), 0, error.strerror or str(error))
    return KeyFacts(str(path), mode, "")


def daemon_states(config: FarmConfig) -> dict[str, str] | None:
    """Member -> state as the daemon here sees it; None if it does not answer."""
    try:
        status = Client(config.api_socket, _API_TIMEOUT_S).status().data
    except FarmError:
        return None
    return {member["name"]: member["state"] for member in status["members"]}


def running(config: FarmConfig) -> bool:
    """Whether farmd runs here."""
    return daemon_states(config) is not None


def peers(config: FarmConfig) -> list[PeerFacts]:
    """Every other member. Addresses are asked only of those that the daemon does not call well."""
    states = daemon_states(config)
    others = [member for member in config.members if member.id != config.me.id]
    return asyncio.run(_ask_peers(config, others, states))


async def _ask_peers(config: FarmConfig, others: list[Member], states: dict[str, str] | None) -> list[PeerFacts]:
    return list(await asyncio.gather(*(_ask_peer(config, other, states) for other in others)))


async def _ask_peer(config: FarmConfig, peer: Member, states: dict[str, str] | None) -> PeerFacts:
    state = None if states is None else states.get(peer.name)
    if state in ("up", "draining", "drained"):
        return PeerFacts(peer.name, state, ())
    silent, unasked = [], []
    for own, address in zip(config.me.addresses, peer.addresses, strict=False):
        try:
            name, direct = linkstate.next_hop(address)
            if not direct:
                unasked.append(address)
            elif not await gateway.reachable(address, interfaces.facts([name])[0], _PEER_TIMEOUT_S, own):
                silent.append(address)
        except KernelError:
            silent.append(address)
    return PeerFacts(peer.name, state, tuple(silent), tuple(unasked))
