# SPDX-License-Identifier: Apache-2.0
"""Faults that aim at one safeguard each, because chance seldom finds their moment. Each begins with a pair in sync."""

from __future__ import annotations

from collections.abc import Callable

from farmd.mirror.acks import Gate
from farmd.mirror.commands import Command, Flush, Persist, Say, SendCover
from farmd.mirror.messages import Done, Message, Ready
from farmd.mirror.orders import Check, Demote, Promote, Resync
from farmd.mirror.state import Link, Phase
from tests.sim.mirror.disk import CELLS
from tests.sim.mirror.network import Wire
from tests.sim.mirror.storm import STRUCK, Condition, History, Script
from tests.sim.mirror.world import FlushEnd, Host


def draw_aim(history: History) -> Script:
    """One of them."""
    return history.random.choice(AIMS)(history)


def switch(history: History) -> Script:
    """The primary's shell stalls behind DONE while the stream breaks, and then it dies (rule 6: first the switch)."""
    world = history.world
    first, second = _pair(history)
    world.notice(second)
    yield _said(first, Done)
    first.stalled = True
    world.break_off(second.me, (Wire.STREAM,), keep=1.0)
    yield _later(history, 0.03)
    yield lambda: second.phase is Phase.SECONDARY
    world.crash(first, power=history.random.random() < 0.5)
    yield from _take_over(history, second)


def overtaken(history: History) -> Script:
    """The stream breaks, DONE arrives, and the primary dies: what it acknowledged alone was in the stream."""
    world = history.world
    first, second = _pair(history)
    yield from _leave_behind(history, first, second)
    yield lambda: first.core is not None and first.core.link is Link.CLOSING
    # Of what is under way over the stream nothing arrives; messages do.
    world.break_off(second.me, (Wire.STREAM,), keep=0.3)
    yield _later(history, 0.03)
    world.crash(first, power=True)
    world.notice(second)
    yield from _take_over(history, second)


def relay(history: History) -> Script:
    """The primary's processes die, the other node takes over, brings it back, and loses power (rule 4)."""
    world = history.world
    first, second = _pair(history)
    world.lazy = True
    # Some writes first, so that the other node has zones that it did not flush.
    yield _later(history, 0.03)
    world.crash(first, power=False)
    world.notice(second)
    world.busy = False
    yield from _take_over(history, second)
    world.power_on(first)
    yield lambda: first.phase is Phase.SECONDARY and history.roles() is not None
    world.crash(second, power=True)
    yield from _take_over(history, first)


def power_cut(history: History) -> Script:
    """Both lose power just after the target is up to date, and it is the target that serves next (rule 6)."""
    world = history.world
    first, second = _pair(history)
    world.lazy = True
    yield from _leave_behind(history, first, second)
    yield _trusted(second)
    yield _later(history, 0.3)
    for host in history.hosts:
        world.crash(host, power=True)
    world.power_on(second)
    yield lambda: second.phase is Phase.WAITING
    yield from _take_over(history, second)


def broken_beginning(history: History) -> Script:
    """A primary that crashed in the middle of writes comes back, and the connection breaks at once (rules 5 and 6)."""
    world = history.world
    first, second = _pair(history)
    world.break_off(second.me, (Wire.STREAM,))
    yield _later(history, 0.05)
    world.crash(first, power=False)
    world.notice(second)
    world.busy = False
    yield from _take_over(history, second)
    world.power_on(first)
    yield _executed(first, lambda command: isinstance(command, SendCover))
    yield _later(history, 0.5)
    world.break_off(second.me, keep=0.0)
    yield _later(history, 0.5)
    if history.random.random() < 0.5:
        world.crash(first, power=False)
        world.power_on(first)


def half_synced(history: History) -> Script:
    """A resync is interrupted in its middle, and the target is asked to serve (rule 5)."""
    world = history.world
    first, second = _pair(history)
    yield from _leave_behind(history, first, second)
    yield lambda: second.phase is Phase.TARGET
    yield _later(history, 0.05)
    world.crash(first, power=history.random.random() < 0.5)
    world.notice(second)
    world.order(second, Promote())
    yield _later(history, 0.02)


def torn(history: History) -> Script:
    """A resync has overwritten something, the target's shell stalls, and its power goes (rule 5).

    The arbiter is away, so that the primary's generation stays the newest and the target's word decides.
    """
    world = history.world
    first, second = _pair(history)
    first.arbiter = False
    world.break_off(second.me, (Wire.STREAM,))
    yield _later(history, 0.05)
    world.notice(second)
    yield _said(second, Ready)
    second.stalled = True
    yield _later(history, 0.03)
    world.crash(first, power=True)
    world.crash(second, power=history.random.random() < 0.5)
    world.power_on(second)
    yield lambda: second.phase is Phase.WAITING
    world.order(second, Promote())
    yield _later(history, 0.02)


def late_done(history: History) -> Script:
    """DONE of a session that broke arrives in the next one, whose resync has just begun."""
    world = history.world
    first, second = _pair(history)
    yield from _leave_behind(history, first, second)
    world.hold_late = True
    yield _said(first, Done)
    first.arbiter = False
    world.break_off(second.me, (Wire.STREAM,), keep=0.3)
    world.notice(second)
    yield _said(second, Ready)
    world.hold_late = False
    yield _later(history, 0.05)
    world.crash(first, power=True)
    world.notice(second)
    world.order(second, Promote())
    yield _later(history, 0.02)


