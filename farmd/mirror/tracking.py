# SPDX-License-Identifier: Apache-2.0
"""Dirty tracking of one node: the activity log and the bitmaps, as one map from zones to blocks.

This is the reference of what the engine in C does on every operation, and what the model checks. One invariant
carries it:

    **Whatever may differ between the two copies after any crash is covered by the durable journal.**

- *Before use.* A write is admitted only when its blocks are covered durably. The first write to a zone marks the
  whole zone `hot`, so one journal write covers the next thousands of writes there.
- *Unsent* blocks are those that the peer must still be sent. *Unsettled* ones were written or sent, and are not yet
  known to be durable on both nodes. A peer that is lost makes everything unsettled unsent.
- *Release.* Only settled blocks leave the cover: `settle(seq)` follows a flush of both nodes that covers every frame
  up to `seq`. A zone whose exact blocks are known may go from `hot` to these blocks at any time.
- *Bounded.* At most `hot_zones` are hot; a write to another one waits for room. With more than `max_zones` zones, files
  become single zones, at last the whole tree does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from farmd.mirror.zones import Cover, Kind, Line, Mark, TreeMark, Zone


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a node tracks. 1024 hot zones are 16 GiB to compare at most after a primary crashed."""

    hot_zones: int = 1024
    max_zones: int = 65_536


class Admission(Enum):
    """Whether a write may go on."""

    READY = "ready"
    """Its blocks are covered; they stay so until `wrote` is called."""
    WAIT = "wait"
    """Lines that it needs are on their way to the journal (see `drain`)."""
    FULL = "full"
    """No room for another hot zone: flush both nodes, `settle`, ask again."""


@dataclass(slots=True, eq=False)
class _Entry:
    """One tracked zone. `durable` and `hot` are what the journal surely holds, `issued` the line on its way there."""

    durable: int = 0
    hot: bool = False
    issued: Mark | None = None
    unsent: int = 0
    unsettled: int = 0
    seq: int = 0
    pins: int = 0

    @property
    def counts_hot(self) -> bool:
        return self.issued.hot if self.issued else self.hot

    def own(self, zone: Zone) -> int:
        """The blocks that lines of this very zone cover, or will."""
        issued = self.issued.mask if self.issued else 0
        return zone.full if self.counts_hot or self.hot else self.durable | issued


