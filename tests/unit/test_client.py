# SPDX-License-Identifier: Apache-2.0
"""The API client against the real server, and against everything that is none."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from farmd.client import Client, RemoteError
from farmd.model.errors import (
    BadRequest,
    DaemonUnreachable,
    FarmError,
    KernelError,
    NotFound,
    NotPermitted,
    PeerError,
    Refused,
    TimedOut,
)
from tests.unit.fakefarmd import Served, clean_environment, farm_status, serving


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


def test_answers_are_typed_and_keep_the_whole_envelope(farm: Served) -> None:
    farm.backend.said.append("careful")

    answer = Client(farm.path).status()

    assert answer.data == farm_status()
    assert (answer.node, answer.warnings) == ("node1", ("careful",))
    assert answer.raw["kind"] == "FarmStatus"
    assert answer.raw["generatedAt"] == answer.generated_at


def test_every_call_arrives(farm: Served) -> None:
    client = Client(farm.path)
    farm.append("note", "hello")

    assert client.counters().data["counters"][1]["packets"] == 123456
    assert [event["text"] for event in client.events(after=-5).data["events"]] == ["hello"]
    assert client.drain("node2", reason="disk").data["accepted"]
    client.drain("node1", force=True)
    client.ready("node2")
    client.set_weight("node2", 7, "heavy")
    client.explain("192.0.2.7", 5, "10.77.0.100", 80, "tcp")
    client.explain("fd77::7")
    client.leave()

    assert farm.backend.asked == [
        ("drain", "node2", False, "disk"),
        ("drain", "node1", True, None),
        ("ready", "node2"),
        ("weight", "node2", 7, "heavy"),
        ("explain", "192.0.2.7", 5, "10.77.0.100", 80, "tcp"),
        ("explain", "fd77::7", None, None, None, None),
        ("leave", False),
    ]


def test_a_name_with_strange_letters_cannot_change_the_path(farm: Served) -> None:
    with pytest.raises(NotFound):
        Client(farm.path).ready("../leave?x=ä b\r\n")

    assert [call for call in farm.backend.asked if call[0] != "ready"] == []


def test_a_long_poll_may_take_longer_than_the_timeout(farm: Served) -> None:
    assert Client(farm.path, timeout_s=0.5).events(wait_s=1.0).data["events"] == []


@pytest.mark.parametrize("kind", [BadRequest, KernelError, NotFound, NotPermitted, PeerError, Refused, TimedOut])
def test_errors_of_the_daemon_come_back_as_their_class(farm: Served, kind: type[FarmError]) -> None:
    farm.backend.fault = kind("the subject", "the cause", "The step")

    with pytest.raises(kind) as caught:
        Client(farm.path).status()

    error = caught.value
    assert (error.subject, error.cause, error.next_step) == ("the subject", "the cause", "The step")


def test_an_error_of_a_later_release_keeps_its_code(farm: Served) -> None:
    class Newer(FarmError):
        code = "newer"

    farm.backend.fault = Newer("a", "b", "c")

    with pytest.raises(RemoteError) as caught:
        Client(farm.path).status()
    assert caught.value.code == "newer"


def test_no_socket_and_a_dead_socket_are_unreachable(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="there is no such socket"):
        Client(tmp_path / "api.sock").status()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "api.sock"))
    with pytest.raises(DaemonUnreachable, match="nobody listens"):
        Client(tmp_path / "api.sock").status()
    with pytest.raises(DaemonUnreachable, match="too long"):
        Client(tmp_path / ("x" * 200)).status()


@contextlib.contextmanager
def impostor(path: Path, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    """A server that does `answer` with its only connection."""

    def run() -> None:
        with listener, listener.accept()[0] as connection:
            answer(connection)

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n{"apiVersion":"farm/v9"}',
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["nothing", "ssh", "no-json", "cut-off", "no-object", "other-version", "bare-500"],
)
def test_whatever_is_no_farmd_is_unreachable(tmp_path: Path, reply: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(reply)

    with impostor(tmp_path / "api.sock", answer), pytest.raises(DaemonUnreachable):
        Client(tmp_path / "api.sock").status()


def test_a_daemon_that_hangs_times_out(tmp_path: Path) -> None:
    def listen_only(connection: socket.socket) -> None:
        while connection.recv(4096):
            pass

    path = tmp_path / "api.sock"
    with impostor(path, listen_only), pytest.raises(TimedOut, match=r"0\.2 s; what you asked for may still be done"):
        Client(path, timeout_s=0.2).ready("node1")


def test_the_client_needs_only_the_standard_library() -> None:
    script = "import sys, farmd.client; print(sorted({m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    seen = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True, env=clean_environment()
    )
    assert seen.stdout.strip() == "['__main__', 'farmd']"
