# SPDX-License-Identifier: Apache-2.0
"""One scrape against a daemon's backend: parts fail alone, totals survive, and HTTP serves /metrics only."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from farmd.client import Client
from farmd.daemon import api, httpd
from farmd.metrics import server as server_module
from farmd.metrics import source as source_module
from farmd.metrics.exporter import MEMORY_FILE, facts_of, registry_of
from farmd.metrics.serve import serve
from farmd.metrics.server import MetricsServer
from farmd.metrics.source import ApiSource, LoopSource, Source
from farmd.model.answers import Counters, EventData, FarmStatus
from farmd.model.config import Listen
from farmd.model.errors import DaemonUnreachable, KernelError, PeerError, TimedOut
from farmd.model.nodes import Role
from tests.unit.fakefarmd import FakeFarmd
from tests.unit.farms import config

FACTS = facts_of("web", "node1", Role.NODE)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A daemon's event loop, running."""
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever)
    thread.start()
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join()
    running.close()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    for family in registry.collect():
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


class Broken(LoopSource):
    """A source of which one part is broken."""

    def __init__(self, farmd: FakeFarmd, loop: asyncio.AbstractEventLoop, part: str, error: Exception) -> None:
        super().__init__(farmd, loop)
        self._broken = {part: error}

    def status(self) -> FarmStatus:
        self._check("status")
        return super().status()

    def counters(self) -> Counters:
        self._check("counters")
        return super().counters()

    def events(self, after: int) -> Sequence[EventData]:
        self._check("events")
        return super().events(after)

    def heal(self) -> None:
        self._broken.clear()

    def _check(self, part: str) -> None:
        if part in self._broken:
            raise self._broken[part]


