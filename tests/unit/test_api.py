# SPDX-License-Identifier: Apache-2.0
"""The local API over a real socket: envelopes, every path, and what is said to a wrong request."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from farmd.daemon.api import HTTP_STATUS
from farmd.model import errors
from farmd.model.errors import ConfigError, FarmError, Problem
from tests.unit.fakefarmd import Served, farm_status, serving


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


def ask(farm: Served, method: str, target: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(farm.path))
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        assert response.getheader("content-type") == "application/json"
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_every_answer_has_the_same_envelope(farm: Served) -> None:
    farm.backend.said.append("the engine is slow")

    status, answer = ask(farm, "GET", "/v1/status")

    assert status == 200
    assert list(answer) == ["apiVersion", "kind", "generatedAt", "node", "warnings", "data"]
    assert (answer["apiVersion"], answer["kind"], answer["node"]) == ("farm/v1", "FarmStatus", "node1")
    assert answer["warnings"] == ["the engine is slow"]
    assert answer["generatedAt"].endswith("Z")
    assert datetime.fromisoformat(answer["generatedAt"]).tzinfo is not None
    assert answer["data"] == farm_status()


@pytest.mark.parametrize(
    ("method", "target", "body", "kind", "asked"),
    [
        ("GET", "/v1/counters", None, "Counters", None),
        ("GET", "/v1/events", None, "EventList", None),
        ("POST", "/v1/members/node2/drain", b"{}", "Operation", ("drain", "node2", False, None)),
        ("POST", "/v1/members/node2/drain", b"", "Operation", ("drain", "node2", False, None)),
        (
            "POST",
            "/v1/members/node1/drain",
            b'{"force":true,"reason":"disk"}',
            "Operation",
            ("drain", "node1", True, "disk"),
        ),
        ("POST", "/v1/members/node2/ready", b"{}", "Operation", ("ready", "node2")),
        ("POST", "/v1/members/node2/weight", b'{"weight":0}', "Operation", ("weight", "node2", 0, None)),
        (
            "POST",
            "/v1/members/node2/weight",
            b'{"weight":255,"group":"x"}',
            "Operation",
            ("weight", "node2", 255, "x"),
        ),
        ("POST", "/v1/reload", b"{}", "Operation", ("reload",)),
        ("POST", "/v1/leave", b"{}", "Operation", ("leave", False)),
        ("POST", "/v1/leave", b'{"force": true}', "Operation", ("leave", True)),
        ("GET", "/v1/explain?client=192.0.2.7", None, "Explanation", ("explain", "192.0.2.7", None, None, None, None)),
        (
            "GET",
            "/v1/explain?client=fd77::7&port=5&vip=fd77::100&vport=80&protocol=udp",
            None,
            "Explanation",
            ("explain", "fd77::7", 5, "fd77::100", 80, "udp"),
        ),
    ],
)
def test_requests_reach_the_backend(
    farm: Served, method: str, target: str, body: bytes | None, kind: str, asked: tuple[object, ...] | None
) -> None:
    status, answer = ask(farm, method, target, body)

    assert (status, answer["kind"]) == (200, kind)
    assert farm.backend.asked == ([] if asked is None else [asked])


@pytest.mark.parametrize(
    ("method", "target", "body", "subject", "says"),
    [
        ("GET", "/v1/events?after=x", None, "after", "whole number"),
        ("GET", "/v1/events?limit=0", None, "limit", "out of range"),
        ("GET", "/v1/events?limit=9999", None, "limit", "1 to 1000"),
        ("GET", "/v1/events?wait=nan", None, "wait", "out of range"),
        ("GET", "/v1/events?wait=1e9", None, "wait", "0 to 60"),
        ("GET", "/v1/events?wiat=1", None, "wiat", "no such parameter"),
        ("GET", "/v1/explain", None, "client", "missing"),
        ("GET", "/v1/explain?client=300.1.1.1", None, "client", "not an IP address"),
        ("GET", "/v1/explain?client=192.0.2.7&port=99999", None, "port", "65535"),
        ("GET", "/v1/explain?client=192.0.2.7&vip=192.0.2.1", None, "vip and vport", "both"),
        ("GET", "/v1/explain?client=192.0.2.7&vip=fd77::1&vport=80", None, "vip", "IPv6"),
        ("GET", "/v1/explain?client=192.0.2.7&protocol=sctp", None, "protocol", "tcp or udp"),
        ("GET", "/v1/explain?client=192.0.2.7&packet=ping", None, "packet", "lost-fragment"),
        ("GET", "/v1/explain?client=192.0.2.7&id=-1", None, "id", "4.29497e+09"),
        ("POST", "/v1/members/node2/drain", b"{", "request body", "not JSON"),
        ("POST", "/v1/members/node2/drain", b"\xff\xfe", "request body", "not JSON"),
        ("POST", "/v1/members/node2/drain", b"[" * 5000, "request body", "not JSON"),
        ("POST", "/v1/members/node2/drain", b"[]", "request body", "not a JSON object"),
        ("POST", "/v1/members/node2/drain", b'{"a":"' + b"x" * 70000 + b'"}', "request body", "longer"),
        ("POST", "/v1/members/node2/drain", b'{"forced":true}', "forced", "force, reason"),
        ("POST", "/v1/members/node2/drain", b'{"force":1}', "force", "true or false"),
        ("POST", "/v1/members/node2/drain", b'{"reason":5}', "reason", "text"),
        ("POST", "/v1/members/node2/ready", b'{"x":1}', "x", "no fields"),
        ("POST", "/v1/members/node2/weight", b"{}", "weight", "missing"),
        ("POST", "/v1/members/node2/weight", b'{"weight":true}', "weight", "whole number"),
        ("POST", "/v1/members/node2/weight", b'{"weight":256}', "weight", "0 to 255"),
        ("POST", "/v1/members/node2/weight", b'{"weight":-1}', "weight", "0 to 255"),
    ],
)
def test_a_wrong_request_is_told_its_cause_and_the_next_step(
    farm: Served, method: str, target: str, body: bytes | None, subject: str, says: str
) -> None:
    status, answer = ask(farm, method, target, body)

    assert (status, answer["kind"], answer["data"]["code"]) == (400, "Error", "bad-request")
    assert answer["data"]["subject"] == subject
    assert says in f"{answer['data']['cause']}. {answer['data']['next_step']}"
    assert farm.backend.asked == []


@pytest.mark.parametrize(
    ("method", "target", "status"), [("GET", "/v2/x", 404), ("GET", "/", 404), ("POST", "/v1/status", 405)]
)
def test_unknown_paths_and_methods_are_answered_in_json(farm: Served, method: str, target: str, status: int) -> None:
    got, answer = ask(farm, method, target, b"{}" if method == "POST" else None)

    assert (got, answer["kind"]) == (status, "Error")
    assert answer["data"]["subject"] == f"{method} {target}"


def test_every_error_of_the_tree_has_an_http_status(farm: Served) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FarmError)]
    assert {kind.code for kind in kinds} == set(HTTP_STATUS)

    for kind in kinds:
        problem = Problem("farm.toml", 3, 1, "the cause", "The step")
        farm.backend.fault = (
            ConfigError((problem,)) if kind is ConfigError else kind("the subject", "the cause", "The step")
        )
        status, answer = ask(farm, "GET", "/v1/status")
        assert (status, answer["data"]["code"]) == (HTTP_STATUS[kind.code], kind.code)
        assert (answer["data"]["cause"], answer["data"]["next_step"]) == ("the cause", "The step")


def test_a_refusal_is_409_and_an_unknown_node_404(farm: Served) -> None:
    assert ask(farm, "POST", "/v1/members/node1/drain", b"{}")[0] == 409
    assert ask(farm, "POST", "/v1/members/node9/drain", b"{}")[0] == 404


def test_a_fault_of_ours_is_a_500_in_json_and_a_traceback_in_the_log(
    farm: Served, caplog: pytest.LogCaptureFixture
) -> None:
    farm.backend.fault = ZeroDivisionError("oh")

    with caplog.at_level(logging.ERROR):
        status, answer = ask(farm, "GET", "/v1/status")

    assert status == 500
    assert "ZeroDivisionError: oh" in answer["data"]["cause"]
    assert any(record.exc_info for record in caplog.records)
    farm.backend.fault = None
    assert ask(farm, "GET", "/v1/status")[0] == 200


def test_events_page_and_long_poll(farm: Served) -> None:
    for text in ("one", "two", "three"):
        farm.append("note", text)

    def texts(query: str) -> list[str]:
        return [event["text"] for event in ask(farm, "GET", f"/v1/events?{query}")[1]["data"]["events"]]

    assert texts("after=1&limit=1") == ["two"]
    assert texts("after=-1") == ["three"]
    assert texts("after=3") == []
    later = threading.Timer(0.2, farm.append, ("note", "four"))
    later.start()
    started = time.monotonic()
    assert texts("after=3&wait=30") == ["four"]
    assert 0.1 < time.monotonic() - started < 10
    later.join()
