# SPDX-License-Identifier: Apache-2.0
"""The stream under mutual TLS 1.3: it carries everything, and nobody without the farm's certificate gets in."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mirror.certificates import make_certificates
from tests.mirror.pair import EngineError, Pair
from tests.mirror.trees import differences

pytestmark = pytest.mark.root


def test_replication_under_tls(tmp_path: Path) -> None:
    nodes = make_certificates(tmp_path / "farm", "one", "two")
    with Pair() as pair:
        pair.join((nodes["one"] | {"peer_name": "two"}, nodes["two"] | {"peer_name": "one"}))
        for number in range(20):
            (pair.mount / f"f{number}").write_bytes(os.urandom(1 + number * 200_000))
        pair.settle()

        assert differences(pair.backing, pair.copy) == []


def test_a_peer_that_stalls_gets_every_record_in_order(tmp_path: Path) -> None:
    """What was encrypted and finds no room in the socket waits for it, before what comes behind it."""
    nodes = make_certificates(tmp_path / "farm", "one", "two")
    with Pair(peer_ms=60_000) as pair, ThreadPoolExecutor(32) as writers, ExitStack() as stack:
        pair.join((nodes["one"] | {"peer_name": "two"}, nodes["two"] | {"peer_name": "one"}))
        files = [stack.enter_context((pair.mount / f"f{n}").open("wb", 0)) for n in range(32)]
        pair.secondary.process.send_signal(signal.SIGSTOP)
        try:
            # More than both socket buffers hold; a strict write of each thread waits for the peer.
            done = [writers.submit(file.write, os.urandom(1 << 20)) for file in files]
            end = time.monotonic() + 60
            while pair.primary.do("stats")["stats"]["waiting"] < len(files):
                assert time.monotonic() < end, "the writes did not all reach the stream"
            assert not any(each.done() for each in done)
        finally:
            pair.secondary.process.send_signal(signal.SIGCONT)
        assert [each.result(60) for each in done] == [1 << 20] * len(files)
        pair.settle()

        assert differences(pair.backing, pair.copy) == []


@pytest.mark.parametrize("wrong", ["another farm's authority", "another node's name"])
def test_a_stranger_is_refused(tmp_path: Path, wrong: str) -> None:
    nodes = make_certificates(tmp_path / "farm", "one", "two")
    strangers = make_certificates(tmp_path / "other", "one", "two")
    ours = nodes["one"] | {"peer_name": "two"}
    theirs = nodes["two"] | {"peer_name": "one"}
    if wrong == "another farm's authority":
        theirs = strangers["two"] | {"peer_name": "one"}
    else:
        ours |= {"peer_name": "three"}
    with Pair() as pair:
        with pytest.raises(EngineError, match="TLS handshake"):
            pair.join((ours, theirs))
        (pair.mount / "file").write_text("x")
        assert os.listdir(pair.copy) == []
