# SPDX-License-Identifier: Apache-2.0
"""The files of a mirror: whatever prefix of the writes reached the disk, what is read back is safe."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farmd.mirror import journal
from farmd.mirror.arbiter import Claim, Occasion, Register, decode_register, encode_register
from farmd.mirror.generation import MAX_HISTORY, Cause, Era, Generation
from farmd.mirror.messages import Done, Enter, Hello, Plan, Ready, Resigned, UpToDate, decode, encode
from farmd.mirror.record import MAX_BASES, SLOT_BYTES, Record, RecordDamaged, decode_slots, encode_slot
from farmd.mirror.tracking import Admission, Limits, Tracker
from farmd.mirror.zones import BLOCK_BYTES, ZONE_BYTES, Cover, Kind, Line, Mark, TreeMark, Zone, touched
from farmd.model.nodes import NodeId

MIRROR = bytes(range(16))
U64 = st.integers(0, (1 << 64) - 1)
GENERATIONS = st.builds(Generation, U64, U64)
ERAS = st.builds(
    Era, GENERATIONS, st.sampled_from([NodeId(0), NodeId(63)]), st.integers(0, 1 << 40), st.sampled_from(Cause)
)
RECORDS = st.builds(
    Record,
    mirror=st.just(MIRROR),
    node=st.just(NodeId(5)),
    generation=GENERATIONS,
    uptodate=st.booleans(),
    was_primary=st.booleans(),
    peer_stale=st.booleans(),
    claim=st.none() | st.builds(Claim, GENERATIONS, GENERATIONS, st.sampled_from(Occasion), st.booleans()),
    bases=st.frozensets(GENERATIONS, max_size=MAX_BASES),
    history=st.lists(ERAS, max_size=MAX_HISTORY).map(tuple),
)


@given(RECORDS, RECORDS, st.integers(0, SLOT_BYTES))
def test_a_torn_record_is_the_one_before_or_the_new_one(old: Record, new: Record, torn_at: int) -> None:
    disk = bytearray(2 * SLOT_BYTES)
    disk[SLOT_BYTES:] = encode_slot(old, 1)
    disk[:torn_at] = encode_slot(new, 2)[:torn_at]

    assert decode_slots(bytes(disk)) in ((old, 1), (new, 2))


def test_a_record_that_is_nowhere_whole_is_an_error_and_nothing_is_nothing() -> None:
    slot = bytearray(encode_slot(Record(MIRROR, NodeId(1)), 1))
    slot[20] ^= 1

    assert decode_slots(bytes(2 * SLOT_BYTES)) is None
    with pytest.raises(RecordDamaged, match="checksum"):
        decode_slots(bytes(slot) + bytes(SLOT_BYTES))


def test_the_largest_record_fits_in_a_slot() -> None:
    era = Era(Generation(1 << 63, 1 << 63), NodeId(63), 1 << 40, Cause.FORCED)
    bases = frozenset(Generation(number, 1) for number in range(MAX_BASES))
    record = Record(MIRROR, NodeId(1), bases=bases, history=(era,) * MAX_HISTORY)

    assert len(encode_slot(record, 1)) == SLOT_BYTES


def test_a_record_with_too_many_bases_forgets_the_oldest_which_is_safe() -> None:
    bases = frozenset(Generation(number, 1) for number in range(MAX_BASES + 5))
    found = decode_slots(encode_slot(Record(MIRROR, NodeId(1), bases=bases), 1) + bytes(SLOT_BYTES))

    assert found is not None
    assert found[0].bases == {Generation(number, 1) for number in range(5, MAX_BASES + 5)}


@given(GENERATIONS, st.integers(0, 255), U64, st.integers(0, 400))
def test_a_register_is_read_back_or_refused(generation: Generation, holder: int, moves: int, flipped: int) -> None:
    register = Register(generation, NodeId(holder), moves)
    data = bytearray(encode_register(MIRROR, register))
    assert decode_register(MIRROR, bytes(data)) == register

    data[flipped % len(data)] ^= 0x40
    with pytest.raises(ValueError, match=r"checksum|version|mirror"):
        decode_register(MIRROR, bytes(data))
    with pytest.raises(ValueError, match="another mirror"):
        decode_register(bytes(16), encode_register(MIRROR, register))


# ---- the journal ----

HANDLES = [b"a", b"bb", b"c" * 128]
ZONES = st.builds(Zone, st.sampled_from([Kind.DATA]), st.sampled_from(HANDLES), st.integers(0, 70_000)) | st.builds(
    Zone, st.sampled_from([Kind.ENTRIES, Kind.META, Kind.WHOLE]), st.sampled_from(HANDLES), st.just(0)
)


@st.composite
def marks(draw: st.DrawFn) -> Line:
    zone = draw(ZONES)
    hot = draw(st.booleans())
    return Mark(zone, zone.full if hot else draw(st.integers(0, zone.full)), hot)


LINES = st.lists(marks() | st.builds(TreeMark, st.none() | st.sampled_from(HANDLES)), max_size=40)


def _applied(*batches: list[Line]) -> Cover:
    cover = Cover()
    for batch in batches:
        cover.apply(batch)
    return cover


@settings(max_examples=40, deadline=None)
@given(LINES, st.lists(LINES, max_size=4), st.data())
def test_every_prefix_of_the_writes_gives_a_cover_of_what_was_in_use(
    snapshot: list[Line], batches: list[list[Line]], data: st.DataObject
) -> None:
    before = _applied(snapshot)
    blocks, place = journal.begin(MIRROR, 1, Cover())
    first = [*blocks, *journal.append(MIRROR, place, before.lines())[0]]
    blocks, place = journal.begin(MIRROR, 2, before)
    writes = list(blocks)
    ends = [len(writes)]
    for batch in batches:
        more, place = journal.append(MIRROR, place, batch)
        writes += more
        ends.append(len(writes))
    halves = [bytearray(64 * journal.BLOCK_BYTES), bytearray(64 * journal.BLOCK_BYTES)]
    for block in first:
        _put(halves, block)
    whole = data.draw(st.integers(0, len(writes)))
    for block in writes[:whole]:
        _put(halves, block)
    if whole < len(writes):
        _put(halves, writes[whole], data.draw(st.integers(0, 200)))

    cover, _ = journal.read(MIRROR, [journal.blocks_of(bytes(half)) for half in halves])

    # What was relied on: all batches whose last block, and every block before, was written.
    durable = [batch for batch, end in zip(batches, ends[1:], strict=True) if end <= whole]
    beyond = batches[: len(durable) + 1]
    if whole < ends[0]:
        assert cover == before
    elif whole == len(writes):
        assert cover == _applied(before.lines(), *durable)
    else:  # A torn block whose rest is zeros anyway is whole: then the batch begun is there too.
        prefixes = [_applied(before.lines(), *durable, beyond[-1][:count]) for count in range(len(beyond[-1]) + 1)]
        assert cover in prefixes


def _put(halves: list[bytearray], block: journal.Block, length: int = journal.BLOCK_BYTES) -> None:
    start = block.place.number * journal.BLOCK_BYTES
    halves[block.place.generation % 2][start : start + length] = block.data[:length]


def test_a_journal_of_another_mirror_or_of_nothing_is_not_trusted() -> None:
    blocks, _ = journal.begin(bytes(16), 1, Cover())
    half = blocks[0].data

    with pytest.raises(journal.JournalDamaged):
        journal.read(MIRROR, [journal.blocks_of(each) for each in (half, bytes(journal.BLOCK_BYTES))])
    with pytest.raises(journal.JournalDamaged):
        journal.read(MIRROR, [journal.blocks_of(b""), journal.blocks_of(b"")])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(1, 255)), max_size=60), st.data())
def test_a_tracker_never_lets_a_block_be_written_that_the_durable_journal_lacks(
    acts: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Random writes, sends, settlings and losses; the journal is durable only as far as it was confirmed."""
    tracker, durable, waiting = Tracker(Limits(4, 12)), Cover(), list[list[Line]]()
    differs: dict[Zone, int] = {}
    for seq, (act, number, mask) in enumerate(acts, start=1):
        zone = Zone(Kind.DATA, b"f%d" % (number % 3), number)
        lines = tracker.drain()
        if lines:
            waiting.append(lines)
        if act <= 2 and tracker.admit({zone: mask}) is Admission.READY:
            assert durable.has(zone, mask), "written before the journal had it"
            tracker.wrote(seq, {zone: mask}, forwarded=act == 2 and not tracker.is_unsent(zone, mask))
            differs[zone] = differs.get(zone, 0) | mask
        elif act == 3 and waiting:
            durable.apply(waiting[0])
            tracker.logged(waiting.pop(0))
        elif act == 4:
            work = tracker.next_unsent()
            if work is not None and work[0].kind is Kind.DATA:
                tracker.sent(seq, *work)
            if data.draw(st.booleans()):
                tracker.settle(seq)
                differs = {zone: mask for zone, mask in differs.items() if tracker.is_unsent(zone, mask)}
        elif act == 5:
            tracker.peer_lost()
        tracker.check()
        for each, blocks in differs.items():
            assert durable.has(each, blocks), "may differ, and the durable journal does not say so"


