# SPDX-License-Identifier: Apache-2.0
"""`[metrics]` in farm.toml: off without it, on loopback by default, and anywhere that was written out."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from farmd.daemon.status import config_hash
from farmd.metrics.server import DEFAULT_LISTEN
from farmd.model import farmfile
from farmd.model.config import FarmConfig, Listen
from farmd.model.errors import ConfigError

FARM = '[farm]\nname = "web"\n[[member]]\nname = "node1"\nnumber = 0\naddresses = ["10.77.0.11"]\n'


def parse(text: str) -> FarmConfig:
    return farmfile.parse(FARM + text, Path("/etc/farmd/farm.toml"), host_name="node1")


def test_nothing_listens_unless_it_is_asked_for() -> None:
    assert parse("").metrics is None


def test_loopback_is_the_default() -> None:
    metrics = parse("[metrics]\n").metrics
    assert metrics is not None
    assert metrics.address.is_loopback
    assert (str(metrics.address), metrics.port) == DEFAULT_LISTEN


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [("192.0.2.11:9999", "192.0.2.11", 9999), ("[::1]:1", "::1", 1), ("[2001:db8::1]:65535", "2001:db8::1", 65535)],
)
def test_an_address_that_is_written_out(text: str, address: str, port: int) -> None:
    assert parse(f'[metrics]\nlisten = "{text}"\n').metrics == Listen(ip_address(address), port)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('listen = "localhost:4805"', "not an IP address and a port"),
        ('listen = "4805"', "not an IP address and a port"),
        ('listen = "::1:4805"', "not an IP address and a port"),
        ('listen = "[127.0.0.1]:4805"', "not an IP address and a port"),
        ('listen = "239.0.0.1:4805"', "not an IP address and a port"),
        ('listen = "127.0.0.1:"', "has no port"),
        ('listen = "127.0.0.1:0"', "has no port"),
        ('listen = "127.0.0.1:65536"', "has no port"),
        ('listen = "127.0.0.1:+80"', "has no port"),
        ("listen = 4805", "not a string"),
        ('listn = "127.0.0.1:4805"', 'Did you mean "listen"'),
    ],
)
def test_a_mistake_is_found_at_its_place(line: str, cause: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"[metrics]\n{line}\n")
    (problem,) = caught.value.problems
    assert cause in f"{problem.cause}. {problem.next_step}"
    assert problem.line == FARM.count("\n") + 2


def test_metrics_is_a_table() -> None:
    with pytest.raises(ConfigError, match=r"Write \[metrics\] on a line, once"):
        farmfile.parse(f"metrics = true\n{FARM}", Path("farm.toml"), host_name="node1")


def test_only_what_nodes_must_agree_on_is_in_the_hash() -> None:
    plain = config_hash(parse(""))
    assert config_hash(parse("[metrics]\n")) == plain
    assert config_hash(parse('[node]\nstate_dir = "/elsewhere"\n')) == plain
    assert config_hash(parse('[[vip]]\naddress = "10.77.0.100"\n')) != plain
    assert config_hash(parse('[[group]]\nname = "heavy"\n')) != plain
