# SPDX-License-Identifier: Apache-2.0
"""The bench beside nftables and the cluster match: every node decides as it is said to, or the bench refuses."""

from __future__ import annotations

import pytest

from bench import peers

pytestmark = pytest.mark.root


def test_every_node_refuses_what_is_not_its_own_and_lets_its_own_through() -> None:
    results = peers.measure(1, 1000)

    nodes = {"farmd", "nftables jhash", "iptables cluster"}
    assert {load: set(series) for load, series in results.items()} == {load.name: nodes for load in peers.LOADS}


def test_a_node_that_decides_wrongly_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = peers.choose
    monkeypatch.setattr(peers, "choose", lambda owns, *, own: right(owns, own=not own))

    with pytest.raises(SystemExit, match="packets went up, not"):
        peers.measure(1, 1000)
