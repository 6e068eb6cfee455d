# SPDX-License-Identifier: Apache-2.0
"""Health URLs: who should get new clients, and an HTTP server that nobody can wear out."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest

from farmd.daemon import healthserver
from farmd.daemon.connections import count_behind_balancer
from farmd.daemon.health import Health, judge, rules_of
from farmd.daemon.healthserver import HealthChecks, HealthServer, drop_inherited
from farmd.daemon.report import EngineReport
from farmd.daemon.status import LocalFacts, farm_status
from farmd.model.config import Delivery, FarmConfig, Listen
from farmd.model.errors import DaemonUnreachable, KernelError
from farmd.model.nodes import MemberState, NodeId, Role
from farmd.model.planes import CLOSED, Planes
from farmd.model.rules import Protocol
from farmd.net.listeners import Listener, listeners
from farmd.net.sockets import Connection, SocketState
from tests.unit import farms

FARM = replace(farms.config(), delivery=Delivery.EXTERNAL)
ME = FARM.members[0].id
NOW_NS = 10**12 - 4 * 10**8
EVERYWHERE = [Listener(Protocol.TCP, ip_address("::"), port, both=True) for port in (80, 8080)]


def verdict(
    report: EngineReport, config: FarmConfig = FARM, now_ns: int = NOW_NS, served: list[Listener] = EVERYWHERE
) -> Health:
    return judge(config, report, now_ns, config.rules, served)


def test_a_node_in_the_view_with_a_lease_takes_clients() -> None:
    assert verdict(farms.report(farms.view())) == Health(True, "node1 takes new clients")


def unfit() -> EngineReport:
    report = farms.report(farms.view())
    return replace(report, peers=(replace(report.peers[0], state=MemberState.UNFIT), *report.peers[1:]))


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (farms.report(None), "node1 is not in the farm's view"),
        (farms.report(farms.view(frozenset({NodeId(1), NodeId(2)}))), "node1 is not in the farm's view"),
        (farms.report(farms.view(drained=frozenset({ME}))), "node1 is drained"),
        (farms.report(farms.view(), deadline_ns=NOW_NS), "node1 has no lease: it hears no majority of the voters"),
        (farms.report(farms.view(), deadline_ns=0), "node1 has no lease: it hears no majority of the voters"),
        (replace(farms.report(farms.view()), phase="leaving"), "node1 is leaving the farm"),
        (unfit(), "clients cannot reach node1: its service network is down"),
        (
            replace(farms.report(farms.view()), planes=(Planes(own=1), CLOSED)),
            "node1 owns no bucket of group heavy yet",
        ),
    ],
)
def test_whatever_speaks_against_it_is_said(report: EngineReport, why: str) -> None:
    assert verdict(report) == Health(False, why)


def test_a_witness_takes_nobody() -> None:
    witness = replace(FARM, me=replace(FARM.me, role=Role.WITNESS))
    assert verdict(farms.report(farms.view()), witness).reason == "node1 is a witness and serves nothing"


def test_a_weight_of_nought_counts_for_its_group_only() -> None:
    view = farms.view()
    light = bytes(0 if node == ME else weight for node, weight in enumerate(view.weights[1]))
    report = farms.report(replace(view, weights=(view.weights[0], light)))
    assert verdict(report) == Health(False, "node1 has the weight 0 in group heavy")
    assert judge(FARM, report, NOW_NS, FARM.rules[:1], EVERYWHERE).healthy


def test_a_service_must_listen_where_its_packets_come() -> None:
    report = farms.report(farms.view())
    for place, external, flood in (
        ("0.0.0.0", True, True),
        ("10.77.0.100", True, True),
        ("10.77.0.11", True, False),
        ("10.77.0.12", False, False),
        ("::", False, False),
    ):
        served = [Listener(Protocol.TCP, ip_address(place), 80)]
        rule = FARM.rules[:1]
        assert judge(FARM, report, NOW_NS, rule, served).healthy is external
        assert judge(replace(FARM, delivery=Delivery.FLOOD), report, NOW_NS, rule, served).healthy is flood
    assert verdict(report, served=EVERYWHERE[:1]).reason == "rule api: nothing on node1 listens on tcp port 8080"
    udp = [Listener(Protocol.UDP, IPv4Address(0), port) for port in (80, 8080)]
    assert not verdict(report, served=udp).healthy


def test_of_a_range_one_port_must_be_served() -> None:
    report = farms.report(farms.view())
    wide = replace(FARM, rules=(replace(FARM.rules[0], last_port=89),))
    for port, healthy in ((79, False), (80, True), (85, True), (89, True), (90, False)):
        assert verdict(report, wide, served=[Listener(Protocol.TCP, IPv4Address(0), port)]).healthy is healthy
    assert verdict(report, wide, served=[]).reason == "rule web: nothing on node1 listens on tcp ports 80-89"
    assert rules_of("/health/rule/10.77.0.100:80-89/tcp", wide) == wide.rules


def test_paths() -> None:
    web, web6, _ = FARM.rules
    assert rules_of("/health", FARM) == FARM.rules
    assert rules_of("/health/rule/web", FARM) == (web,)
    assert rules_of("/health/rule/10.77.0.100:80/tcp", FARM) == (web,)
    assert rules_of("/health/rule/[fd77::100]:80/tcp", FARM) == (web6,)
    for path in ("/", "/healthy", "/health/", "/health/rule/", "/health/rule/none", "/health/module/web", ""):
        assert rules_of(path, FARM) is None


def test_connections_behind_a_balancer_are_counted_by_port() -> None:
    def connection(local: str, port: int, state: SocketState = SocketState.ESTABLISHED) -> Connection:
        return Connection(ip_address(local), port, ip_address("10.77.0.199"), 4000, state)

    found = [
        connection("10.77.0.11", 80),
        connection("10.77.0.100", 8080),
        connection("10.77.0.11", 22),
        connection("10.77.0.11", 80, SocketState.TIME_WAIT),
    ]
    census = count_behind_balancer(found, FARM.rules, [Planes(held=6), Planes()])
    assert (census.established, census.held, census.forgettable) == (2, 0, (6, 0))


def test_the_status_says_where_the_health_urls_are() -> None:
    served = replace(FARM, health=Listen(IPv4Address(0), 4806))
    status = farm_status(served, farms.report(farms.view(), deadline_ns=0), NOW_NS, LocalFacts(()))
    assert status["health"] == "http://0.0.0.0:4806/health"
    assert "its health URLs say 503" in status["problems"][0]["text"]
    assert "health" not in farm_status(FARM, farms.report(None), NOW_NS, LocalFacts(()))


def test_listeners_are_found() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in (four, both, six, udp)]
        tcp = [one for one in listeners(Protocol.TCP) if one.port in ports]
        assert {(str(one.address), one.port, one.both) for one in tcp} >= {
            ("127.0.0.1", ports[0], False),
            ("::", ports[1], True),
            ("::1", ports[2], False),
        }
        here, udp_port, both_port = ip_address("127.0.0.1"), ports[3], ports[1]
        assert any(one.takes(Protocol.UDP, here, range(udp_port, udp_port + 1)) for one in listeners(Protocol.UDP))
        assert any(one.takes(Protocol.TCP, here, range(both_port, both_port + 1)) for one in tcp)
    assert not [one for one in listeners(Protocol.TCP) if one.port in ports]


def free_place() -> Listen:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return Listen(IPv4Address("127.0.0.1"), probe.getsockname()[1])


async def ask(place: Listen, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(str(place.address), place.port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def serving(
    talk: Callable[[Listen, HealthChecks], Awaitable[None]],
    report: Callable[[], Awaitable[EngineReport]] | None = None,
) -> None:
    """Run `talk` beside a server whose engine says `report`: by default that all is well."""

    async def well() -> EngineReport:
        return farms.report(farms.view())

    async def main() -> None:
        checks, place = HealthChecks(FARM, report or well, lambda: EVERYWHERE, lambda: NOW_NS), free_place()
        server = HealthServer(checks, place)
        await server.start()
        try:
            await talk(place, checks)
        finally:
            server.close()
            await asyncio.sleep(0.05)  # for the server's ends to be closed

    asyncio.run(main())


def get(path: str, *, method: str = "GET", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()


def test_an_answer_is_one_line_and_ends_the_connection() -> None:
    async def talk(place: Listen, checks: HealthChecks) -> None:
        head, _, body = (await ask(place, get("/health"))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Connection: close" in head
        assert body == b"node1 takes new clients\n"
        assert (await ask(place, get("/health", method="HEAD"))) == head + b"\r\n\r\n"
        assert (await ask(place, b"GET /health HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        for asked in (get("/health", headers="Accept: application/json\r\n"), get("/health?format=json")):
            data = json.loads((await ask(place, asked)).partition(b"\r\n\r\n")[2])
            assert data == {"node": "node1", "healthy": True, "reason": "node1 takes new clients"}
        checks.stopping = True
        assert (await ask(place, get("/health"))).startswith(b"HTTP/1.1 503 ")

    serving(talk)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/other"), 404),
        (get("/health/rule/none"), 404),
        (get("/health", method="POST"), 405),
        (get("/health", headers="X: " + "y" * 20000 + "\r\n"), 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health\r\n\r\n", 400),
        (b"\xff\xfe\x00 / HTTP/1.1\r\n\r\n", 405),
    ],
)
def test_anything_else_is_refused(request_: bytes, status: int) -> None:
    async def talk(place: Listen, _: HealthChecks) -> None:
        assert int((await ask(place, request_)).split(b" ")[1]) == status

    serving(talk)


def test_without_an_engine_the_answer_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthserver, "_ENGINE_PATIENCE_S", 0.1)

    async def gone() -> EngineReport:
        raise DaemonUnreachable("the membership engine", "it is not running yet", "Look again")

    async def silent() -> EngineReport:
        await asyncio.sleep(60)
        raise AssertionError

    async def talk(place: Listen, _: HealthChecks) -> None:
        answer = await ask(place, get("/health"))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"the membership engine" in answer

    serving(talk, gone)
    serving(talk, silent)


def test_many_askers_share_one_question() -> None:
    asked = 0

    async def count() -> EngineReport:
        nonlocal asked
        asked += 1
        return farms.report(farms.view())

    async def talk(place: Listen, _: HealthChecks) -> None:
        answers = await asyncio.gather(*(ask(place, get("/health")) for _ in range(40)))
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)

    serving(talk, count)
    assert asked < 20


def test_clients_that_send_nothing_are_sent_away_and_block_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthserver, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(healthserver, "_MOST_CLIENTS", 4)

    async def talk(place: Listen, _: HealthChecks) -> None:
        idle = [await asyncio.open_connection(str(place.address), place.port) for _ in range(4)]
        await asyncio.sleep(0.05)
        assert await ask(place, get("/health")) == b"", "one too many is closed at once"
        for reader, writer in idle:
            assert await reader.read() == b""
            await close(writer)
        assert (await ask(place, get("/health"))).startswith(b"HTTP/1.1 200 ")

    serving(talk)


def test_who_has_asked_is_answered_before_the_socket_is_handed_over() -> None:
    async def main() -> None:
        told = asyncio.Event()

        async def late() -> EngineReport:
            await told.wait()
            return farms.report(farms.view())

        place = free_place()
        server = HealthServer(HealthChecks(FARM, late, lambda: EVERYWHERE, lambda: NOW_NS), place)
        await server.start()
        asking = [asyncio.create_task(ask(place, get("/health"))) for _ in range(20)]
        await asyncio.sleep(0.2)
        asyncio.get_running_loop().call_later(0.05, told.set)
        await server.hand_over()
        assert told.is_set()
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in await asyncio.gather(*asking))
        drop_inherited()

    asyncio.run(main())


def test_the_socket_is_handed_over_to_the_next_program() -> None:
    async def well() -> EngineReport:
        return farms.report(farms.view())

    async def main() -> None:
        place = free_place()
        checks = HealthChecks(FARM, well, lambda: EVERYWHERE, lambda: NOW_NS)
        first, second = HealthServer(checks, place), HealthServer(checks, place)
        await first.start()
        await first.hand_over()
        waiting = asyncio.create_task(ask(place, get("/health")))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await second.start()
        assert (await waiting).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(KernelError, match="cannot be listened on"):
            await HealthServer(checks, place).start()
        await second.hand_over()
        drop_inherited()
        with pytest.raises(ConnectionRefusedError):
            await ask(place, get("/health"))

    asyncio.run(main())
