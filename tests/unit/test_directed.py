# SPDX-License-Identifier: Apache-2.0
"""The engine's part in delivery `directed`: what the core orders, what nodes tell each other, what neighbours hear."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from farmd.daemon import announcer, directed
from farmd.daemon.announcer import Announcer
from farmd.daemon.directed import Directed
from farmd.membership.commands import Announce, WriteRoutes
from farmd.membership.core import Node
from farmd.membership.messages import Macs, Message, Propose, Start, decode, encode
from farmd.membership.packing import WireError
from farmd.model.buckets import BUCKETS, NO_OWNERS
from farmd.model.nodes import NodeId
from farmd.model.routes import following, holders
from farmd.model.view import View
from tests.unit import farms
from tests.unit.playbook import ALL, BOOTS, N0, N1, N2, Playbook, ballot, view

MAC1, MAC2 = bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 2))


class DirectedPlaybook(Playbook):
    """A node of a directed farm."""

    def __init__(self, me: NodeId = N2) -> None:
        super().__init__(me)
        settings = replace(self.node._state.settings, directed=True)
        self.node = Node(settings, BOOTS[me], self.now_ns)

    def routes(self) -> list[WriteRoutes]:
        return [one for one in self.did if isinstance(one, WriteRoutes)]

    def announces(self) -> bool:
        return any(isinstance(one, Announce) for one in self.did)


def lose(play: Playbook, lost: NodeId, before: View) -> View:
    """The next view, without `lost`, is proposed by node 0."""
    after = view(2, ALL - {lost}, before)
    play.receive(N0, Propose(after, False, ()))
    play.receive(N0, Start(after.ballot, (0,)))
    return after


def test_routes_are_written_when_a_view_starts_and_not_before() -> None:
    play = DirectedPlaybook()
    play.serving()
    (written,) = play.routes()
    assert written == WriteRoutes(view(1).owners, (NO_OWNERS,))
    after = view(2, ALL - {N1}, view(1))
    play.receive(N0, Propose(after, False, ()))
    assert not play.routes()
    layers = holders(after.owners[0], {N0: view(1).share(0, N0) | after.share(0, N2)})
    play.receive(N0, Start(after.ballot, (0,), (layers,)))
    (written,) = play.routes()
    assert written == WriteRoutes(after.owners, (following(N2, after.owners[0], layers),))
    assert set(written.following[0]) == {0, 255}


def test_other_farms_have_no_routes() -> None:
    play = Playbook()
    play.serving()
    lose(play, N1, view(1))
    assert not any(isinstance(one, WriteRoutes | Announce) for one in play.did)


def test_the_next_node_announces_a_loss() -> None:
    for lost, speaks in ((N1, True), (N0, False)):
        play = DirectedPlaybook()
        play.serving()
        assert not play.announces()
        lose(play, lost, view(1))
        assert play.announces() == (speaks and lost == N1)


def test_a_start_with_holders_comes_back_as_it_was() -> None:
    rng = random.Random(1)
    owners = bytes(rng.choice((0, 1, 2)) for _ in range(BUCKETS))
    layers = holders(owners, {N0: rng.getrandbits(BUCKETS), N1: rng.getrandbits(BUCKETS)})
    for groups in (1, 8, 9, 16):
        start = Start(ballot(7), (5,) * groups, (layers, (), layers[:1], *[()] * 13)[:groups])
        assert decode(encode(start)) == start
    plain = Start(ballot(7), (5,))
    assert encode(plain)[0] == 7, "other farms go on to speak as they did"
    assert encode(start)[0] == 10


def test_a_start_always_fits_into_a_datagram() -> None:
    rng = random.Random(4)
    noise = tuple(tuple(bytes(rng.choices(range(64), k=BUCKETS)) for _ in range(7)) for _ in range(16))
    encoded = encode(Start(ballot(7), (1,) * 16, noise))
    assert len(encoded) < 65_000
    shorter = decode(encoded)
    assert isinstance(shorter, Start)
    assert shorter.holders == tuple(layers[:1] for layers in noise)


@pytest.mark.parametrize("body", [b"", b"\x00", b"\x01\x08", b"\x11" + bytes(17), b"\x01\x01garbage"])
def test_a_damaged_start_with_holders_is_refused(body: bytes) -> None:
    head = encode(Start(ballot(7), (1,), ((bytes(BUCKETS),),)))[:14]
    with pytest.raises(WireError):
        decode(head + body)


def test_holders_must_be_nodes() -> None:
    with pytest.raises(WireError, match="cannot be"):
        decode(encode(Start(ballot(7), (1,), ((bytes([64]) * BUCKETS,),))))


def test_macs_come_back_as_they_were() -> None:
    for macs in ((), (MAC1,), (MAC1, MAC2) * 4):
        assert decode(encode(Macs(macs))) == Macs(macs)
    for damaged in (b"\x0b12345", b"\x0b" + bytes(54)):
        with pytest.raises(WireError):
            decode(damaged)


class Routes:
    """Stands in for the kernel's maps."""

    def __init__(self) -> None:
        self.macs: dict[tuple[int, NodeId], bytes] = {}
        self.groups: dict[int, tuple[bytes, bytes]] = {}

    def write(self, group: int, owners: bytes, following: bytes) -> None:
        self.groups[group] = owners, following

    def write_mac(self, place: int, node: NodeId, mac: bytes) -> None:
        self.macs[place, node] = mac