# ---- messages ----

MESSAGES = st.one_of(
    st.builds(
        Hello,
        mirror=st.just(MIRROR),
        node=st.just(NodeId(3)),
        generation=GENERATIONS,
        history=st.lists(ERAS, max_size=3).map(tuple),
        uptodate=st.booleans(),
        primary=st.booleans(),
        claiming=st.booleans(),
        log_usable=st.booleans(),
    ),
    st.builds(Enter, GENERATIONS, st.sampled_from(Plan), GENERATIONS),
    st.just(Ready()),
    st.builds(Done, GENERATIONS, st.lists(ERAS, max_size=3).map(tuple)),
    st.builds(UpToDate, GENERATIONS),
    st.builds(Resigned, GENERATIONS, st.booleans()),
)


@given(MESSAGES)
def test_a_message_is_read_as_it_was_said(message: object) -> None:
    assert decode(encode(message)) == message  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_nonsense_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode(data)


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"ready","more":1}',
        '{"type":"uptodate","generation":[1,-1]}',
        '{"type":"resigned","generation":[1,1],"handover":1}',
        '{"type":"uptodate","generation":[1,1,1]}',
        '["ready"]',
    ],
)
def test_a_message_with_a_wrong_field_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode(text.encode())


# ---- zones ----


def test_a_write_touches_the_blocks_that_it_touches() -> None:
    assert touched(b"f", 0, 1) == {Zone(Kind.DATA, b"f", 0): 1}
    assert touched(b"f", BLOCK_BYTES - 1, 2) == {Zone(Kind.DATA, b"f", 0): 0b11}
    assert touched(b"f", ZONE_BYTES - 1, 2) == {Zone(Kind.DATA, b"f", 0): 1 << 255, Zone(Kind.DATA, b"f", 1): 1}
    assert touched(b"f", 0, 2 * ZONE_BYTES) == {Zone(Kind.DATA, b"f", n): (1 << 256) - 1 for n in (0, 1)}
    assert touched(b"f", 5, 0) == {}


def test_memory_is_bounded_and_nothing_is_forgotten() -> None:
    tracker = Tracker(Limits(hot_zones=8, max_zones=32))
    written = []
    for number in range(200):
        zone = Zone(Kind.DATA, b"f%d" % (number % 4), number)
        while tracker.admit({zone: 1}) is not Admission.READY:
            tracker.logged(tracker.drain())
        tracker.wrote(0, {zone: 1}, forwarded=False)
        written.append(zone)
        tracker.logged(tracker.drain())

    assert tracker.zones <= 32 + 8
    assert [zone for zone in written if not tracker.cover().has(zone, 1) or not tracker.is_unsent(zone, 1)] == []


def test_records_are_values() -> None:
    record = Record(MIRROR, NodeId(1))

    assert dataclasses.replace(record, uptodate=True) != record
