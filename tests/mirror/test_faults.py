# SPDX-License-Identifier: Apache-2.0
"""Faults against the real processes: what was acknowledged as durable stays, nobody hangs, and the error helps."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farmd.model.errors import FarmError
from tests.mirror.nodes import Failed, MirrorNode, TwoNodes, begin, equal
from tests.mirror.proxy import Proxy
from tests.mirror.writing import lines, until, writing

pytestmark = [pytest.mark.root, pytest.mark.lab]

MB = 1 << 20
SEED = int(os.environ.get("FARMD_MIRROR_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


def engine_of(node: MirrorNode) -> int:
    pid = node.status()["engine_pid"]
    assert pid is not None
    return int(pid)


# ---- processes ----


def test_the_primary_without_its_data_path_steps_down_and_the_other_takes_over() -> None:
    with TwoNodes("fpe") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        with writing(one) as writer:
            writer.goes_on()
            os.kill(engine_of(one), signal.SIGKILL)
            until("the application hears of it", lambda: writer.error is not None)
        one.wait("told of it", lambda status: "data path ended" in status["trouble"])
        assert one.status()["role"] != "primary"
        two.ctl("promote")
        assert lines(two.data) >= writer.acknowledged
        two.wait_in_sync()
        equal(nodes, two)


def test_the_primary_without_its_process_lets_the_other_take_over() -> None:
    with TwoNodes("fpm") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        with writing(one) as writer:
            writer.goes_on()
            main = one.pids()[0]
            os.kill(main, signal.SIGKILL)
            until("the application hears of it", lambda: writer.error is not None)
        two.wait("alone", lambda status: not status["peer"]["connected"])
        two.ctl("promote")
        assert lines(two.data) >= writer.acknowledged
        one.ctl("start")
        equal(nodes, two)


@pytest.mark.parametrize("which", ["process", "data path"])
def test_the_secondary_loses_a_process_and_the_application_writes_on(which: str) -> None:
    with TwoNodes("fsp") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        with writing(one) as writer:
            writer.goes_on()
            if which == "process":
                os.kill(two.pids()[0], signal.SIGKILL)
                one.wait("alone", lambda status: status["gate"] == "alone")
                two.ctl("start")
            else:
                for pid in two.pids()[1:]:
                    os.kill(pid, signal.SIGKILL)
            writer.goes_on()
            one.wait_in_sync()
            writer.goes_on()
            assert writer.error is None
        equal(nodes, one)


def test_killed_in_the_middle_of_a_promotion_there_is_one_primary_with_everything() -> None:
    """Whenever the promoted node dies, one of the two can be promoted afterwards, and only with all of the data."""
    dice = random.Random(SEED)
    with TwoNodes("fkp") as nodes:
        begin(nodes)
        primary, other = nodes.nodes
        for _ in range(6):
            with writing(primary) as writer:
                writer.goes_on(3)
                primary.kill()
            other.wait("alone", lambda status: not status["peer"]["connected"])
            api = other.api()

            def promote(api: object = api) -> None:
                with contextlib.suppress(FarmError, OSError):
                    api.order_mirror("promote", {"accept": "nothing"})  # type: ignore[attr-defined]

            order = threading.Thread(target=promote)
            order.start()
            time.sleep(dice.uniform(0.0, 0.12))
            other.kill()
            order.join()

            for node in nodes.nodes:
                node.ctl("start")
            one_of = [node for node in (primary, other) if _can_lead(node)]
            assert len(one_of) == 1, f"seed {SEED}: {[node.number for node in one_of]} were promoted"
            leader = one_of[0]
            assert lines(leader.data) >= writer.acknowledged, f"seed {SEED}"
            equal(nodes, leader)
            (leader.data / "ledger").unlink()
            primary, other = leader, (nodes.two if leader is nodes.one else nodes.one)


def _can_lead(node: MirrorNode) -> bool:
    """Promoted, or refused with a word that helps."""
    try:
        node.ctl("promote")
    except Failed as error:
        if error.code != 8:
            raise
        return False
    return True


# ---- power ----


def test_what_was_synced_survives_the_loss_of_both_nodes_power_on_either() -> None:
    with TwoNodes("fpw", disks={1: "256M", 2: "256M"}) as nodes:
        begin(nodes)
        primary, other = nodes.nodes
        for _ in range(3):
            with writing(primary) as writer:
                writer.goes_on(30)
                nodes.cut()
                for node in nodes.nodes:
                    node.kill()
            for node in nodes.nodes:
                node.lose_power()
                node.power_on()
            nodes.mend()
            other.ctl("start")
            other.ctl("promote")
            assert lines(other.data) >= writer.acknowledged
            (other.data / "ledger").unlink()
            primary.ctl("start")
            other.wait_in_sync()
            primary, other = other, primary
        equal(nodes, primary)


@pytest.mark.parametrize("victim", ["source", "target"])
def test_power_lost_in_the_middle_of_a_resync(victim: str) -> None:
    """A half-synced copy leads nobody; what was acknowledged alone is there when its node is back."""
    dice = random.Random(SEED)
    with TwoNodes("fpr", disks={1: "512M", 2: "512M"}) as nodes:
        one, two = nodes.nodes
        begin(nodes)
        for _ in range(3):
            two.kill()
            one.wait("alone", lambda status: status["gate"] == "alone")
            for number in range(20):
                (one.data / f"file{number}").write_bytes(os.urandom(4 * MB))
            with writing(one) as writer:
                writer.goes_on()
                two.ctl("start")
                time.sleep(dice.uniform(0.0, 0.6))
                nodes.cut()
                if victim == "source":
                    one.kill()
            if victim == "source":
                one.lose_power()
                assert two.refused("promote") or two.status()["uptodate"]
                one.power_on()
                one.ctl("start")
                nodes.mend()
                one.ctl("promote")
                assert lines(one.data) >= writer.acknowledged, f"seed {SEED}"
            else:
                two.lose_power()
                two.power_on()
                two.ctl("start")
                nodes.mend()
            equal(nodes, one)
            (one.data / "ledger").unlink()


# ---- the network ----


@pytest.mark.parametrize("deaf", [1, 2])
def test_a_one_way_cut_leaves_one_primary(deaf: int) -> None:
    with TwoNodes("fow", peer_timeout_s=2.0) as nodes:
        one, two = nodes.nodes
        begin(nodes)
        with writing(one) as writer:
            writer.goes_on()
            nodes.deafen(nodes.nodes[deaf - 1])
            one.wait("alone", lambda status: status["gate"] == "alone")
            two.wait("knows that it lost it", lambda status: not status["peer"]["connected"])
            writer.goes_on()
            text = two.refused("promote")
            assert "stale" in text
            assert "node 1" in text
            nodes.mend()
            one.wait_in_sync()
            writer.goes_on()
            assert writer.error is None
            assert writer.longest_s < 30
        equal(nodes, one)


@contextlib.contextmanager
def through_a_proxy(tag: str, *, tls: bool = True, peer_timeout_s: float = 5.0) -> Iterator[tuple[TwoNodes, Proxy]]:
    """Node 1 reaches node 2 over a bad wire: its stream and its passes. Node 2 calls directly."""
    with contextlib.ExitStack() as stack:
        nodes = TwoNodes(tag, tls=tls, peers={1: "127.0.0.1:7801"}, peer_timeout_s=peer_timeout_s)
        stack.enter_context(nodes)
        proxy = stack.enter_context(Proxy(nodes.one.netns, 7801, "10.93.0.2", 7800))
        begin(nodes)
        yield nodes, proxy


def test_a_slow_peer_slows_the_application_down_and_loses_nothing() -> None:
    with through_a_proxy("fsl") as (nodes, proxy):
        one, two = nodes.nodes
        proxy.order("delay 0.05")
        began = time.monotonic()
        for number in range(5):
            (one.data / f"slow{number}").write_bytes(b"x" * 1000)
        assert time.monotonic() - began >= 5 * 0.1
        proxy.order("rate 2000000")
        (one.data / "big").write_bytes(os.urandom(8 * MB))
        assert one.status()["in_sync"], "a slow peer is not a lost one"
        assert (two.data / "big").stat().st_size == 8 * MB
        proxy.order("go")
        equal(nodes, one)


def test_a_wire_on_which_nothing_moves_holds_the_application_up_no_longer_than_is_configured() -> None:
    with through_a_proxy("fst", peer_timeout_s=2.0) as (nodes, proxy):
        one, _ = nodes.nodes
        with writing(one) as writer:
            writer.goes_on()
            proxy.order("stall")
            # The control connection is well, only the stream is not: it has a silence of its own.
            one.wait("alone", lambda status: status["gate"] == "alone")
            writer.goes_on()
            assert writer.longest_s < 20
            proxy.order("go")
            one.wait_in_sync()
            writer.goes_on()
            assert writer.error is None
        equal(nodes, one)


def test_a_frozen_peer_holds_the_application_up_no_longer_than_is_configured() -> None:
    with TwoNodes("ffz", peer_timeout_s=2.0) as nodes:
        one, two = nodes.nodes
        begin(nodes)
        with writing(one) as writer:
            writer.goes_on()
            frozen = two.pids()
            try:
                for pid in frozen:
                    os.kill(pid, signal.SIGSTOP)
                one.wait("alone", lambda status: status["gate"] == "alone")
                writer.goes_on()
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)
            assert writer.longest_s < 20
            one.wait_in_sync()
            writer.goes_on()
            assert writer.error is None
        equal(nodes, one)


def test_without_peer_and_arbiter_operations_fail_in_time_and_status_says_why() -> None:
    with TwoNodes("fna", arbiter="witness:10.93.0.1:7900", peer_timeout_s=2.0, hold_s=4.0) as nodes:
        one, two = nodes.nodes
        nodes.start_witness()
        begin(nodes)
        nodes.kill_witness()
        with writing(one) as writer:
            writer.goes_on()
            nodes.cut()
            began = time.monotonic()
            until("the application hears of it", lambda: writer.error is not None)
            assert time.monotonic() - began < 30
        status = one.wait("told of it", lambda status: "nor the arbiter answered" in str(status["events"]))
        assert "witness" in status["trouble"]
        nodes.start_witness()
        nodes.mend()
        until("one can be promoted", lambda: _can_lead(two))
        assert lines(two.data) >= writer.acknowledged
        equal(nodes, two)


@pytest.mark.parametrize("tls", [True, False])
def test_a_flipped_bit_ends_the_stream_and_not_the_data(tls: bool) -> None:
    with through_a_proxy("ffl", tls=tls) as (nodes, proxy):
        one, _ = nodes.nodes
        with writing(one) as writer:
            for _ in range(3):
                writer.goes_on()
                proxy.order("flip 1")
                (one.data / "big").write_bytes(os.urandom(MB))
                one.wait("told of it", lambda status: "lost" in str(status["events"]))
                writer.goes_on()
                one.wait_in_sync()
            assert writer.error is None
        equal(nodes, one)


def test_flipped_bits_in_a_resync_only_delay_it() -> None:
    with through_a_proxy("ffr", tls=False) as (nodes, proxy):
        one, two = nodes.nodes
        two.kill()
        one.wait("alone", lambda status: status["gate"] == "alone")
        for number in range(8):
            (one.data / f"file{number}").write_bytes(os.urandom(4 * MB))
        proxy.order("flip 2")
        two.ctl("start")
        equal(nodes, one)


def test_a_node_with_the_other_nodes_keys_does_not_start_and_says_why() -> None:
    with TwoNodes("fwk") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        two.ctl("stop")
        for file in (nodes.base / "keys/node-1").iterdir():
            (nodes.base / "keys/node-2" / file.name).write_bytes(file.read_bytes())
        with pytest.raises(Failed) as caught:
            two.ctl("start")
        assert "they are for mirror-node-1, and this is mirror-node-2" in caught.value.text
        assert one.status()["role"] == "primary"


# ---- full disks ----


def fill(folder: Path, name: str) -> int:
    """Write until an error; its errno."""
    try:
        with (folder / name).open("wb") as file:
            while True:
                file.write(os.urandom(MB))
                file.flush()
    except OSError as error:
        return error.errno or 0


def test_the_primarys_full_disk_is_the_applications_error_and_nothing_else() -> None:
    with TwoNodes("ffp", disks={1: "64M", 2: "128M"}) as nodes:
        one, _ = nodes.nodes
        begin(nodes)
        assert fill(one.data, "large") == errno.ENOSPC
        assert one.status()["role"] == "primary"
        (one.data / "large").unlink()
        (one.data / "small").write_text("there is room again")
        equal(nodes, one)


def test_the_secondarys_full_disk_ends_its_part_and_is_told() -> None:
    with TwoNodes("ffs", disks={1: "256M", 2: "64M"}) as nodes:
        one, two = nodes.nodes
        begin(nodes)
        (one.data / "large").write_bytes(os.urandom(100 * MB))
        assert (one.data / "large").stat().st_size == 100 * MB
        one.wait("told of it", lambda status: "space" in str(status["trouble"]).lower())
        assert two.refused("promote")
        (one.data / "large").unlink()
        one.wait_in_sync()
        (one.data / "small").write_text("there is room again")
        equal(nodes, one)


def test_a_full_disk_does_not_stop_a_failover() -> None:
    """A node's own files are on the disk that is full."""
    with TwoNodes("fff", disks={1: "64M", 2: "64M"}) as nodes:
        one, two = nodes.nodes
        begin(nodes)
        with writing(one) as writer:
            writer.goes_on()
            filler = two.home / "filler"
            assert fill(two.home, "filler") == errno.ENOSPC
            one.kill()
        two.wait("alone", lambda status: not status["peer"]["connected"])
        two.ctl("promote")
        assert lines(two.data) >= writer.acknowledged
        assert fill(two.data, "more") == errno.ENOSPC
        filler.unlink()
        (two.data / "more").unlink()
        one.ctl("start")
        equal(nodes, two)


