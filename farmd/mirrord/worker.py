# SPDX-License-Identifier: Apache-2.0
"""One child of a mirror's node: the data path (`farmd.mirror.engine`) and, for the receiving side, passes of the
checksum engine. `python -m farmd.mirrord.worker --control FD`.

A child is used for one thing: it is mounted, or it is confined and receives. So what a peer sends is never applied by
a process that could mount, and a node that becomes primary takes another child.

Orders besides those of the data path: `confine` (root, records, readable), `names` (what the next pass is to look at),
`pace-pass` (how much of contents to read in a second), and `pass`, which carries the connected socket along;
`{"event": "progress"}` follows while it goes on, then `{"event": "found"}` with what was found, and
`{"event": "passed"}` last.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import asdict
from pathlib import Path

from farmd.mirror.checksum import Mode, Pass
from farmd.mirror.confine import confine
from farmd.mirror.engine import Engine, Message, run
from farmd.mirrord.bulk import BulkPass, parts
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
        self._orders |= {
            "confine": self._confine,
            "names": self._take_names,
            "pass": self._pass,
            "stop-pass": self._stop_pass,
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
        keys = Keys(Path(order["keys"])) if order["keys"] else None
        try:
            counters = bulk.over(sock, source=False, keys=keys, peer=order["peer"])
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

    def _stop_pass(self, _: Message, __: list[int]) -> Message:
        if self._bulk is not None:
            self._bulk.stop()
        return {}

    def _pace_pass(self, order: Message, _: list[int]) -> Message:
        if self._bulk is not None:
            self._bulk.limit(0, order["read_bytes_s"])
        return {}

    def _stop(self) -> None:
        self._stop_pass({}, [])
        if self._passing is not None:
            self._passing.join()
        super()._stop()


if __name__ == "__main__":
    run(Worker, str(__doc__))
