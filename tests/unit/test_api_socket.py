# SPDX-License-Identifier: Apache-2.0
"""The API's socket: its mode, whose it is, what a dead daemon leaves, and how serving ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farmd.client import Client
from farmd.daemon import httpd
from farmd.daemon.api import build
from farmd.model.errors import KernelError, Refused
from tests.unit.fakefarmd import FakeFarmd, clean_environment, serving

_LISTENER = """
import sys, time
from pathlib import Path
from farmd.daemon.httpd import listening
with listening(Path(sys.argv[1])):
    print("listening", flush=True)
    time.sleep(60)
"""


def test_the_mode_is_0660_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        with httpd.listening(tmp_path / "api.sock"):
            mode = (tmp_path / "api.sock").stat().st_mode
            assert os.umask(0o777) == 0o777
    finally:
        os.umask(before)

    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    assert not (tmp_path / "api.sock").exists()


def test_a_client_that_comes_before_we_serve_is_queued(tmp_path: Path) -> None:
    with httpd.listening(tmp_path / "api.sock"), socket.socket(socket.AF_UNIX) as early:
        early.connect(str(tmp_path / "api.sock"))


def test_the_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    command = [sys.executable, "-c", _LISTENER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment()) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        with pytest.raises(Refused, match="another process serves it"), httpd.listening(path):
            pass
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    assert path.exists()

    with httpd.listening(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_living_foreign_server_is_not_robbed(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Refused, match="another process serves it"), httpd.listening(path):
            pass
        assert path.exists()


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")

    with pytest.raises(Refused, match="not a socket"), httpd.listening(path):
        pass

    assert path.read_text() == "precious"


def test_a_folder_that_is_missing_is_made_and_one_that_cannot_be_is_told(tmp_path: Path) -> None:
    with httpd.listening(tmp_path / "a" / "b" / "api.sock"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match="Run farmd as root"), httpd.listening(tmp_path / "file" / "api.sock"):
        pass


def test_a_path_too_long_for_the_kernel_is_told(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="too long"), httpd.listening(tmp_path / ("x" * 120)):
        pass


def test_a_body_that_raises_is_not_mistaken_for_a_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), httpd.listening(tmp_path / "api.sock"):
        raise BlockingIOError


def test_serving_ends_soon_even_with_a_long_poll_open_and_leaves_no_socket(tmp_path: Path) -> None:
    with serving(tmp_path) as farm:
        poll = socket.socket(socket.AF_UNIX)
        poll.connect(str(farm.path))
        poll.sendall(b"GET /v1/events?wait=60 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert Client(farm.path).status().node == "node1"
        started = time.monotonic()
        farm.stop()
        assert time.monotonic() - started < 5
        assert poll.recv(4096).startswith(b"HTTP/1.1 200")
        poll.close()
    assert not farm.path.exists()


def test_a_long_poll_that_nobody_ends_is_cut_after_the_grace(tmp_path: Path) -> None:
    async def scenario() -> float:
        stop = asyncio.Event()
        task = asyncio.create_task(httpd.serve(build(FakeFarmd(tmp_path)), tmp_path / "api.sock", stop))
        await asyncio.sleep(0.2)
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "api.sock"))
        writer.write(b"GET /v1/events?wait=60 HTTP/1.1\r\nHost: x\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)
        started = time.monotonic()
        stop.set()
        await task
        writer.close()
        return time.monotonic() - started

    assert asyncio.run(scenario()) < 5


def test_signals_stay_the_daemons(tmp_path: Path) -> None:
    async def scenario() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(httpd.serve(build(FakeFarmd(tmp_path)), tmp_path / "api.sock", stop))
        await asyncio.sleep(0.3)
        assert signal.getsignal(signal.SIGTERM) is before
        stop.set()
        await task

    before = signal.getsignal(signal.SIGTERM)
    asyncio.run(scenario())


def test_cancelling_the_server_removes_the_socket(tmp_path: Path) -> None:
    async def scenario() -> None:
        task = asyncio.create_task(httpd.serve(build(FakeFarmd(tmp_path)), tmp_path / "api.sock", asyncio.Event()))
        await asyncio.sleep(0.2)
        assert (tmp_path / "api.sock").exists()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert not (tmp_path / "api.sock").exists()
