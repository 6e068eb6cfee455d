# SPDX-License-Identifier: Apache-2.0
"""Datagrams: authentic, fresh, in one session, or dropped under a named reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farmd.membership.keys import KeyRing
from farmd.membership.messages import Fetch, Goodbye, Message
from farmd.membership.wire import HEADER, Channel, Dropped, DropReason, Frame, Opened
from farmd.model.nodes import BootId, NodeId

A, B, C = NodeId(0), NodeId(1), NodeId(2)
MEMBERS = frozenset({A, B, C})
RING = KeyRing({1: bytes(32), 2: bytes(range(32))}, 1, bytes(16))


def channel(me: NodeId, boot: int, ring: KeyRing = RING, farm: str = "web") -> Channel:
    return Channel(ring, farm, me, BootId(boot), MEMBERS)


def dropped(result: Opened | Dropped) -> DropReason:
    assert isinstance(result, Dropped)
    return result.reason


def meet(receiver: Channel, sender: Channel, now_ns: int = 0) -> None:
    """Let `receiver` challenge `sender`, as it happens on the first datagram."""
    challenge = receiver.open(sender.seal(Fetch()), now_ns)
    assert isinstance(challenge, Dropped)
    assert challenge.reason is DropReason.NEW_BOOT
    assert challenge.reply
    answer = sender.open(challenge.reply, now_ns)
    assert isinstance(answer, Dropped)
    assert answer.reason is DropReason.CHALLENGE
    assert answer.reply
    assert dropped(receiver.open(answer.reply, now_ns)) is DropReason.ANSWER


def opened(receiver: Channel, datagram: bytes) -> Message:
    result = receiver.open(datagram, 0)
    assert isinstance(result, Opened)
    return result.message


def test_after_a_challenge_messages_arrive() -> None:
    a, b = channel(A, 11), channel(B, 22)
    meet(b, a)
    result = b.open(a.seal(Goodbye(BootId(5))), 0)
    assert result == Opened(A, BootId(11), Goodbye(BootId(5)))


def test_the_second_copy_of_a_datagram_is_a_duplicate_and_so_is_an_older_one() -> None:
    a, b = channel(A, 11), channel(B, 22)
    meet(b, a)
    first, second = a.seal(Fetch()), a.seal(Fetch())
    opened(b, second)
    assert dropped(b.open(second, 0)) is DropReason.DUPLICATE
    assert dropped(b.open(first, 0)) is DropReason.DUPLICATE
    assert b.counters[DropReason.DUPLICATE] == 2


def test_one_datagram_serves_several_peers() -> None:
    a, b, c = channel(A, 11), channel(B, 22), channel(C, 33)
    meet(b, a)
    meet(c, a)
    datagram = a.seal(Fetch())
    assert opened(b, datagram) == opened(c, datagram) == Fetch()


def test_an_old_session_cannot_be_replayed() -> None:
    old, b = channel(A, 11), channel(B, 22)
    meet(b, old)
    recorded = old.seal(Goodbye(BootId(11)))
    new = channel(A, 12)
    meet(b, new)
    replay = b.open(recorded, 0)
    assert isinstance(replay, Dropped)
    assert replay.reason is DropReason.NEW_BOOT
    assert replay.reply
    silence = new.open(replay.reply, 0)
    assert isinstance(silence, Dropped)
    assert silence.reply is None, "the new incarnation does not answer for the old one"
    assert opened(b, new.seal(Fetch())) == Fetch(), "and its own session goes on"


def test_an_answer_counts_once_and_in_time() -> None:
    a, b = channel(A, 11), channel(B, 22)
    challenge = b.open(a.seal(Fetch()), 0)
    assert isinstance(challenge, Dropped)
    assert challenge.reply
    answer = a.open(challenge.reply, 0)
    assert isinstance(answer, Dropped)
    assert answer.reply
    b.open(answer.reply, 3_000_000_000)
    assert dropped(b.open(a.seal(Fetch()), 3_000_000_000)) is DropReason.NEW_BOOT


def test_a_restarted_receiver_challenges_again() -> None:
    a, b = channel(A, 11), channel(B, 22)
    meet(b, a)
    restarted = channel(B, 23)
    meet(restarted, a)
    assert opened(restarted, a.seal(Fetch())) == Fetch()


def test_rotation_in_three_sweeps_loses_nothing() -> None:
    only_old = KeyRing({1: RING.keys[1]}, 1, bytes(16))
    both_new = KeyRing(dict(RING.keys), 2, bytes(16))
    only_new = KeyRing({2: RING.keys[2]}, 2, bytes(16))
    for ring_a, ring_b in ((only_old, RING), (RING, both_new), (both_new, only_new), (only_new, only_new)):
        a, b = channel(A, 11, ring_a), channel(B, 22, ring_b)
        meet(b, a)
        assert opened(b, a.seal(Fetch())) == Fetch()


def test_other_keys_farms_and_senders_are_strangers() -> None:
    b = channel(B, 22)
    other_key = KeyRing({1: bytes([7]) * 32}, 1, bytes(16))
    unknown_key = KeyRing({9: bytes(32)}, 9, bytes(16))
    assert dropped(b.open(channel(A, 11, other_key).seal(Fetch()), 0)) is DropReason.FORGED
    assert dropped(b.open(channel(A, 11, unknown_key).seal(Fetch()), 0)) is DropReason.UNKNOWN_KEY
    assert dropped(b.open(channel(A, 11, farm="shop").seal(Fetch()), 0)) is DropReason.FOREIGN
    assert dropped(b.open(channel(NodeId(9), 11).seal(Fetch()), 0)) is DropReason.UNKNOWN_SENDER
    assert dropped(b.open(b.seal(Fetch()), 0)) is DropReason.UNKNOWN_SENDER, "our own echo"
    assert dropped(b.open(b"", 0)) is DropReason.SHORT


@pytest.mark.parametrize("at", [*range(HEADER.size), HEADER.size, -1])
def test_every_byte_is_authentic(at: int) -> None:
    a, b = channel(A, 11), channel(B, 22)
    meet(b, a)
    damaged = bytearray(a.seal(Fetch()))
    damaged[at] ^= 1
    result = b.open(bytes(damaged), 0)
    assert isinstance(result, Dropped)
    assert result.reply is None
    assert opened(b, a.seal(Fetch())) == Fetch(), "a forgery does not use up sequence numbers"


def test_an_authentic_message_of_another_version_is_malformed() -> None:
    a, b = channel(A, 11), channel(B, 22)
    meet(b, a)
    assert dropped(b.open(a._seal(Frame.MESSAGE, b"\xee"), 0)) is DropReason.MALFORMED


def test_nonces_never_repeat_within_an_incarnation() -> None:
    a = channel(A, 11)
    sequence = [HEADER.unpack_from(a.seal(Fetch()))[-1] for _ in range(100)]
    assert sequence == sorted(set(sequence))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.binary(max_size=120))
def test_random_bytes_are_dropped(data: bytes) -> None:
    assert isinstance(channel(B, 22).open(data, 0), Dropped)
