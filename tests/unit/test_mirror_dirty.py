# SPDX-License-Identifier: Apache-2.0
"""The log of dirty zones, driven as the data path drives it: after any crash its journal covers every difference."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from farmd.mirror import journal
from farmd.mirror.dirty import Batch, Bounds, DirtyLog
from farmd.mirror.journal import BLOCK_BYTES, JournalDamaged
from farmd.mirror.journalfile import HALF_BYTES, JournalFile, clear, load
from farmd.mirror.zones import Cover, Kind, Line, Mark, Named, TreeMark, Zone, place

MIRROR = bytes(range(16))
FOLDERS = [b"folder-%d" % number for number in range(2)]
LARGE = [Zone(Kind.DATA, b"large-%d" % file, number) for file in range(2) for number in range(2)]
WHOLE = [Zone(Kind.WHOLE, b"large-%d" % file) for file in range(2)]


def small(folder: bytes, file: int) -> Zone:
    return Zone(Kind.DATA, folder + b"/small-%d" % file)


class DataPath:
    """The data path: tells zones once in a generation, and changes nothing before the journal has the lines."""

    def __init__(self, rng: random.Random, log: DirtyLog, spoil: Callable[[Line], bool] = lambda _: False) -> None:
        self.rng, self.log, self.spoil = rng, log, spoil
        self.paired = False
        self.number = 0
        self.told: set[tuple[bool, Zone, int]] = set()
        self.differs: dict[Zone, int] = {}
        self.journal = Cover()
        self.taken = Batch()
        self.homes = {small(folder, file): folder for folder in FOLDERS for file in range(3)}
        self.homes |= {place(folder, b"name-%d" % name): folder for folder in FOLDERS for name in range(3)}
        self.write()

    def write(self) -> None:
        """Lines reach the disk one by one; the power may go after each."""
        if self.log.begin_anew:
            self.journal = self.log.cover()
            self.check()
        for line in self.log.drain():
            if not self.spoil(line):
                self.journal.apply((line,))
            self.check()

    def covers(self, cover: Cover, zone: Zone, mask: int) -> bool:
        if cover.tree is not None or cover.has(zone, mask):
            return True
        return zone in self.homes and cover.has(Zone(Kind.ENTRIES, self.homes[zone]), 1)

    def check(self) -> None:
        for zone, mask in self.differs.items():
            assert self.covers(self.journal, zone, mask), f"{zone} {mask:x} is not covered"

    def coarse(self, zone: Zone) -> None:
        if (True, zone, 0) not in self.told:
            self.told.add((True, zone, 0))
            self.event()
            self.log.coarse(zone)
            self.write()

    def fine(self, zone: Zone, mask: int) -> None:
        if not self.paired and (zone.kind is Kind.PLACE or (False, zone, mask) not in self.told):
            self.told.add((False, zone, mask))
            self.event()
            self.log.fine(zone, mask)

    def event(self) -> None:
        self.number += 1
        self.log.reached(self.number)

    def change(self) -> None:
        zone = self.rng.choice([*LARGE, *WHOLE, *self.homes])
        mask = 1 << self.rng.randrange(4) if zone.kind is Kind.DATA else 1
        self.coarse(Zone(Kind.ENTRIES, self.homes[zone]) if zone in self.homes else zone)
        if zone not in WHOLE:
            self.fine(zone, mask)
        self.differs[zone] = self.differs.get(zone, 0) | mask
        self.check()

    def cool(self) -> None:
        self.told.clear()
        self.log.cool()
        self.write()

    def checkpoint(self) -> None:
        """Both disks have what was told before; changes go on until the answer is here."""
        number, self.differs, self.told = self.number, {}, set()
        for _ in range(self.rng.randrange(3)):
            self.change()
        self.log.settled(number)
        self.write()

    def lose(self) -> None:
        self.paired = False
        self.taken = Batch()
        self.told.clear()
        self.event()
        self.log.peer_lost()
        self.write()

    def round(self) -> None:
        """Part of a failback: what is taken is made equal, then durable on both, or the connection breaks."""
        self.told.clear()
        self.log.cool()
        self.taken.add(self.log.take())
        self.write()
        batch = self.taken
        taken = Cover({z: Mark(z, batch.fine.get(z, 0), z in batch.suspect) for z in batch.fine | batch.suspect})
        sent = {zone: mask for zone, mask in self.differs.items() if self.covers(taken, zone, mask)}
        assert self.log.everything or sent == self.differs, "memory knows less than the journal"
        before, self.differs = self.differs, {}
        for _ in range(self.rng.randrange(3)):
            self.change()
        since = self.differs
        self.differs = {zone: before.get(zone, 0) | since.get(zone, 0) for zone in before | since}
        what = self.rng.choice(("broken", "under way", "durable"))
        if what == "broken":
            self.taken = Batch()
            self.log.give_back()
        elif what == "durable" and not self.log.everything:
            self.differs = since
            self.taken = Batch()
            self.log.sent()
        self.write()

    def attach(self) -> None:
        self.round()
        self.log.cool()
        self.log.take()
        self.write()
        self.paired = True
        self.told.clear()
        self.event()
        self.log.attached()
        self.checkpoint()


@pytest.mark.parametrize("seed", range(30))
def test_whatever_differs_is_covered_at_every_write(seed: int) -> None:
    rng = random.Random(seed)
    path = DataPath(rng, DirtyLog(Bounds(zones=rng.choice((6, 1000)))))
    for _ in range(100):
        if rng.random() < 0.75:
            path.change()
        elif path.paired:
            rng.choice((path.checkpoint, path.lose))()
        else:
            rng.choice((path.cool, path.round, path.attach))()
        path.check()


def test_a_line_that_is_not_written_is_noticed() -> None:
    def forget(line: Line) -> bool:
        return isinstance(line, Mark) and line.zone.handle == b"large-0" and line.hot

    path = DataPath(random.Random(1), DirtyLog(Bounds()), forget)

    def go_on() -> None:
        for _ in range(200):
            path.change()

    with pytest.raises(AssertionError, match="is not covered"):
        go_on()


def test_what_a_crash_left_is_suspect_and_exact_blocks_are_not() -> None:
    exact, hot = Mark(LARGE[0], 0b101, False), Mark(LARGE[1], 0b1, True)
    folder = Mark(Zone(Kind.ENTRIES, FOLDERS[0]), 0, True)
    cover = Cover()
    cover.apply((exact, hot, folder, Named(b"large-0", FOLDERS[0], b"data")))
    log = DirtyLog(Bounds(), cover)
    batch = log.take()
    assert batch.fine == {LARGE[0]: 0b101}
    assert batch.suspect == {LARGE[1]: LARGE[1].full, folder.zone: 1}
    assert batch.names == {b"large-0": (FOLDERS[0], b"data")}


def test_too_much_becomes_everything_until_a_checkpoint() -> None:
    log = DirtyLog(Bounds(zones=3))
    for number in range(10):
        log.reached(number)
        log.coarse(Zone(Kind.META, b"file-%d" % number))
    assert log.everything
    assert log.begin_anew
    assert log.cover().tree == b""
    assert log.cover().marks == {}
    log.reached(20)
    log.attached()
    log.settled(20)
    assert log.drain() == [TreeMark(None)]
    assert log.cover().tree is None


def test_what_is_inherited_is_everything_for_the_journal_alone() -> None:
    log = DirtyLog(Bounds(), Cover())
    log.inherit()
    log.coarse(LARGE[0])
    assert log.cover().tree == b""
    assert not log.everything
    log.flushed()
    assert TreeMark(None) in log.drain()
    assert log.cover().tree is None
    assert LARGE[0] in log.cover().marks


# ---- the file ----


def test_the_journal_keeps_names_and_places(tmp_path: Path) -> None:
    cover = Cover()
    name = bytes(range(1, 256)).replace(b"/", b"x")
    cover.apply([Mark(place(b"p" * 132, name), 1, False), Mark(LARGE[0], 3, False), Named(b"large-0", b"parent", name)])
    clear(tmp_path / "journal", MIRROR, cover)
    assert load(tmp_path / "journal", MIRROR) == cover


def test_a_journal_of_another_mirror_or_none_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(JournalDamaged):
        load(tmp_path / "journal", MIRROR)
    clear(tmp_path / "journal", MIRROR)
    with pytest.raises(JournalDamaged):
        load(tmp_path / "journal", bytes(16))
    clear(tmp_path / "journal", bytes(16))
    assert load(tmp_path / "journal", bytes(16)) == Cover()


def test_a_snapshot_follows_when_a_half_is_full(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "journal", MIRROR)
    file.begin(Cover())
    count = 0
    while not file.wants_snapshot:
        assert file.append([Mark(Zone(Kind.META, b"h%d" % count), 1, False)])
        count += 1
    assert file.begin(file.read())
    file.close()
    assert len(load(tmp_path / "journal", MIRROR).marks) == count


def test_only_what_counts_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion reads the journal: neither room that was never used nor what an older half says may cost time."""
    file = JournalFile(tmp_path / "journal", MIRROR)
    file.begin(Cover())
    for number in range(200):
        file.append([Mark(Zone(Kind.META, b"h%d" % number), 1, False)])
    wanted = Cover()
    wanted.apply([Mark(Zone(Kind.META, b"last"), 1, True)])
    file.begin(wanted)
    file.close()
    reads: list[int] = []

    def pread(fd: int, length: int, offset: int) -> bytes:
        data = original(fd, length, offset)
        reads.append(len(data))
        return data

    original = os.pread
    monkeypatch.setattr(os, "pread", pread)
    assert load(tmp_path / "journal", MIRROR) == wanted
    assert sum(reads) <= 3 * 64 * 1024


