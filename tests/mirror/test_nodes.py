# SPDX-License-Identifier: Apache-2.0
"""A mirror's whole life with real processes: first content, failover, failback, swap, refusals, split brain."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.mirror.nodes import MirrorNode, TwoNodes, begin, equal
from tests.mirror.trees import differences

pytestmark = [pytest.mark.root, pytest.mark.lab]

MB = 1 << 20


def test_a_first_primary_says_that_its_peer_lacks_everything() -> None:
    """What changed since is known to the byte, and says nothing: the peer has never had a copy."""
    with TwoNodes("mfp") as nodes:
        one, two = nodes.nodes
        two.ctl("stop")
        (one.data / "before").write_bytes(os.urandom(MB))
        one.ctl("promote", "--accept", "first")
        assert one.status()["dirty"]["more"]
        two.ctl("start")
        one.wait_in_sync()
        assert one.status()["dirty"] is None
        two.kill()
        one.wait("alone", lambda status: status["gate"] == "alone")
        assert not one.status()["dirty"]["more"]


@pytest.mark.parametrize("tls", [True, False])
def test_the_main_path(tls: bool) -> None:
    with TwoNodes("mmp", tls=tls) as nodes:
        one, two = nodes.nodes
        (one.data / "before").write_bytes(os.urandom(64 * MB))
        (two.data / "foreign").write_text("was here before the mirror")
        assert "--accept first" in one.refused("promote")
        begin(nodes)
        assert not (two.data / "foreign").exists()

        (one.data / "sub/deep").mkdir(parents=True)
        (one.data / "sub/deep/file").write_text("live")
        os.link(one.data / "sub/deep/file", one.data / "second-name")
        (one.data / "link").symlink_to("sub/deep")
        assert (two.data / "sub/deep/file").read_text() == "live"
        equal(nodes)

        one.kill()
        two.wait("alone", lambda status: not status["peer"]["connected"])
        two.ctl("promote")
        with (two.data / "before").open("r+b") as file:
            file.seek(3 * MB)
            file.write(b"changed alone")
        (two.data / "second-name").unlink()
        (two.data / "link").rename(two.data / "moved")
        assert two.status()["dirty"]["files"] > 0
        assert not two.status()["dirty"]["more"]

        one.ctl("start")
        two.wait_in_sync()
        moved = two.status()["last_resync"]["bytes_moved"]
        assert 0 < moved < MB, f"{moved} bytes travelled for one changed block of 64 MiB"
        equal(nodes)

        two.ctl("swap")
        one.wait("primary in sync", lambda status: status["role"] == "primary" and status["in_sync"])
        (one.data / "after").write_text("the swap")
        assert (two.data / "after").read_text() == "the swap"
        equal(nodes)
        for node in (one, two):
            node.ctl("stop")
        assert differences(one.data, two.data) == []


def _write_forever(folder: Path, stop: threading.Event, done: list[int]) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        path = folder / f"row-{number % 300}"
        with path.open("a") as file:
            file.write(f"{number}\n")
            file.flush()
            os.fsync(file.fileno())
        if number % 7 == 0:
            path.rename(folder / f"moved-{number % 50}")
        done.append(number)


def _goes_on(node: MirrorNode, done: list[int]) -> None:
    """Until the application has written twenty times more."""
    goal = len(done) + 20
    node.wait("writing", lambda _: len(done) > goal)


def test_failback_while_the_application_writes() -> None:
    with TwoNodes("mfb") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        stop, done = threading.Event(), list[int]()
        writer = threading.Thread(target=_write_forever, args=(one.data, stop, done))
        writer.start()
        try:
            for _ in range(3):
                two.kill()
                one.wait("alone", lambda status: status["gate"] == "alone")
                _goes_on(one, done)
                two.ctl("start")
                one.wait_in_sync()
                _goes_on(one, done)
        finally:
            stop.set()
            writer.join()
        equal(nodes)


def test_a_stale_copy_is_refused_and_a_split_is_shown_until_one_side_is_given_up() -> None:
    with TwoNodes("mst") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        one.kill()
        two.wait("alone", lambda status: not status["peer"]["connected"])
        two.ctl("promote")
        (two.data / "only-two").write_text("acknowledged alone")
        two.kill()

        one.ctl("start")
        text = one.refused("promote")
        for part in ("stale", "node 2", "would be lost"):
            assert part in text
        one.ctl("promote", "--accept", "stale")
        (one.data / "only-one").write_text("forced")

        two.ctl("start")
        two.wait("split", lambda status: bool(status["split"]))
        status = one.wait("split", lambda status: bool(status["split"]))
        assert status["history"]
        assert status["peer_history"]
        assert not status["in_sync"]
        assert "split brain" in two.refused("promote")
        assert (two.data / "only-two").exists(), "nothing is merged by itself"

        two.ctl("resync", "--give-up")
        one.wait_in_sync()
        assert not (two.data / "only-two").exists()
        assert (two.data / "only-one").read_text() == "forced"
        equal(nodes)


def test_a_half_synced_copy_is_refused() -> None:
    with TwoNodes("mhs") as nodes:
        one, two = nodes.nodes
        for number in range(4):
            (one.data / f"big{number}").write_bytes(os.urandom(48 * MB))
        one.ctl("promote", "--accept", "first")
        two.wait("target", lambda status: status["role"] == "target")
        two.kill()
        one.kill()
        two.ctl("start")
        assert "half-synced" in two.refused("promote") or two.status()["uptodate"]
        one.ctl("start")
        one.ctl("promote")
        one.wait_in_sync()
        equal(nodes)


def test_a_cut_cable_leaves_one_primary_and_a_mended_one_makes_both_equal() -> None:
    with TwoNodes("mcc") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        nodes.cut()
        began = time.monotonic()
        (one.data / "held").write_text("until the arbiter has spoken")
        assert time.monotonic() - began < 30
        one.wait("alone", lambda status: status["gate"] == "alone")
        assert "stale" in two.refused("promote")
        nodes.mend()
        one.wait_in_sync()
        assert (two.data / "held").exists()
        equal(nodes)


def test_verify_names_what_differs_and_resync_mends_it() -> None:
    with TwoNodes("mvr") as nodes:
        one, two = nodes.nodes
        (one.data / "file").write_text("right")
        (one.data / "other").write_text("same")
        begin(nodes)
        (two.data / "file").write_text("wrong")
        result = one.ctl("verify", code=3)
        assert [each["path"] for each in result["findings"]] == ["file"]
        assert one.ctl("diff")["differences"] == 1
        one.ctl("resync", "--no-wait")
        one.wait("compared", lambda status: status["in_sync"] and (status["last_resync"] or {}).get("names", 0) >= 1)
        assert (two.data / "file").read_text() == "right"
        equal(nodes)


def test_a_directory_in_use_is_not_taken_away() -> None:
    with TwoNodes("muse") as nodes:
        one, _ = nodes.nodes
        begin(nodes)
        with (one.data / "open").open("w") as file:
            text = one.refused("demote")
            assert "in use by" in text
            assert str(os.getpid()) in text
            file.write("still writable")
        one.ctl("demote")
        assert one.status()["role"] != "primary"


def test_an_empty_directory_in_its_place_is_not_taken_for_the_copy() -> None:
    with TwoNodes("mid") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        (one.data / "precious").write_text("only here and there")
        two.ctl("stop")
        kept = two.data.rename(two.data.with_name("kept"))
        two.data.mkdir()
        said = str(two.ctl("start", code=1)["stderr"])
        assert "it is not the directory that this node's copy was in" in said
        assert "--id" in said
        two.data.rmdir()
        kept.rename(two.data)
        two.ctl("start")
        one.wait_in_sync()
        equal(nodes)


def test_a_mount_that_only_the_node_sees_is_told() -> None:
    with TwoNodes("mpr") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        two.ctl("stop")
        two.ctl("start", within=("unshare", "--mount", "--propagation", "slave"))
        one.wait_in_sync()
        two.wait_in_sync()
        one.ctl("demote")
        assert "another mount namespace" in two.ctl("promote")["stderr"]
        one.wait_in_sync()
        two.ctl("demote")
        assert "another mount namespace" not in one.ctl("promote")["stderr"]


def test_a_node_with_other_keys_is_refused() -> None:
    with TwoNodes("mky") as nodes:
        one, two = nodes.nodes
        two.ctl("stop")
        one.ctl("keygen", "--out", str(nodes.base / "others"))
        for file in (nodes.base / "others/node-2").iterdir():
            file.replace(nodes.base / "keys/node-2" / file.name)
        two.ctl("start")
        status = two.wait("refused", lambda status: bool(status["trouble"]))
        assert "certificate" in status["trouble"].lower()
        assert not one.status()["peer"]["connected"]


def _primary(nodes: TwoNodes) -> MirrorNode:
    return next(node for node in nodes.nodes if node.status()["role"] == "primary")


def test_killed_at_any_moment_a_node_comes_back() -> None:
    """Either node dies in turn, in the midst of a resync too; the other serves on, and in the end both are equal."""
    with TwoNodes("mka") as nodes:
        begin(nodes)
        for number in range(4):
            primary = _primary(nodes)
            other = nodes.two if primary is nodes.one else nodes.one
            (primary.data / f"file{number}").write_bytes(os.urandom(8 * MB))
            primary.kill()
            other.wait("alone", lambda status: not status["peer"]["connected"])
            other.ctl("promote")
            (other.data / f"alone{number}").write_bytes(os.urandom(8 * MB))
            primary.ctl("start")
            time.sleep(0.03 * number)
            primary.kill()
            primary.ctl("start")
            other.wait_in_sync()
        equal(nodes)


def test_the_operators_word_moves_a_mirror_without_a_third_machine() -> None:
    with TwoNodes("mop", arbiter="operator") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        one.kill()
        two.wait("alone", lambda status: not status["peer"]["connected"])
        two.ctl("promote")
        (two.data / "alone").write_text("by the operator's word")
        one.ctl("start")
        two.wait_in_sync()
        two.ctl("swap")
        one.wait("primary in sync", lambda status: status["role"] == "primary" and status["in_sync"])
        equal(nodes)


def test_a_witness_decides_and_without_it_nothing_is_acknowledged_alone() -> None:
    with TwoNodes("mwi", arbiter="witness:10.93.0.1:7900") as nodes:
        one, two = nodes.nodes
        nodes.start_witness()
        begin(nodes)
        two.kill()
        one.wait("alone", lambda status: status["gate"] == "alone")
        two.ctl("start")
        one.wait_in_sync()

        nodes.kill_witness()
        two.kill()
        held = threading.Thread(target=(one.data / "held").write_text, args=("until somebody decides",))
        held.start()
        one.wait("holding", lambda status: "the arbiter has not answered" in status["why"])
        assert held.is_alive(), "a write was acknowledged although neither peer nor arbiter has it"
        nodes.start_witness()
        held.join(60)
        assert not held.is_alive()
        two.ctl("start")
        one.wait_in_sync()
        equal(nodes)
