# SPDX-License-Identifier: Apache-2.0
"""The log of dirty zones of one node: events of the data path in, lines for the journal out. No files, no clocks.

One invariant carries it: **whatever may differ between the two copies after any crash is covered by the lines that the
journal holds durably**, as long as every change waits for the events that say so (`cext/mirror/dirty.c`).

- *Coarse* events (a change waits for them) make a zone `hot`: after a crash nobody knows what in it changed, so all of
  it is suspect. A directory that is hot speaks for its names and for the small files in it.
- *Fine* events say what changed exactly while the peer is away. They are in memory only, until `cool` puts them into
  the journal and then takes away the hot marks that covered them.
- *Release.* `settled` (a checkpoint of both nodes) and `sent` (a round of a failback that both disks have) are the only
  ways out of the log.
- *Bounded.* With more than `zones` zones the log says "everything": one line, and a comparison of all of the tree.

Why not `tracking.Tracker`: there each write is admitted; here the data path does that by itself, once for each zone
between two checkpoints, and the log only hears of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from farmd.mirror.zones import Cover, Kind, Line, Mark, Named, TreeMark, Zone

_ONE_BIT = frozenset({Kind.META, Kind.WHOLE, Kind.PLACE})


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is remembered. Beyond `hot` zones somebody should `cool` the log or make a checkpoint."""

    zones: int = 131_072
    hot: int = 1024


@dataclass(slots=True)
class Batch:
    """What one round of a failback must make equal: masks of blocks by zone."""

    fine: dict[Zone, int] = field(default_factory=dict)
    """These changed: send them."""
    suspect: dict[Zone, int] = field(default_factory=dict)
    """These may have changed: compare, then send."""
    names: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)

    def add(self, other: Batch) -> None:
        """Take its blocks in as well."""
        for kept, taken in ((self.fine, other.fine), (self.suspect, other.suspect)):
            for zone, mask in taken.items():
                kept[zone] = kept.get(zone, 0) | mask
        self.names |= {handle: where for handle, where in other.names.items() if handle not in self.names}