def test_no_process_is_left_behind_by_a_stop() -> None:
    with TwoNodes("fnl") as nodes:
        begin(nodes)
        pids = [pid for node in nodes.nodes for pid in node.pids()]
        for node in nodes.nodes:
            node.ctl("stop")
        until("all processes have ended", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_cable_that_is_pulled_in_a_failback_from_the_log() -> None:
    """Nothing comes back, not even an error; the application goes on, and the next failback takes up where it can."""
    with TwoNodes("fcb") as nodes:
        one, two = nodes.nodes
        begin(nodes)
        time.sleep(1)  # until the log is empty: both disks have the first copy
        two.kill()
        one.wait("alone", lambda status: status["gate"] == "alone")
        for number in range(100):
            (one.data / f"f{number}").write_bytes(os.urandom(MB))
        one.ctl("resync", "--limit", "10")
        two.ctl("start")
        one.wait("failing back", lambda status: (status["resync"] or {}).get("what") == "failback")
        nodes.cut()
        one.wait("not failing back", lambda status: status["resync"] is None and not status["peer"]["connected"])
        (one.data / "after").write_text("written while the cable is out")
        nodes.mend()
        one.ctl("resync", "--limit", "0")
        assert one.wait_in_sync()["last_resync"]["plan"] == "log"
        equal(nodes)
