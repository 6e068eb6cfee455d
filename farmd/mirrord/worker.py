# SPDX-License-Identifier: Apache-2.0
"""One child of a mirror's node: the data path (`farmd.mirror.engine`) and, for the receiving side, passes of the
checksum engine and failbacks from the log. `python -m farmd.mirrord.worker --control FD`.

A child is used for one thing: it is mounted, or it is confined and receives. So what a peer sends is never applied by
a process that could mount, and a node that becomes primary takes another child.

Orders besides those of the data path: `confine` (root, records, readable), `names` (what the next pass is to look at),
`pace-pass` (how much of contents to read in a second), `pass` and `patch`, which carry the connected socket along.
While a pass goes on `{"event": "progress"}` follows, then `{"event": "found"}` with what was found;
`{"event": "passed"}` is the last of either. With `patch` comes a file that holds what the node's own log says: the
journal itself is out of a confined process's reach.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from dataclasses import asdict
from pathlib import Path

from farmd.mirror.checksum import Mode, Pass
from farmd.mirror.confine import confine
from farmd.mirror.engine import Engine, Message, run
from farmd.mirror.patching import Patching
from farmd.mirror.zonewire import Link
from farmd.mirrord.bulk import BulkPass, parts, secured
from farmd.mirrord.keys import Keys
from farmd.model.errors import FarmError

_TELL_S = 0.5


class Worker(Engine):
    """The data path's orders, and those of the receiving side."""

    def __init__(self, control: socket.socket) -> None:
        super().__init__(control)
        self._bulk: BulkPass | None = None
        self._passing: threading.Thread | None = None
        self._names: dict[int, list[bytes]] = {}
        self._zones: socket.socket | None = None
        self._patching: threading.Thread | None = None
        self._orders |= {
            "confine": self._confine,
            "names": self._take_names,
            "pass": self._pass,
            "patch": self._patch,
            "pace-pass": self._pace_pass,
        }

    def _confine(self, order: Message, _: list[int]) -> Message:
        confine(order["root"], order["records"], tuple(map(Path, order["readable"])))
        return {}

    def _take_names(self, order: Message, _: list[int]) -> Message:
        self._names.setdefault(order["token"], []).extend(bytes.fromhex(path) for path in order["paths"])
        return {}

    def _pass(self, order: Message, fds: list[int]) -> Message:
        if self._passing is not None and self._passing.is_alive():
            raise ValueError("a pass goes on already")
        record, excluded = Path(order["record"]), tuple(order["excluded"])
        mode, passes = Mode(order["mode"]), Pass(order["passes"])
        names = tuple(self._names.pop(order["token"], ()))
        only = names if order["only"] else None
        bulk = self._bulk = BulkPass(Path(order["root"]), record, mode, passes, 0, order["probe"], excluded, only)
        sock = socket.socket(fileno=os.dup(fds[0]))
        self._passing = threading.Thread(target=self._run_pass, args=(bulk, sock, order))
        self._passing.start()
        return {}

    def _run_pass(self, bulk: BulkPass, sock: socket.socket, order: Message) -> None:
        done = threading.Event()
        teller = threading.Thread(target=self._tell, args=(bulk, order["token"], done))
        teller.start()
        try:
            counters = bulk.over(sock, source=False, keys=_keys(order), peer=order["peer"])
            for found in parts(bulk):
                self._send({"event": "found", "token": order["token"], "findings": found})
            result = {"progress": asdict(counters), "more": bulk.more}
        except (FarmError, OSError) as error:
            result = {"error": str(error)}
        finally:
            done.set()
            teller.join()
        self._send({"event": "passed", "token": order["token"]} | result)

    def _tell(self, bulk: BulkPass, token: int, done: threading.Event) -> None:
        while not done.wait(_TELL_S):
            self._send({"event": "progress", "token": token, "progress": asdict(bulk.progress())})

    def _patch(self, order: Message, fds: list[int]) -> Message:
        if self._zones is not None:
            raise ValueError("a failback goes on already")
        if self._patching is not None:
            self._patching.join()  # it has told its end, and a moment later it is over
        with os.fdopen(os.dup(fds[1]), "rb") as file:
            cover = json.load(file)
        self._zones = socket.socket(fileno=os.dup(fds[0]))
        self._patching = threading.Thread(target=self._run_patch, args=(self._zones, cover, order))
        self._patching.start()
        return {}

    def _run_patch(self, zones: socket.socket, cover: Message, order: Message) -> None:
        result: Message = {}
        try:
            sock = zones.dup()  # `_stop` ends the connection by the other one
            sock.setblocking(True)
            with sock, secured(sock, _keys(order), order["peer"]) as plain, contextlib.closing(Link(plain)) as link:
                Patching(order["root"], link, tuple(order["excluded"])).run(cover)
        except (FarmError, OSError) as error:
            result = {"error": str(error)}
        finally:
            self._zones = None
            zones.close()
        self._send({"event": "passed", "token": order["token"]} | result)

    def _pace_pass(self, order: Message, _: list[int]) -> Message:
        if self._bulk is not None:
            self._bulk.limit(0, order["read_bytes_s"])
        return {}

    def _stop(self) -> None:
        if self._bulk is not None:
            self._bulk.stop()
        if (zones := self._zones) is not None:
            with contextlib.suppress(OSError):
                zones.shutdown(socket.SHUT_RDWR)
        for thread in (self._passing, self._patching):
            if thread is not None:
                thread.join()
        super()._stop()


def _keys(order: Message) -> Keys | None:
    return Keys(Path(order["keys"])) if order["keys"] else None


if __name__ == "__main__":
    run(Worker, str(__doc__))
