# SPDX-License-Identifier: Apache-2.0
"""The key file: what is written can be read, what is wrong is named with its line, and no secret is shown."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from farmd.membership.keys import KeyRing
from farmd.model.errors import ConfigError

PATH = Path("farm.key")
HASH = "hash-key: " + base64.b64encode(bytes(16)).decode()
KEY = base64.b64encode(bytes(range(32))).decode()


def parse(*lines: str) -> KeyRing:
    return KeyRing.parse("\n".join(lines), PATH)


def test_a_new_ring_can_be_written_and_read() -> None:
    ring = KeyRing.new()
    assert KeyRing.parse(ring.render(), PATH) == ring
    assert ring != KeyRing.new()
    assert len(ring.keys[ring.active]) == 32
    assert len(ring.hash_key) == 16


def test_several_keys_with_one_active() -> None:
    ring = parse("# comment", "", HASH, "active: 2", f"key 1: {KEY}", f"key 2:{KEY}")
    assert ring.active == 2
    assert set(ring.keys) == {1, 2}


def test_a_single_key_is_active_by_itself() -> None:
    assert parse(HASH, f"key 7: {KEY}").active == 7


def test_a_ring_shows_no_secret() -> None:
    ring = parse(HASH, f"key 1: {KEY}")
    assert repr(ring) == "KeyRing(active=1)"


@pytest.mark.parametrize(
    ("lines", "line", "cause"),
    [
        ([f"key 1: {KEY}"], 0, "no hash-key"),
        ([HASH], 0, "no key"),
        ([HASH, "active: 3", f"key 1: {KEY}"], 2, "active key 3 is not in the file"),
        ([HASH, f"key 1: {KEY}", f"key 2: {KEY}"], 0, "which key is active"),
        ([HASH, f"key 1: {KEY}", f"key 1: {KEY}"], 3, "a second key 1"),
        ([HASH, HASH, f"key 1: {KEY}"], 2, "a second hash-key"),
        ([HASH, "active: 1", "active: 1", f"key 1: {KEY}"], 3, "a second active"),
        ([HASH, "key 1: not base64!"], 2, "not base64"),
        ([HASH, "key 1: AAAA"], 2, "has 3 bytes instead of 32"),
        (["hash-key: AAAA", f"key 1: {KEY}"], 1, "has 3 bytes instead of 16"),
        ([HASH, f"key 0: {KEY}"], 2, "from 1 to 255"),
        ([HASH, f"key 256: {KEY}"], 2, "from 1 to 255"),
        ([HASH, f"key one: {KEY}"], 2, "from 1 to 255"),
        ([HASH, "active: yes", f"key 1: {KEY}"], 2, "from 1 to 255"),
        ([HASH, "nonsense"], 2, "not `name: value`"),
        ([HASH, "colour: red"], 2, "unknown"),
    ],
)
def test_mistakes_are_named_with_their_line(lines: list[str], line: int, cause: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*lines)
    problem = caught.value.problems[0]
    assert (problem.line, problem.file) == (line, "farm.key")
    assert cause in problem.cause
    assert KEY not in str(caught.value)
