# SPDX-License-Identifier: Apache-2.0
"""Long-lived HTTP connections from many client addresses, each checked at every answer.

nginx names the node, its connection's serial number and the request's number on that connection in every answer. An
answer that breaks this row came from somewhere else, whatever TCP believed.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from farmd.lab.netns import in_namespace
from farmd.lab.plan import SERVICE_PORTS, VIP, Host, LabPlan
from farmd.model.errors import FarmError
from farmd.model.rules import Address

T = TypeVar("T")

STALL_S = 1.0
"""An answer that takes longer is counted as a stall, once."""
_REOPEN_S = 0.1
_ANSWER = re.compile(rb"\r\nFarm-Connection: ([^/]+)/(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Tally:
    """What happened to the connections so far, or between two moments (`since`). Losses are by the node that served."""

    open_by_node: dict[str, int]
    requests: int
    resets: dict[str, int]
    closes: dict[str, int]
    strays: int
    """Answers from another node or connection than the first one."""
    stalls: int
    reopened: int
    longest_ms: float
    """The longest wait for an answer, ever."""

    @property
    def open(self) -> int:
        """Connections that are established and have been answered."""
        return sum(self.open_by_node.values())

    @property
    def lost(self) -> int:
        """Connections that ended without our wish."""
        return sum(self.resets.values()) + sum(self.closes.values())

    @property
    def whole(self) -> bool:
        """Whether nobody who held a connection could have noticed anything."""
        return not self.lost and not self.strays

    def lost_except(self, node: str) -> int:
        """Connections lost that `node` did not serve."""
        return self.lost - self.resets.get(node, 0) - self.closes.get(node, 0)

    def since(self, earlier: Tally) -> Tally:
        """What happened after `earlier`."""
        return Tally(
            self.open_by_node,
            self.requests - earlier.requests,
            dict(Counter(self.resets) - Counter(earlier.resets)),
            dict(Counter(self.closes) - Counter(earlier.closes)),
            self.strays - earlier.strays,
            self.stalls - earlier.stalls,
            self.reopened - earlier.reopened,
            self.longest_ms,
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a connection comes from and goes to; it keeps it over all its lives."""

    host: Host
    client: Address
    port: int


class Connections:
    """`count` connections that ask every `period_s`, in a thread of their own, between `open` and `close`.

    One that is lost is counted and opened again, so that the population stays.
    """

    def __init__(self, plan: LabPlan, count: int, period_s: float = 0.2, ports: tuple[int, ...] = (*SERVICE_PORTS,)):
        self._period_s = period_s
        places = [
            _Place(host, address.ip, port)
            for port in ports
            for host in plan.client_hosts
            for address in host.addresses
            if address.version == 4
        ]
        self._places = [places[number % len(places)] for number in range(count)]
        self._clients: set[_Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resets: Counter[str] = Counter()
        self._closes: Counter[str] = Counter()
        self._requests = self._strays = self._stalls = self._reopened = 0
        self._longest_s = 0.0
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="connections", daemon=True)

    def open(self, *, seconds: float = 10.0) -> None:
        """Open them all. FarmError if some have had no answer after `seconds`."""
        self._thread.start()
        self._run(self._open_all())
        deadline = time.monotonic() + seconds
        while self.tally().open < len(self._places):
            if time.monotonic() > deadline:
                got = self.tally().open
                cause = f"only {got} of {len(self._places)} connections were answered within {seconds:.0f} s"
                raise FarmError("long-lived connections", cause, "See `farmctl lab status` and the nodes' logs")
            time.sleep(0.05)

    def close(self) -> None:
        """Close them all and end the thread. Safe to repeat."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            self._run(self._close_all())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def __enter__(self) -> Connections:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tally(self) -> Tally:
        """What happened until now."""
        return self._run(self._tally())

    # -- in the loop's thread -------------------------------------------------------------------------------------

    async def _tally(self) -> Tally:
        return Tally(
            dict(Counter(client.node for client in self._clients if client.node)),
            self._requests,
            dict(self._resets),
            dict(self._closes),
            self._strays,
            self._stalls,
            self._reopened,
            self._longest_s * 1000,
        )

    async def _open_all(self) -> None:
        for place in self._places:
            self._spawn(self._connect(place))
        self._spawn(self._watch())

    async def _close_all(self) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        for client in self._clients:
            client.hang_up()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # transports close in a later turn of the loop

    async def _connect(self, place: _Place) -> None:
        while not self._closing:
            connection = in_namespace(place.host.namespace, lambda: _bound(place.client))
            try:
                await self._loop.sock_connect(connection, (str(VIP), place.port))
                await self._loop.create_connection(lambda: _Client(self, place), sock=connection)
            except OSError:
                connection.close()
                await asyncio.sleep(_REOPEN_S)
            except asyncio.CancelledError:
                connection.close()
                raise
            else:
                return

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(STALL_S / 4)
            for client in self._clients:
                self._stalls += client.stalled_now()

    async def _reopen(self, place: _Place) -> None:
        await asyncio.sleep(_REOPEN_S)
        await self._connect(place)
        self._reopened += 1

    def joined(self, client: _Client) -> None:
        """A connection was established."""
        self._clients.add(client)

    def answered(self, waited_s: float, *, stray: bool) -> float:
        """An answer came; how long to wait before the next request."""
        self._requests += 1
        self._strays += stray
        self._longest_s = max(self._longest_s, waited_s)
        return self._period_s

    def left(self, client: _Client, error: Exception | None) -> None:
        """A connection ended, by our wish or not."""
        self._clients.discard(client)
        if self._closing:
            return
        (self._closes if error is None else self._resets)[client.node or "nobody"] += 1
        self._spawn(self._reopen(client.place))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Client(asyncio.Protocol):
    """One connection's life."""

    def __init__(self, owner: Connections, place: _Place) -> None:
        self.place = place
        self.node = ""
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._pending = b""
        self._serial = self._number = 0
        self._asked_at: float | None = None
        self._stalled = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to ask."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._owner.joined(self)
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Take in a part of an answer; judge it when it is whole."""
        self._pending += data
        head, end, body = self._pending.partition(b"\r\n\r\n")
        if not end or not body.endswith(b"\n"):
            return
        self._pending = b""
        found = _ANSWER.search(head)
        node, serial, number = (found[1].decode(), int(found[2]), int(found[3])) if found else ("", 0, 0)
        stray = self.node != "" and (node, serial, number) != (self.node, self._serial, self._number + 1)
        self.node, self._serial, self._number = self.node or node, serial, number
        waited = time.monotonic() - (self._asked_at or 0.0)
        self._asked_at, self._stalled = None, False
        asyncio.get_running_loop().call_later(self._owner.answered(waited, stray=stray), self._ask)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner."""
        self._transport = None
        self._owner.left(self, exc)

    def stalled_now(self) -> bool:
        """Whether the answer under way has just become a stall."""
        late = self._asked_at is not None and time.monotonic() - self._asked_at > STALL_S
        news = late and not self._stalled
        self._stalled = self._stalled or late
        return news

    def hang_up(self) -> None:
        """Close without waiting for anything."""
        if self._transport is not None:
            self._transport.abort()

    def _ask(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._asked_at = time.monotonic()
            self._transport.write(b"GET / HTTP/1.1\r\nHost: farm\r\n\r\n")


def _bound(client: Address) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.bind((str(client), 0))
    return connection