def slow_disk(history: History) -> Script:
    """A flush of an earlier session ends in the next one, and then the power goes (rule 6)."""
    world = history.world
    first, second = _pair(history)
    world.lazy = second.slow = True
    yield from _leave_behind(history, first, second)
    yield _executed(second, lambda command: isinstance(command, Flush))
    yield from _leave_behind(history, first, second)
    yield _executed(second, lambda command: isinstance(command, Flush))
    second.slow = False
    yield _executed(second, lambda command: isinstance(command, FlushEnd))
    second.slow = True
    trusted = _trusted(second)
    steps = history.steps + 300
    yield lambda: trusted() or history.steps > steps
    for host in history.hosts:
        world.crash(host, power=True)
    world.power_on(second)
    yield lambda: second.phase is Phase.WAITING
    yield from _take_over(history, second)


def whole_tree(history: History) -> Script:
    """Everything is compared while applications write, and then something breaks."""
    world = history.world
    first, second = _pair(history)
    world.order(first, Resync())
    yield lambda: second.phase is Phase.TARGET
    yield _later(history, 0.02)
    draw = history.random.random()
    if draw < 0.4:
        world.crash(first, power=draw < 0.2)
    elif draw < 0.6:
        world.crash(second, power=True)
    elif draw < 0.8:
        world.notice(second)


def struck_swap(history: History) -> Script:
    """Roles change in the planned way, and exactly behind some command of it somebody crashes."""
    world, rng = history.world, history.random
    first, second = _pair(history)
    world.order(first, Demote(handover=rng.random() < 0.7))
    kind, host = rng.choice(STRUCK), rng.choice((first, second))
    yield _executed(host, lambda command: type(command) is kind)
    world.crash(host, power=rng.random() < 0.5)
    if rng.random() < 0.3:
        world.crash(world.other(host), power=True)
    yield from _take_over(history, rng.choice((first, second)))


def second_thoughts(history: History) -> Script:
    """The administrator swaps the roles, and takes it back before the other node has taken over."""
    world = history.world
    first, _ = _pair(history)
    world.order(first, Demote(handover=True))
    yield lambda: first.phase is Phase.WAITING
    world.order(first, Promote())
    yield _later(history, 0.02)


def late_reading(history: History) -> Script:
    """A node with an open claim asks what the register holds, and hears it when it is primary and claims again."""
    world = history.world
    first, _ = _pair(history)
    world.hold_readings = True
    first.arbiter = False
    yield from _cut(history)
    yield lambda: first.record.content is not None and first.record.content.claim is not None
    world.crash(first, power=True)
    world.power_on(first)
    first.arbiter = True
    yield lambda: bool(world.held)
    yield from _take_over(history, first)
    world.cut = False
    yield lambda: history.roles() is not None
    first.arbiter = False
    yield from _cut(history)
    yield lambda: first.core is not None and first.core.record.claim is not None
    world.replies.extend(world.held)
    world.held.clear()
    yield _later(history, 0.02)
    first.arbiter = True


def crossed(history: History) -> Script:
    """A node that was away is asked to serve just when the primary asks it to follow."""
    world = history.world
    first, second = _pair(history)
    yield from _leave_behind(history, first, second)
    yield lambda: second.engine is not None and second.engine.session is not None
    yield _later(history, 0.3)
    world.order(second, Promote())
    yield _later(history, 0.02)


def rot(history: History) -> Script:
    """A block of the secondary changes by itself; verify finds it, and with `repair` it is sent again."""
    world = history.world
    _, second = _pair(history)
    cell = history.random.choice(CELLS)
    world.busy = False
    yield _later(history, 0.02)
    roles = history.roles()
    if roles is None or roles[1] is not second or world.verifying():
        return
    second.disk.rot(cell)
    world.rotten = second.disk.content[cell] != roles[0].disk.content[cell]
    world.order(roles[0], Check(repair=True))
    yield lambda: not world.rotten


AIMS: tuple[Callable[[History], Script], ...] = (
    switch, overtaken, relay, power_cut, broken_beginning, half_synced, torn, late_done, slow_disk, whole_tree,
    struck_swap, second_thoughts, late_reading, crossed, rot,
)  # fmt: skip


# ---- acts ----


def _cut(history: History) -> Script:
    """The cable goes, and both notice at once."""
    history.world.cut = True
    for host in history.hosts:
        history.world.break_off(host.me)
        history.world.notice(host)
    yield lambda: True


def _leave_behind(history: History, first: Host, second: Host) -> Script:
    """The secondary is away for a while, and the primary goes on alone."""
    world = history.world
    world.cut = True
    for host in history.hosts:
        world.break_off(host.me)
    yield lambda: first.engine is None or first.engine.gate is Gate.ALONE
    yield _later(history, 0.01)
    world.cut = False


def _take_over(history: History, host: Host) -> Script:
    """The administrator promotes this node until it serves."""
    world = history.world

    def serves() -> bool:
        if not host.serves and host.phase in {Phase.WAITING, Phase.SECONDARY} and not host.inbox and not host.commands:
            world.order(host, Promote())
        return host.serves

    yield serves


# ---- conditions ----


def _pair(history: History) -> tuple[Host, Host]:
    roles = history.roles()
    assert roles is not None, "an aim begins with a pair in sync"
    return roles


def _later(history: History, chance: float) -> Condition:
    return lambda: history.random.random() < chance


def _executed(host: Host, which: Callable[[Command | FlushEnd], bool]) -> Condition:
    last = host.world
    return lambda: last.last is not None and last.last[0] is host and which(last.last[1])


def _said(host: Host, kind: type[Message]) -> Condition:
    return _executed(host, lambda command: isinstance(command, Say) and isinstance(command.message, kind))


def _trusted(host: Host) -> Condition:
    return _executed(host, lambda command: isinstance(command, Persist) and command.record.uptodate)
