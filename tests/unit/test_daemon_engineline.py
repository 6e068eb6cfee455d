# SPDX-License-Identifier: Apache-2.0
"""The line between daemon and engine: over a real unix socket, with an engine that answers from a table."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from farmd.daemon import engineserver
from farmd.daemon.enginelink import EngineLink
from farmd.daemon.engineserver import EngineServer
from farmd.daemon.report import encode_report
from farmd.model.errors import DaemonUnreachable, FarmError

from . import farms


def answer(what: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if what == "report":
        return {"report": encode_report(farms.report(farms.view()))}
    if what == "echo":
        return {"echo": arguments["word"]}
    raise FarmError("the engine", f"it does not know {what}", "Ask for something else")


def test_answers_errors_and_events_cross_the_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = EngineServer(tmp_path / "engine.sock", answer, lambda: None)
        await server.start()
        assert stat.S_IMODE((tmp_path / "engine.sock").stat().st_mode) == 0o600
        link = await EngineLink.connect(tmp_path / "engine.sock")
        assert link is not None
        events: list[dict[str, Any]] = []
        listener = asyncio.create_task(link.listen(events.append))

        assert await link.report() == farms.report(farms.view())
        words = await asyncio.gather(*(link.ask("echo", word=word) for word in range(20)))
        assert [one["echo"] for one in words] == list(range(20))
        with pytest.raises(FarmError, match="it does not know nonsense"):
            await link.ask("nonsense")
        server.publish({"type": "view.started", "text": "t", "data": {}})
        await link.ask("echo", word=1)
        assert events == [{"type": "view.started", "text": "t", "data": {}}]

        await server.close()
        await asyncio.wait_for(link.lost.wait(), 5)
        with pytest.raises(DaemonUnreachable):
            await link.ask("echo", word=1)
        await listener

    asyncio.run(scenario())


def test_an_engine_without_a_daemon_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engineserver, "ORPHAN_GRACE_S", 0.2)

    async def scenario() -> None:
        orphaned = asyncio.Event()
        server = EngineServer(tmp_path / "engine.sock", answer, orphaned.set)
        await server.start()
        link = await EngineLink.connect(tmp_path / "engine.sock")
        assert link is not None
        listener = asyncio.create_task(link.listen(lambda _: None))
        await link.ask("echo", word=1)
        await asyncio.sleep(0.5)
        assert not orphaned.is_set(), "a daemon is there"

        link.close()
        await asyncio.wait_for(orphaned.wait(), 5)
        await server.close()
        await listener

    asyncio.run(scenario())


def test_a_daemon_that_comes_back_in_time_stops_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engineserver, "ORPHAN_GRACE_S", 0.3)

    async def scenario() -> None:
        orphaned = asyncio.Event()
        server = EngineServer(tmp_path / "engine.sock", answer, orphaned.set)
        await server.start()
        link = None
        for _ in range(4):
            if link is not None:
                link.close()
            await asyncio.sleep(0.15)
            link = await EngineLink.connect(tmp_path / "engine.sock")
            assert link is not None
        await asyncio.sleep(0.5)
        assert not orphaned.is_set()
        assert link is not None
        link.close()
        await server.close()

    asyncio.run(scenario())


def test_no_engine_is_not_an_error(tmp_path: Path) -> None:
    assert asyncio.run(EngineLink.connect(tmp_path / "engine.sock")) is None