class DirtyLog:
    """See the module. Events have rising numbers; the log remembers for each zone the last one that named it."""

    def __init__(self, bounds: Bounds, cover: Cover | None = None) -> None:
        """Begin, or go on after a crash with what the journal holds: all of that is suspect."""
        self._bounds = bounds
        self._paired = False
        self._inherited = False
        self._number = 0
        self._everything: int | None = None
        self._fine: dict[Zone, int] = {}
        self._suspect: dict[Zone, int] = {}
        self._hot: set[Zone] = set()
        self._at: dict[Zone, int] = {}
        self._unlogged: set[Zone] = set()
        self._sending = Batch()
        self._names: dict[bytes, tuple[bytes, bytes]] = {}
        self._lines: list[Line] = []
        self._journal = Cover()
        self.begin_anew = False
        """The journal must begin with a snapshot of `cover` instead of the lines."""
        if cover is not None:
            self._recover(cover)

    def _recover(self, cover: Cover) -> None:
        self._journal.apply(cover.lines())
        self._names = dict(self._journal.names)
        if cover.tree is not None:
            self._everything = 0
        for mark in cover.marks.values():
            # Blocks of a file that were logged one by one are known; anything else is looked at.
            known = mark.zone.kind is Kind.DATA and not mark.hot
            (self._fine if known else self._suspect)[mark.zone] = mark.mask if known else mark.zone.full
            self._at[mark.zone] = 0

    # ---- events ----

    def reached(self, number: int) -> None:
        """The events from here on, until the next call, are the one of this number."""
        self._number = max(number, self._number)

    def coarse(self, zone: Zone, where: tuple[bytes, bytes] | None = None) -> None:
        """Somebody is about to change something in `zone`, and waits until the lines from here are durable."""
        if self._skips():
            return
        self._note(zone, where)
        self._hot.add(zone)
        if not self._paired and zone.kind in _ONE_BIT:
            self._fine[zone] = 1
        mark = self._journal.marks.get(zone)
        if mark is None or not mark.hot:
            self._issue(Mark(zone, self._known(zone), True))

    def fine(self, zone: Zone, mask: int, where: tuple[bytes, bytes] | None = None) -> None:
        """Blocks of `zone` change that the peer lacks; something hot covers them."""
        if self._skips():
            return
        self._note(zone, where)
        self._fine[zone] = self._fine.get(zone, 0) | mask
        self._unlogged.add(zone)

    def suspect(self, zone: Zone, mask: int) -> None:
        """The copies may differ here, says somebody else's log."""
        if self._skips():
            return
        self._note(zone, None)
        self._suspect[zone] = self._suspect.get(zone, 0) | mask
        self._issue(Mark(zone, self._known(zone), True))

    def compare_everything(self) -> None:
        """Nothing is known any more: a comparison of all of the tree, and until then one line."""
        self._everything = self._number
        self._forget_zones()
        self.begin_anew = True

    # ---- the peer ----

    def attached(self) -> None:
        """Both trees were equal at this event, and every later change goes to both."""
        self._paired = True

    def peer_lost(self) -> None:
        """What was on its way, or in the peer's page cache, may be missing there."""
        self._paired = False
        self.give_back()
        for zone in self._hot:
            self._suspect[zone] = zone.full

    def settled(self, number: int) -> None:
        """Both disks have whatever the events up to `number` announced, and were equal before."""
        if self._everything is not None and self._everything <= number:
            self._everything = None
            self._inherited = False
            self._lines.append(TreeMark(None))
            self._journal.tree = None
        self._sending = Batch()
        for zone in [zone for zone, at in self._at.items() if at <= number]:
            self._drop(zone)

    def inherit(self) -> None:
        """Until `flushed`, a power loss would take what the last primary has sent: then all must be compared."""
        self._inherited = True
        self.begin_anew = True

    def flushed(self) -> None:
        """What was inherited is durable here."""
        if self._inherited and self._everything is None:
            self._lines.append(TreeMark(None))
            self._journal.tree = None
        self._inherited = False

    # ---- a failback ----

    def take(self) -> Batch:
        """What is known to differ, for a round; to be called where `cool` is. The journal keeps it until `sent`."""
        batch = Batch(self._fine, self._suspect, dict(self._names))
        self._sending.add(Batch(batch.fine, batch.suspect))
        self._fine, self._suspect = {}, {}
        return batch

    def sent(self) -> None:
        """Both disks have all that was taken so far; what changed since stays."""
        done, self._sending = self._sending, Batch()
        for zone in done.fine.keys() | done.suspect.keys():
            self._settle_down(zone)

    def give_back(self) -> None:
        """All that was taken is still to do."""
        failed, self._sending = self._sending, Batch()
        Batch(self._fine, self._suspect).add(failed)

    # ---- the journal ----

    def cool(self) -> None:
        """Between two changes, and every zone is told again from here: put what is known exactly for what is hot."""
        for zone in self._unlogged - self._hot:
            self._settle_down(zone)
        cooled, self._hot = self._hot, set()
        for zone in cooled:
            self._settle_down(zone)
        self._unlogged.clear()

    def drain(self) -> list[Line]:
        """Lines for the journal, in order."""
        lines, self._lines = self._lines, []
        return lines

    def cover(self) -> Cover:
        """What a snapshot of the journal says; it stands for all lines so far."""
        self.begin_anew = False
        self._lines = []
        used = {zone.handle for zone in self._at}
        self._names = {handle: where for handle, where in self._names.items() if handle in used}
        unknown = self._inherited or self._everything is not None
        copy = Cover(tree=b"" if unknown else None, names=dict(self._names))
        for zone in self._at:
            mark = Mark(zone, self._known(zone), self._is_suspect(zone))
            if mark.mask or mark.hot:
                copy.marks[zone] = mark
        self._journal = Cover()
        self._journal.apply(copy.lines())
        return copy

    # ---- questions ----

    @property
    def everything(self) -> bool:
        """Only a comparison of all of the tree helps."""
        return self._everything is not None

    @property
    def hot_zones(self) -> int:
        """How many zones a crash would make suspect now."""
        return len(self._hot)

    @property
    def quiet(self) -> bool:
        """Nothing is in memory that the journal does not say exactly, and nothing waits for a checkpoint."""
        return not self._unlogged and not (self._paired and (self._at or self.everything))

    @property
    def wants_room(self) -> bool:
        """It is time to `cool`, or for a checkpoint."""
        return len(self._hot) > self._bounds.hot * 3 // 4

    def has_little(self, zones: int, blocks: int) -> bool:
        """At most so much is known to differ, and nothing is only suspect."""
        if self._suspect or len(self._fine) > zones:
            return False
        return sum(mask.bit_count() for zone, mask in self._fine.items() if zone.kind is Kind.DATA) <= blocks

    def counts(self) -> tuple[int, int]:
        """Bytes of contents that differ or may, and inodes and names that have something to send; for people."""
        zones = set().union(self._fine, self._suspect, self._sending.fine, self._sending.suspect)
        blocks = sum(self._known(zone).bit_count() for zone in zones if zone.kind is Kind.DATA)
        return blocks, len({zone.handle for zone in zones})

    # ---- inside ----

    def _skips(self) -> bool:
        """While alone with "everything" there is nothing to add; otherwise make room first."""
        if self._everything is not None and not self._paired:
            self._everything = self._number
            return True
        if len(self._at) >= self._bounds.zones:
            self.compare_everything()
            return not self._paired
        return False

    def _note(self, zone: Zone, where: tuple[bytes, bytes] | None) -> None:
        self._at[zone] = self._number
        if where is not None and self._names.get(zone.handle) != where:
            self._names[zone.handle] = where
            self._lines.append(Named(zone.handle, *where))

    def _known(self, zone: Zone) -> int:
        return (
            self._fine.get(zone, 0)
            | self._suspect.get(zone, 0)
            | self._sending.fine.get(zone, 0)
            | self._sending.suspect.get(zone, 0)
        )

    def _is_suspect(self, zone: Zone) -> bool:
        return zone in self._hot or zone in self._suspect or zone in self._sending.suspect

    def _settle_down(self, zone: Zone) -> None:
        """Let the journal say of `zone` what is known now, and nothing if that is nothing."""
        mark = Mark(zone, self._known(zone), self._is_suspect(zone))
        if mark.mask or mark.hot:
            if self._journal.marks.get(zone) != mark:
                self._issue(mark)
        else:
            self._drop(zone)

    def _drop(self, zone: Zone) -> None:
        del self._at[zone]
        self._fine.pop(zone, None)
        self._suspect.pop(zone, None)
        self._hot.discard(zone)
        self._unlogged.discard(zone)
        if zone in self._journal.marks:
            self._issue(Mark(zone, 0, False))
        if not self._at:
            self._names.clear()

    def _forget_zones(self) -> None:
        self._fine, self._suspect, self._sending = {}, {}, Batch()
        self._hot.clear()
        self._at.clear()
        self._unlogged.clear()
        self._names.clear()
        self._lines.clear()

    def _issue(self, mark: Mark) -> None:
        self._lines.append(mark)
        self._journal.apply((mark,))
