# SPDX-License-Identifier: Apache-2.0
"""The binary form of messages: it comes back as it was, stays small, and survives any bytes."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farmd.membership.messages import (
    Ask,
    Fetch,
    Goodbye,
    Heard,
    Heartbeat,
    Message,
    PreVote,
    PreVoteReply,
    Promise,
    Propose,
    Start,
    decode,
    encode,
)
from farmd.membership.packing import WireError
from farmd.membership.requests import Drain, Leave, Ready, RequestId, SetWeight
from farmd.model.buckets import ALL_BUCKETS, BUCKETS, NOBODY
from farmd.model.nodes import MAX_NODES, BootId, NodeId
from farmd.model.rules import MAX_GROUPS
from farmd.model.view import Ballot, View

u32 = st.integers(0, 2**32 - 1)
nodes = st.integers(0, MAX_NODES - 1).map(NodeId)
boots = st.integers(0, 2**64 - 1).map(BootId)
ballots = st.builds(Ballot, u32, nodes, boots)
flags = st.booleans()
heard = st.lists(st.builds(Heard, nodes, u32, u32, flags), max_size=63).map(tuple)
heartbeats = st.builds(
    Heartbeat, boots, u32, ballots, flags, flags, flags, flags, flags, flags, flags, flags, flags, u32, u32, heard
)  # fmt: skip
remaining = st.lists(st.tuples(nodes, u32), max_size=64).map(tuple)
replies = st.builds(PreVoteReply, ballots, flags, ballots, ballots, remaining)
planes = st.lists(st.integers(0, ALL_BUCKETS), min_size=1, max_size=MAX_GROUPS).map(tuple)
request_ids = st.builds(RequestId, nodes, boots, u32)
groups = st.none() | st.integers(0, MAX_GROUPS - 1)
requests = (
    st.builds(Drain, nodes)
    | st.builds(Ready, nodes)
    | st.builds(SetWeight, nodes, st.integers(0, 255), groups)
    | st.just(Leave())
)


@st.composite
def views(draw: st.DrawFn) -> View:
    members = draw(st.frozensets(nodes, max_size=10))
    rng = random.Random(draw(u32))
    count = draw(st.integers(1, 3))
    owners = tuple(bytes(rng.choices([*members, NOBODY], k=BUCKETS)) for _ in range(count))
    weights = tuple(rng.randbytes(MAX_NODES) for _ in range(count))
    return View(draw(ballots), members, draw(st.frozensets(nodes, max_size=5)), weights, owners)


proposals = st.builds(Propose, views(), flags, st.lists(request_ids, max_size=64).map(tuple))
messages: st.SearchStrategy[Message] = (
    heartbeats
    | st.builds(PreVote, ballots)
    | replies
    | st.just(Fetch())
    | proposals
    | st.builds(Promise, ballots, flags, planes)
    | st.builds(Start, ballots, planes)
    | st.builds(Goodbye, boots)
    | st.builds(Ask, request_ids, requests)
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(messages)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    assert decode(encode(message)) == message


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_wire_errors(data: bytes) -> None:
    _decode_or_refuse(data)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(messages, st.data())
def test_damaged_messages_raise_nothing_but_wire_errors(message: Message, data: st.DataObject) -> None:
    damaged = bytearray(encode(message))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    _decode_or_refuse(bytes(damaged))
    _decode_or_refuse(bytes(damaged[:at]))


def _decode_or_refuse(data: bytes) -> None:
    try:
        message = decode(data)
    except WireError:
        return
    assert decode(encode(message)) == message


def test_a_heartbeat_of_64_nodes_fits_into_one_frame() -> None:
    entries = tuple(Heard(NodeId(node), 2**32 - 1, 2**32 - 1, True) for node in range(63))
    ballot = Ballot(2**32 - 1, NodeId(63), BootId(2**64 - 1))
    message = Heartbeat(BootId(1), 1, ballot, True, True, True, True, True, True, True, True, True, 1, 1, entries)
    assert len(encode(message)) < 1400 - 44


def test_the_largest_view_fits_into_one_datagram() -> None:
    rng = random.Random(1)
    members = [NodeId(node) for node in range(64)]
    owners = tuple(bytes(rng.choices(members, k=BUCKETS)) for _ in range(16))
    weights = tuple(rng.randbytes(64) for _ in range(16))
    view = View(Ballot(1, NodeId(0), BootId(1)), frozenset(members), frozenset(), weights, owners)
    assert len(encode(Propose(view, True, ()))) < 60_000


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(bytes(50_000_000))
    head = encode(Start(Ballot(1, NodeId(0), BootId(1)), (0,)))[:14]
    with pytest.raises(WireError, match="whole number of groups"):
        decode(head + bomb)


def test_a_view_whose_buckets_belong_to_strangers_is_refused() -> None:
    view = View(
        Ballot(1, NodeId(0), BootId(1)), frozenset({NodeId(1)}), frozenset(), (bytes(64),), (bytes([2]) * 4096,)
    )
    with pytest.raises(WireError, match="not members"):
        decode(encode(Propose(view, False, ())))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff", b"\x04extra", b"\x08\x00"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)
