# SPDX-License-Identifier: Apache-2.0
"""The shell's own files and answers, without a mount or a second node."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from farmd.mirror.arbiter import Claim, Occasion, Register
from farmd.mirror.commands import Disconnect, Say
from farmd.mirror.core import Node
from farmd.mirror.events import PeerSaid
from farmd.mirror.generation import Generation
from farmd.mirror.messages import Ready, encode
from farmd.mirror.record import SLOT_BYTES, Record
from farmd.mirrord import disk
from farmd.mirrord.arbiters import FileArbiter, OperatorArbiter
from farmd.mirrord.keys import Keys, make
from farmd.mirrord.shell import Shell
from farmd.mirrord.wire import Control, Peer
from farmd.mirrord.witness import Witness
from farmd.model.errors import BadRequest, FarmError, NotFound, Refused
from farmd.model.mirrorfile import Directory, MirrorConfig, check, load, save
from farmd.model.nodes import NodeId

MIRROR = bytes(range(16))
ONE, TWO = NodeId(1), NodeId(2)
G1, G2, OTHER = Generation(1, 11), Generation(2, 22), Generation(2, 33)


def _config(**changes: object) -> MirrorConfig:
    values = {"name": "db", "mirror": MIRROR.hex(), "node": 1, "directories": (Directory("/srv/db"),)}
    values |= {"listen": "192.0.2.1:7800", "peer": "192.0.2.2:7800"} | changes
    return MirrorConfig(**values)  # type: ignore[arg-type]


def test_a_record_survives_a_torn_write(tmp_path: Path) -> None:
    path = tmp_path / "record"
    file = disk.RecordFile(path)
    first = Record(MIRROR, ONE, G1, uptodate=True)
    file.write(first)
    file.write(Record(MIRROR, ONE, G2, uptodate=True))
    file.close()
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF  # the second write went to slot 0
    path.write_bytes(data)

    assert disk.RecordFile(path).record == first


def test_a_record_with_no_good_slot_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(b"x" * 2 * SLOT_BYTES)

    with pytest.raises(FarmError, match="damaged"):
        disk.RecordFile(path)


def test_the_lock_is_held_as_long_as_any_process_has_it(tmp_path: Path) -> None:
    fd = disk.lock(tmp_path / "lock")
    inherited = os.dup(fd)
    os.close(fd)
    with pytest.raises(Refused, match="runs already"):
        disk.lock(tmp_path / "lock", wait_s=0.1)
    os.close(inherited)

    os.close(disk.lock(tmp_path / "lock", wait_s=0.1))


def test_of_two_nodes_that_claim_the_same_one_gets_it(tmp_path: Path) -> None:
    one, two = (FileArbiter(tmp_path / "register", MIRROR, node) for node in (ONE, TWO))
    disk.write_register(tmp_path / "register", MIRROR, Register(G1, ONE, 1))
    mine, theirs = Claim(G1, G2, Occasion.ALONE), Claim(G1, OTHER, Occasion.START)

    assert asyncio.run(one.claim(mine, ordered=False)).granted
    refused = asyncio.run(two.claim(theirs, ordered=True))
    assert (refused.granted, refused.register.generation) == (False, G2)
    assert asyncio.run(one.claim(mine, ordered=False)).granted, "the first answer may have been lost"


def test_the_operators_register_moves_by_an_order_and_follows_the_data(tmp_path: Path) -> None:
    arbiter = OperatorArbiter(tmp_path / "register", MIRROR, ONE)
    assert asyncio.run(arbiter.read()) == Register()
    arbiter.follow(G1)
    start = Claim(G1, G2, Occasion.START)

    assert not asyncio.run(arbiter.claim(start, ordered=False)).granted
    assert asyncio.run(arbiter.claim(start, ordered=True)).granted
    arbiter.follow(G1)
    assert asyncio.run(arbiter.read()).generation == G2, "a register never falls"


def test_a_witness_keeps_what_it_granted_and_refuses_what_is_no_question(tmp_path: Path) -> None:
    claim = {"expected": [0, 0], "new": [1, 5], "occasion": "start", "forced": False}
    question = {"mirror": MIRROR.hex(), "node": 1, "claim": claim}

    assert Witness(tmp_path).answer(question)["granted"]
    again = Witness(tmp_path).answer(question | {"claim": claim | {"new": [1, 6]}, "node": 2})
    assert (again["granted"], again["generation"], again["holder"]) == (False, [1, 5], 1)
    for wrong in ("../../x", "", 5):
        with pytest.raises(ValueError, match="identity"):
            Witness(tmp_path).answer(question | {"mirror": wrong})


def test_nothing_of_one_connection_is_taken_for_a_part_of_the_next(tmp_path: Path) -> None:
    """The model's mutant `LATE_MESSAGES`: a late DONE made a half-synced copy look whole."""
    shell = Shell(_config(), tmp_path)
    old, new = _Connection(), _Connection()
    shell.control, shell.session, shell.peer = cast(Control, new), 2, cast(Peer, SimpleNamespace(trouble=""))
    message = {"core": json.loads(encode(Ready()))}

    shell._on_message(cast(Control, old), 1, message)
    assert shell._queue.empty()
    shell._on_message(cast(Control, new), 2, message)
    assert shell._queue.get_nowait() == PeerSaid(2, Ready())

    commands = [Say(1, Ready()), Disconnect(1, "the peer owes an answer"), Say(2, Ready())]
    shell.node = cast(Node, SimpleNamespace(tick=lambda now_ns: commands))
    shell._first = True
    asyncio.run(shell._step())
    assert (new.said, new.closed) == ([message], False)


class _Connection:
    """A control connection that notes what is asked of it."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.closed = False

    def say(self, message: object) -> None:
        self.said.append(message)

    def close(self, why: str) -> None:
        self.closed = True


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../x"},
        {"node": 3},
        {"mirror": "ab"},
        {"ack": "never"},
        {"slowdown": 1.0},
        {"slowdown": -2.0},
        {"directories": (Directory("relative"),)},
        {"listen": "nowhere"},
        {"peer": "h:99999"},
        {"arbiter": "me"},
        {"arbiter": "witness:h"},
        {"arbiter": "file:x"},
    ],
)
def test_a_configuration_that_means_nothing_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        check(_config(**changes))


def test_a_configuration_is_read_as_it_was_written_and_never_written_over(tmp_path: Path) -> None:
    save(tmp_path / "db", _config())

    assert load(tmp_path / "db") == _config()
    with pytest.raises(Refused, match="exists"):
        save(tmp_path / "db", _config(ack="async"))
    with pytest.raises(NotFound):
        load(tmp_path / "other")


def test_keys_are_private_and_an_authority_is_never_replaced(tmp_path: Path) -> None:
    folders = make(tmp_path / "keys", "db")

    assert [folder.name for folder in folders] == ["node-1", "node-2", "witness"]
    assert {(folder / "node.key").stat().st_mode & 0o777 for folder in folders} == {0o600}
    with pytest.raises(Refused):
        make(tmp_path / "keys", "db")


def test_keys_of_another_node_are_told_apart_before_anybody_is_called(tmp_path: Path) -> None:
    make(tmp_path / "keys", "db")
    Keys(tmp_path / "keys/node-2").check(2)
    with pytest.raises(BadRequest) as caught:
        Keys(tmp_path / "keys/node-1").check(2)
    assert "they are for mirror-node-1, and this is mirror-node-2" in caught.value.cause
    assert "node-2" in caught.value.next_step