def test_a_scrape_reads_the_daemon(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    registry = registry_of(LoopSource(FakeFarmd(tmp_path), loop), FACTS, tmp_path)
    assert value(registry, "farm_up", farm="web", node="node1") == 1
    assert value(registry, "farm_filter_packets_total", rule="web", verdict="pass") == 123456
    assert value(registry, "process_resident_memory_bytes") is not None


def test_a_failure_is_logged_once(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    source = Broken(FakeFarmd(tmp_path), loop, "status", PeerError("the engine", "it is gone", "Wait"))
    registry = registry_of(source, FACTS, tmp_path)
    assert not caplog.messages, "nothing is read before a scrape"
    for _ in range(3):
        list(registry.collect())
    assert caplog.messages == ["metrics: status: the engine: it is gone. Wait"]
    source.heal()
    assert value(registry, "farm_collector_success", collector="status") == 1


@pytest.mark.parametrize("part", ["status", "counters", "events"])
@pytest.mark.parametrize("error", [PeerError("the engine", "it is gone", "Wait"), RuntimeError("a bug")], ids=str)
def test_a_part_fails_alone(tmp_path: Path, loop: asyncio.AbstractEventLoop, part: str, error: Exception) -> None:
    parts = {
        "status": "farm_member_state",
        "counters": "farm_filter_packets_total",
        "events": "farm_views_started_total",
    }
    registry = registry_of(Broken(FakeFarmd(tmp_path), loop, part, error), FACTS, tmp_path)
    for name, metric in parts.items():
        assert value(registry, "farm_collector_success", collector=name) == (name != part)
        assert (value(registry, metric) is None) == (name == part)
    assert value(registry, "farm_up") == (part != "status")


def test_totals_survive_a_restart_and_are_not_counted_twice(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    farmd = FakeFarmd(tmp_path)
    farmd.log.append("view.started", "")
    registry = registry_of(LoopSource(farmd, loop), FACTS, tmp_path)
    assert value(registry, "farm_views_started_total") == 1
    assert value(registry, "farm_views_started_total") == 1
    farmd.log.append("view.started", "while nobody scrapes")
    farmd.log.close()
    again = registry_of(LoopSource(FakeFarmd(tmp_path), loop), FACTS, tmp_path)
    assert value(again, "farm_views_started_total") == 2
    assert (tmp_path / MEMORY_FILE).exists()


def test_more_events_than_one_answer_holds(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    farmd = FakeFarmd(tmp_path)
    for _ in range(2500):
        farmd.log.append("view.started", "")
    registry = registry_of(LoopSource(farmd, loop), FACTS, tmp_path)
    assert value(registry, "farm_views_started_total") == 2500


def test_totals_are_right_although_the_disk_refuses(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    farmd = FakeFarmd(tmp_path)
    registry = registry_of(LoopSource(farmd, loop), FACTS, tmp_path / "missing")
    farmd.log.append("view.started", "")
    assert value(registry, "farm_views_started_total") == 1
    assert value(registry, "farm_collector_success", collector="events") == 1


def test_scrapes_at_the_same_time_count_once(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    farmd = FakeFarmd(tmp_path)
    for _ in range(50):
        farmd.log.append("view.started", "")
    registry = registry_of(LoopSource(farmd, loop), FACTS, tmp_path)
    threads = [threading.Thread(target=lambda: list(registry.collect())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(registry, "farm_views_started_total") == 50


def test_a_daemon_that_ends_is_said_to(tmp_path: Path) -> None:
    closed = asyncio.new_event_loop()
    closed.close()
    with pytest.raises(DaemonUnreachable):
        LoopSource(FakeFarmd(tmp_path), closed).status()


def test_a_daemon_whose_loop_hangs_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "_TIMEOUT_S", 0.05)
    hanging = asyncio.new_event_loop()
    source = LoopSource(FakeFarmd(tmp_path), hanging)
    with pytest.raises(TimedOut):
        source.status()
    hanging.run_until_complete(asyncio.sleep(0))
    hanging.close()


def test_the_api_gives_the_same_as_the_daemon_itself(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    farmd = FakeFarmd(tmp_path)
    farmd.log.append("member.failed", "node3 failed", {"member": 2})
    stop = asyncio.Event()
    serving = asyncio.run_coroutine_threadsafe(httpd.serve(api.build(farmd), tmp_path / "api.sock", stop), loop)
    try:
        client = Client(tmp_path / "api.sock")
        _until(lambda: (tmp_path / "api.sock").exists())
        near: Source = LoopSource(farmd, loop)
        far: Source = ApiSource(client)
        assert far.status() == near.status()
        assert far.counters() == near.counters()
        assert far.events(0) == near.events(0)
        assert far.events(1) == []
    finally:
        loop.call_soon_threadsafe(stop.set)
        serving.result(5)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--socket", "missing.sock"], "there is no such socket"),
        (["--host", "localhost"], "invalid ip_address value"),
        (["--state-dir", "missing"], "no such folder"),
    ],
)
def test_an_exporter_that_cannot_start_says_why(tmp_path: Path, arguments: list[str], said: str) -> None:
    argv = [sys.executable, "-m", "farmd.metrics", *arguments]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_daemon_serves_what_farm_toml_says(tmp_path: Path) -> None:
    async def scraped(listen: Listen | None) -> str | None:
        server = serve(FakeFarmd(tmp_path), replace(config(tmp_path), metrics=listen))
        if server is None:
            return None
        try:
            return (await asyncio.to_thread(get, server, "/metrics"))[1]
        finally:
            server.stop()

    assert asyncio.run(scraped(None)) is None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(KernelError, match="in use"):
            asyncio.run(scraped(Listen(ip_address("127.0.0.1"), port)))
    found = asyncio.run(scraped(Listen(ip_address("127.0.0.1"), port)))
    assert found is not None
    assert 'farm_up{farm="test",node="node1",role="node"} 1.0' in found


# HTTP -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> Iterator[MetricsServer]:
    server = MetricsServer(registry_of(LoopSource(FakeFarmd(tmp_path), loop), FACTS, tmp_path), "127.0.0.1", 0)
    yield server
    server.stop()


def get(server: MetricsServer, path: str, **headers: str) -> tuple[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_metrics_are_served_as_prometheus_text(served: MetricsServer) -> None:
    kind, text = get(served, "/metrics")
    assert kind.startswith("text/plain")
    assert "farm_up" in {family.name for family in text_string_to_metric_families(text)}


def test_metrics_are_served_as_openmetrics(served: MetricsServer) -> None:
    kind, text = get(served, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/favicon.ico", "/../metrics"])
def test_nothing_else_is_served(served: MetricsServer, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        get(served, path)
    assert "/metrics" in refused.value.read().decode()
    refused.value.close()


def test_nothing_can_be_posted(served: MetricsServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="405") as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{served.port}/metrics", data=b"x", timeout=5)
    refused.value.close()


def test_an_address_in_use_is_named(served: MetricsServer) -> None:
    with pytest.raises(KernelError, match=f"127.0.0.1 port {served.port}.*in use"):
        MetricsServer(CollectorRegistry(), "127.0.0.1", served.port)


def test_ipv6(tmp_path: Path) -> None:
    server = MetricsServer(CollectorRegistry(), "::1", 0)
    with urllib.request.urlopen(f"http://[::1]:{server.port}/metrics", timeout=5) as answer:
        assert answer.status == 200
    server.stop()


def test_silent_clients_cannot_take_more_than_their_number(
    served: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", served.port), timeout=5) for _ in range(12)]
    try:
        _until(lambda: sum(_closed(one) for one in silent) == 4)
        assert threading.active_count() <= before + 8
    finally:
        for one in silent:
            one.close()
    _until(lambda: threading.active_count() == before)
    assert get(served, "/metrics")


def test_a_silent_client_is_sent_away(served: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module._Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as silent:
        assert silent.recv(1) == b""


def _closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