class Tracker:
    """The dirty tracking of one node."""

    def __init__(self, limits: Limits, cover: Cover | None = None) -> None:
        """Begin with what the journal holds after a crash: all of it may differ, so all of it is unsent."""
        self._limits = limits
        self._zones: dict[Zone, _Entry] = {}
        self._cover = Cover()
        self._cover.apply(cover.lines() if cover else ())
        self._tree = self._cover.tree
        self._tree_sent: list[tuple[int, bytes | None]] = []
        self._lines: list[Line] = []
        self._hot = 0
        for mark in self._cover.marks.values():
            unsent = mark.zone.full if mark.hot else mark.mask
            self._zones[mark.zone] = _Entry(mark.mask, mark.hot, unsent=unsent)
            self._hot += mark.hot

    # ---- writing ----

    def admit(self, touches: Mapping[Zone, int]) -> Admission:
        """May blocks be written? READY keeps their zones covered until `wrote`; WAIT and FULL promise nothing."""
        missing = [zone for zone, mask in touches.items() if not self._covered(zone, mask)]
        if not missing:
            for zone in touches:
                self._entry(zone).pins += 1
            return Admission.READY
        fresh = [zone for zone in missing if not self._waits(zone)]
        if self._hot + len(fresh) > self._limits.hot_zones:
            self._make_room(min(self._limits.hot_zones * 3 // 4, self._limits.hot_zones - len(fresh)))
        if self._hot + len(fresh) > self._limits.hot_zones:
            return Admission.FULL
        for zone in fresh:
            self._issue(self._entry(zone), Mark(zone, zone.full, True))
        self._coarsen()
        return Admission.WAIT

    def abandon(self, touches: Mapping[Zone, int]) -> None:
        """An admitted write was not done."""
        for zone in touches:
            self._entry(zone).pins -= 1

    def drain(self) -> list[Line]:
        """Lines for the journal, in order; report with `logged` when they and all before them are durable."""
        lines, self._lines = self._lines, []
        return lines

    def logged(self, lines: Iterable[Line]) -> None:
        """These very lines, as `drain` gave them, are durable."""
        for line in lines:
            entry = self._zones.get(line.zone) if isinstance(line, Mark) else None
            # A line that was overtaken by a later one of its zone proves nothing any more.
            if entry is not None and isinstance(line, Mark) and entry.issued is line:
                entry.durable, entry.hot, entry.issued = line.mask, line.hot, None

    def wrote(self, seq: int, touches: Mapping[Zone, int], *, forwarded: bool) -> None:
        """An admitted write is done here and, if `forwarded`, stands in the stream as frame `seq`."""
        for zone, mask in touches.items():
            entry = self._entry(zone)
            entry.pins -= 1
            if forwarded:
                entry.unsettled |= mask
                entry.seq = max(entry.seq, seq)
            else:
                entry.unsent |= mask

    # ---- the peer ----

    def is_unsent(self, zone: Zone, mask: int) -> bool:
        """Whether the peer must still be sent any of these blocks: a write there may travel with them."""
        if self._tree is not None and zone.handle > self._tree:
            return True
        own, whole = self._zones.get(zone), self._zones.get(zone.whole)
        return bool((own and own.unsent & mask) or (whole and whole.unsent and zone.kind is not Kind.ENTRIES))

    def next_unsent(self) -> tuple[Zone, int] | None:
        """What to send first: names before attributes before contents, each in handle order."""
        unsent = [(zone, entry.unsent) for zone, entry in self._zones.items() if entry.unsent]
        return min(unsent, default=None)

    def is_tracked(self, zone: Zone) -> bool:
        """Whether anything is known of this zone itself."""
        return zone in self._zones

    @property
    def tree(self) -> bytes | None:
        """Everything above this handle must still be compared; None: nothing but the zones."""
        return self._tree

    def sent(self, seq: int, zone: Zone, mask: int) -> None:
        """The blocks were read and put into the stream as frame `seq`, with their writers locked out meanwhile.

        Blocks without a line of their own are covered by a coarser one, and settle with that.
        """
        entry = self._entry(zone)
        entry.unsent &= ~mask
        entry.unsettled |= mask & entry.own(zone)
        entry.seq = max(entry.seq, seq)

    def compared(self, seq: int, above: bytes | None) -> None:
        """The walk of the tree has sent everything up to `above` (None: all); in the journal after `settle(seq)`."""
        self._tree = above
        self._tree_sent.append((seq, above))

    def compare_all(self) -> None:
        """Nothing is known of the peer's copy: all of the tree may differ."""
        self._tree, self._tree_sent = b"", []
        self._issue_tree(b"")

    def suspect(self, lines: Iterable[Line]) -> None:
        """The peer's own cover, or one read from a journal: there the copies may differ as well."""
        for line in lines:
            if isinstance(line, Mark):
                self._spread(line.zone, line.zone.full if line.hot else line.mask)
            elif not isinstance(line, TreeMark) or line.above is None:
                continue
            elif self._cover.tree is None or line.above < self._cover.tree:
                self._tree, self._tree_sent = line.above, []
                self._issue_tree(line.above)
        self._coarsen()

    def peer_lost(self) -> None:
        """Whatever is not known to be durable there must be sent again."""
        for entry in self._zones.values():
            entry.unsent |= entry.unsettled
            entry.unsettled = 0
        self._tree, self._tree_sent = self._cover.tree, []

    def settle(self, seq: int) -> None:
        """Both nodes flushed after every frame up to `seq` was applied: what these frames carried is equal."""
        for entry in self._zones.values():
            if entry.unsettled and entry.seq <= seq:
                entry.unsettled = 0
        while self._tree_sent and self._tree_sent[0][0] <= seq:
            self._issue_tree(self._tree_sent.pop(0)[1])

    def tidy(self) -> None:
        """Take what is settled out of the journal: before a planned change of roles, and now and then."""
        self._make_room(-1)

    # ---- questions ----

    @property
    def clean(self) -> bool:
        """Nothing must be sent."""
        return self._tree is None and not any(entry.unsent for entry in self._zones.values())

    @property
    def settled(self) -> bool:
        """Nothing must be sent, and what was sent is durable on both nodes."""
        return self.clean and not self._tree_sent and not any(entry.unsettled for entry in self._zones.values())

    @property
    def hot_zones(self) -> int:
        """How many zones are hot."""
        return self._hot

    @property
    def zones(self) -> int:
        """How many zones are remembered."""
        return len(self._zones)

    @property
    def unsent_blocks(self) -> int:
        """How many blocks the peer must be sent, the tree's not counted."""
        return sum(entry.unsent.bit_count() for entry in self._zones.values())

    def cover(self) -> Cover:
        """What the journal says when all lines issued are durable: the snapshot that a new generation begins with."""
        copy = Cover()
        copy.apply(self._cover.lines())
        return copy

    def check(self) -> None:
        """Raise AssertionError if memory contradicts the invariant (for tests and the model)."""
        for zone, entry in self._zones.items():
            assert self._cover.has(zone, entry.unsent | entry.unsettled) or not (entry.unsent | entry.unsettled), (
                f"{zone} has blocks that the journal does not cover"
            )
            assert entry.pins >= 0, f"{zone} was written more often than admitted"
        assert self._hot == sum(entry.counts_hot for entry in self._zones.values()), "hot zones miscounted"

    # ---- inside ----

    def _entry(self, zone: Zone) -> _Entry:
        return self._zones.setdefault(zone, _Entry())

    def _covered(self, zone: Zone, mask: int) -> bool:
        """By its own durable line: a coarser one may be settled and taken away while the write is under way."""
        entry = self._zones.get(zone)
        return entry is not None and (entry.hot or entry.durable & mask == mask)

    def _waits(self, zone: Zone) -> bool:
        entry = self._zones.get(zone)
        return entry is not None and entry.issued is not None and entry.issued.hot

    def _issue(self, entry: _Entry, line: Mark) -> None:
        """Send a line to the journal. What it takes away is gone at once, what it adds counts when it is `logged`."""
        self._hot += line.hot - entry.counts_hot
        entry.durable &= line.mask
        entry.hot = entry.hot and line.hot
        entry.issued = line
        self._lines.append(line)
        self._cover.apply((line,))

    def _issue_tree(self, above: bytes | None) -> None:
        line = TreeMark(above)
        self._lines.append(line)
        self._cover.apply((line,))

    def _make_room(self, goal: int) -> None:
        """Let hot zones go: settled ones leave the journal, others shrink to the blocks that the peer lacks."""
        for zone, entry in list(self._zones.items()):
            if self._hot <= goal:
                break
            if self._may_go(entry):
                self._shrink(zone, entry)

    def _may_go(self, entry: _Entry) -> bool:
        return not (entry.pins or entry.issued or entry.unsettled) and (entry.hot or entry.durable != entry.unsent)

    def _shrink(self, zone: Zone, entry: _Entry) -> None:
        self._issue(entry, Mark(zone, entry.unsent, False))
        if not entry.unsent:
            del self._zones[zone]

    def _spread(self, zone: Zone, mask: int) -> None:
        entry = self._entry(zone)
        entry.unsent |= mask
        if not entry.counts_hot:
            needed = entry.unsent | entry.unsettled | entry.durable | (entry.issued.mask if entry.issued else 0)
            self._issue(entry, Mark(zone, needed, False))

    def _coarsen(self) -> None:
        """Too many zones: the file with the most becomes one zone; with too many files, the tree does."""
        while len(self._zones) > self._limits.max_zones:
            files: dict[bytes, list[Zone]] = {}
            for zone, entry in self._zones.items():
                if zone.kind in (Kind.META, Kind.DATA) and not (entry.pins or entry.issued or entry.unsettled):
                    files.setdefault(zone.handle, []).append(zone)
            handle = max(files, key=lambda each: len(files[each]), default=None)
            if handle is None or len(files[handle]) < 2:
                self._coarsen_to_tree()
                return
            # The coarse line first: every prefix of the journal covers as much as before.
            self._spread(Zone(Kind.WHOLE, handle), 1)
            for zone in files[handle]:
                self._drop(zone)

    def _coarsen_to_tree(self) -> None:
        self.compare_all()
        for zone, entry in list(self._zones.items()):
            if not (entry.pins or entry.issued or entry.unsettled):
                self._drop(zone)

    def _drop(self, zone: Zone) -> None:
        entry = self._zones[zone]
        entry.unsent = 0
        self._shrink(zone, entry)