@pytest.mark.parametrize("torn", [0, 1, 2])
def test_a_snapshot_that_is_not_whole_leaves_the_older_half_in_force(tmp_path: Path, torn: int) -> None:
    """The newer half is looked at first; it does not count before its last block is there."""
    file = JournalFile(tmp_path / "journal", MIRROR)
    older, newer = Cover(), Cover()
    older.apply(Mark(Zone(Kind.META, b"h%d" % number), 1, False) for number in range(300))
    newer.apply(Mark(Zone(Kind.META, b"n%d" % number), 1, False) for number in range(600))
    file.begin(older)
    file.begin(newer)
    blocks = journal.begin(MIRROR, 2, newer)[0]
    assert len(blocks) > torn
    with (tmp_path / "journal").open("r+b") as raw:
        raw.seek(torn * BLOCK_BYTES + 2048)  # generation 2 is in half 0
        raw.write(b"spoiled!" * 64)
    assert file.read() == older
    assert file.begin(newer)
    file.close()
    assert load(tmp_path / "journal", MIRROR) == newer


@pytest.mark.parametrize("cut", range(12))
def test_any_prefix_of_the_writes_is_a_journal(cut: int) -> None:
    """As if the power went between two sectors: what is whole is believed, and what follows is not."""
    halves = [bytearray(b"?" * (HALF_BYTES // 64)) for _ in range(2)]
    blocks, at = journal.begin(MIRROR, 1, Cover())
    for number in range(4):
        more, at = journal.append(MIRROR, at, [Mark(Zone(Kind.META, b"h%d" % number), 1, True)])
        blocks += more
    data = b"".join(block.data for block in blocks)
    kept = data[: cut * 2048]
    halves[1][: len(kept)] = kept
    if len(kept) < BLOCK_BYTES:
        with pytest.raises(JournalDamaged):
            journal.read(MIRROR, [journal.blocks_of(bytes(half)) for half in halves])
        return
    cover, _ = journal.read(MIRROR, [journal.blocks_of(bytes(half)) for half in halves])
    assert len(cover.marks) == min(len(kept) // BLOCK_BYTES - 1, 4)
