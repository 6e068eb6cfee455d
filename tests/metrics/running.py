# SPDX-License-Identifier: Apache-2.0
"""Real processes for the tests: promtool, exporters, and a Prometheus that scrapes them, all on loopback."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FILES = Path(__file__).parents[2] / "farmd" / "metrics" / "files"
_PATIENCE_S = 30.0


def promtool(*arguments: str, stdin: bytes | None = None) -> str:
    """What promtool says; a failure of the test if it finds anything."""
    done = subprocess.run([tool("promtool"), *arguments], input=stdin, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def tool(name: str) -> str:
    """The path of a program of Debian's package prometheus."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"This test needs {name}: apt-get install prometheus, and let no service of it run.", pytrace=False)
    return found


def wait(what: str, condition: Callable[[], bool], seconds: float = _PATIENCE_S) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{seconds:.0f} s were not enough until {what}"
        time.sleep(0.1)


@contextmanager
def exporter(api_socket: Path) -> Iterator[int]:
    """`python -m farmd.metrics` in front of a daemon; its port."""
    argv = [sys.executable, "-m", "farmd.metrics", "--socket", str(api_socket), "--port", "0"]
    with _running(argv, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        match = re.search(r" port (\d+)$", said.strip())
        assert match, said
        yield int(match[1])


def scrape(port: int) -> bytes:
    """An exporter's metrics as it sends them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found: bytes = answer.read()
        return found


class Prometheus:
    """A running server's HTTP API."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            with urllib.request.urlopen(f"{self._base}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that `expression` gives now; a failure of the test if Prometheus does not understand it."""
        result: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return result

    def value(self, expression: str) -> float | None:
        """The value of an expression that gives one sample, None if it gives none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def rules(self) -> list[dict[str, Any]]:
        """Every loaded rule with its health and, for alerts, its state."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets_up(self) -> int:
        """How many targets answered their last scrape."""
        return sum(target["health"] == "up" for target in self._get("targets")["activeTargets"])

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"{self._base}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                data: dict[str, Any] = json.load(answer)["data"]
                return data
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {json.load(error)['error']}")


@contextmanager
def prometheus(folder: Path, exporters: list[int]) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `exporters` and evaluates our rules, every second."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FILES / "farm-rules.yml"), str(FILES / "farm-alerts.yml")],
        "scrape_configs": [
            {"job_name": "farm", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in exporters]}]}
        ],
    }
    path = folder / "prometheus.yml"  # JSON is YAML.
    path.write_text(json.dumps(config))
    promtool("check", "config", str(path))
    port = _free_port()
    argv = [
        tool("prometheus"),
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with _running(argv):
        server = Prometheus(port)
        wait("Prometheus is ready", server.ready)
        wait("it has scraped every exporter", lambda: server.targets_up() == len(exporters))
        yield server


@contextmanager
def _running(argv: list[str], stderr: int | None = None) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=stderr, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
