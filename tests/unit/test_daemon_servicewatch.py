# SPDX-License-Identifier: Apache-2.0
"""Whether clients can reach this node."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from farmd.daemon.servicewatch import ServiceWatch
from farmd.model.config import TIMINGS

TIMING = TIMINGS["default"]
MS = 1_000_000


Make = Callable[..., ServiceWatch]


@pytest.fixture
def watch() -> Iterator[Make]:
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
        yield lambda *names, networks=2: ServiceWatch(names, (one, two)[:networks], TIMING, 0)


def test_a_service_network_that_falls_silent_alone_is_lost(watch: Make) -> None:
    service = watch("lo")
    for at_ms in range(0, 400, 100):
        service.heard(at_ms * MS, 1)
    assert service.usable(200 * MS)
    assert not service.usable(300 * MS)
    service.heard(300 * MS, 0)
    assert service.usable(310 * MS)


def test_silence_everywhere_says_nothing_about_the_service_network(watch: Make) -> None:
    assert watch("lo").usable(10_000 * MS)


def test_one_network_has_nothing_to_compare_with(watch: Make) -> None:
    assert watch("lo", networks=1).usable(10_000 * MS)


def test_an_interface_that_is_gone_serves_nobody(watch: Make) -> None:
    assert not watch("no-such-if").usable(0)
    assert watch("no-such-if", "lo").usable(0), "clients may come by the other one"


def test_a_witness_has_no_clients(watch: Make) -> None:
    assert watch().usable(10_000 * MS)