@pytest.fixture
def ask() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        yield made


def test_nodes_learn_where_the_others_are(ask: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    routes, sent = Routes(), list[tuple[Message, NodeId | None]]()
    monkeypatch.setattr(directed, "mac_of", lambda name, _: {"eth0": MAC1, "eth1": MAC2}[name])

    def send(message: Message, to: NodeId | None) -> None:
        sent.append((message, to))

    one = Directed(farms.config(), routes, ("eth0", "eth1"), ask, send, lambda: True)
    one.forget_routes()
    assert routes.groups == dict.fromkeys((0, 1), (NO_OWNERS, NO_OWNERS))
    one.learn(N1, Macs((MAC2, MAC1, MAC1)))
    assert routes.macs == {(0, N1): MAC2, (1, N1): MAC1}, "no more than there are interfaces"
    assert sent == [(Macs((MAC1, MAC2)), N1)], "who is new does not know about us"
    one.learn(N1, Macs((MAC2, MAC1, MAC1)))
    assert len(sent) == 1
    one.learn(N1, Macs((MAC1,)))
    assert routes.macs[0, N1] == MAC1
    assert len(sent) == 2


class Wire:
    """Stands in for a packet socket; `bursts` counts the frames of each time it was opened."""

    def __init__(self, bursts: list[int]) -> None:
        self._bursts = bursts

    def __enter__(self) -> Wire:
        self._bursts.append(0)
        return self

    def __exit__(self, *_: object) -> None: ...

    def sendto(self, frame: bytes, to: tuple[str, int]) -> None:
        assert (to, frame[6:12]) == (("eth0", 0), MAC1)
        self._bursts[-1] += 1


def test_announcements_come_in_rounds_of_small_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    vips = [IPv4Address(f"192.0.2.{number}") for number in range(1, 41)]
    bursts: list[int] = []
    monkeypatch.setattr(announcer, "mac_of", lambda name, _: MAC1 if name == "eth0" else bytes(6))
    monkeypatch.setattr(announcer, "open_wire", lambda: Wire(bursts))
    monkeypatch.setattr(announcer, "ROUNDS_S", (0.0, 0.05))
    serves = [True]

    async def run() -> None:
        one = Announcer(vips, ["eth0", "gone0"], lambda: serves[0])
        one.announce()
        await asyncio.sleep(0.5)
        serves[0] = False
        one.announce()
        await asyncio.sleep(0.2)
        one.stop()

    asyncio.run(run())
    assert sum(bursts) == 80, "two rounds, and none without a lease"
    assert max(bursts) <= 16
