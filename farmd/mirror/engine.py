# SPDX-License-Identifier: Apache-2.0
"""One mirror's data path as a process of its own: `python -m farmd.mirror.engine --control FD`.

FD is one end of a SOCK_SEQPACKET pair. Each message is one JSON object; `{"id": 1, "do": "attach", ...}` is answered by
`{"id": 1, "ok": true, ...}` or `{"id": 1, "error": {...}}`; `attach` and `receive` carry the connected socket along.
Events of the data path come by themselves: `{"event": "lost", ...}`. When the other end of FD closes, the process
unmounts by force and ends: nobody could steer it any more.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from farmd.mirror import tlscontext
from farmd.mirror.datapath import Ack, DataEvent, DataPathError, Received, Settings, State, Tls, WriteThrough, receive
from farmd.mirror.failback import Failback
from farmd.mirror.keeping import Keeper
from farmd.mirror.native import excludes
from farmd.mirror.places import names_of
from farmd.mirror.zonewire import Link, LogLied
from farmd.model.errors import FarmError

MESSAGE_BYTES = 192 * 1024
_PR_SET_IO_FLUSHER = 57
_HANDSHAKE_S = 10.0

Message = dict[str, Any]


def protect_process() -> None:
    """Keep the data path alive under memory pressure: the kernel's writeback waits for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-1000")
    with contextlib.suppress(ValueError, OSError):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 1 << 17), max(limit, 1 << 17)))


def event_message(event: DataEvent) -> Message:
    """As it goes to the parent; handles as `type:hex`."""
    message: Message = {"event": event.kind.value, "number": event.number}
    if event.text:
        message |= {"code": event.code, "text": event.text}
    if event.handle[1]:
        message["handle"] = f"{event.handle[0]}:{event.handle[1].hex()}"
    if event.length or event.offset:
        message |= {"offset": event.offset, "length": event.length}
    return message


class Engine:
    """Reads orders, does them, reports events. One at a time is mounted, or one stream is received."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._sending = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._mounted: WriteThrough | None = None
        self._tls: list[Tls] = []
        self._receiving: threading.Thread | None = None
        self._ended = threading.Event()
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._over = False
        self._keeper: Keeper | None = None
        self._failback: threading.Thread | None = None
        self._failback_link: Link | None = None
        self._failback_over = False
        self._paced: Failback | None = None
        self._orders: dict[str, Callable[[Message, list[int]], Message]] = {
            "mount": self._mount,
            "attach": self._attach,
            "receive": self._receive,
            "go-alone": lambda _, __: self._with(WriteThrough.go_alone),
            "refuse": lambda _, __: self._with(WriteThrough.refuse),
            "detach": lambda _, __: self._with(WriteThrough.detach),
            "settle": lambda order, _: self._with(lambda fs: fs.settle(order.get("timeout_ms", 10_000))),
            "ack": lambda order, _: self._with(lambda fs: fs.set_ack(Ack(order["ack"]))),
            "confirm": lambda order, _: self._with(lambda fs: fs.confirm(order["number"])),
            "freeze": self._freeze,
            "thaw": lambda _, __: self._with(WriteThrough.thaw),
            "checkpoint": self._checkpoint,
            "stats": self._stats,
            "failback": self._fail_back,
            "end-failback": self._end_failback,
            "pace": self._pace,
            "log": self._log,
            "unmount": self._unmount,
            "free": self._free,
            "end": self._end,
        }

    def run(self) -> None:
        """Until `end`, or until the parent is gone."""
        while not self._over:
            for key, _ in self._selector.select():
                (self._read_order if key.fileobj is self._control else self._report_events)()
        self._stop()

    def _send(self, message: Message) -> None:
        with self._sending, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.sendall(json.dumps(message).encode())

    def _read_order(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 4)
        except ConnectionResetError:  # it left without reading our events
            data, fds = b"", []
        if not data:
            self._over = True
            return
        order = json.loads(data)
        try:
            answer: Message = {"ok": True} | self._orders[order["do"]](order, fds)
        except FarmError as error:
            answer = {"error": {"text": str(error)}}
        except (KeyError, ValueError, OSError) as error:
            answer = {"error": {"text": f"{order.get('do')}: {error!r}"}}
        finally:
            for fd in fds:
                os.close(fd)
        self._send({"id": order.get("id")} | answer)

    def _report_events(self) -> None:
        if self._mounted is None:
            return
        for event in self._mounted.events():
            self._send(event_message(event))

    def _fs(self) -> WriteThrough:
        if self._mounted is None:
            raise ValueError("nothing is mounted")
        return self._mounted

    def _with(self, action: Callable[[WriteThrough], None]) -> Message:
        action(self._fs())
        return {}

    def _mount(self, order: Message, _: list[int]) -> Message:
        if self._mounted is not None:
            raise ValueError("a directory is mounted already")
        wanted = order["settings"]
        settings = Settings(
            **wanted
            | {"backing": Path(wanted["backing"]), "mount_point": Path(wanted["mount_point"])}
            | {"ack": Ack(wanted.get("ack", "strict")), "state": State(wanted.get("state", "alone"))}
            | {"excluded": tuple(wanted.get("excluded", ()))}
            | {"spread": tuple((name, Path(path)) for name, path in wanted.get("spread", ()))}
        )
        self._mounted = WriteThrough(settings)
        if settings.confirm and "log" in order:
            self._excluded = settings.excluded
            self._root = os.open(settings.backing, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            log = order["log"]
            self._keeper = Keeper(
                self._mounted,
                Path(log["path"]),
                bytes.fromhex(log["mirror"]),
                tell=lambda event: self._send(event_message(event)),
                failed=lambda why: self._send({"event": "log-failed", "text": why}),
                inherited=bool(log.get("inherited")),
            )
        else:
            self._selector.register(self._mounted, selectors.EVENT_READ)
        return {}

    def _stats(self, _: Message, __: list[int]) -> Message:
        kept = self._keeper.counts() if self._keeper is not None else {}
        return {"stats": asdict(self._fs().stats()) | kept}

    def _log(self, order: Message, _: list[int]) -> Message:
        """Whether the log says `everything`; with that in the order, it does from now on. `flushed`: see Keeper."""
        if self._keeper is None:
            raise ValueError("no log is kept")
        if order.get("everything"):
            self._keeper.compare_everything()
        if order.get("flushed"):
            self._keeper.flushed()
        return {"everything": self._keeper.everything}

    def _fail_back(self, order: Message, fds: list[int]) -> Message:
        """Two sockets: that of the failback, and the stream's, to be attached behind it."""
        if self._keeper is None:
            raise ValueError("no log is kept")
        if self._failback is not None and self._failback.is_alive():
            if not self._failback_over:
                raise ValueError("a failback goes on already")
            self._failback.join()  # it ends at once
        self._failback_over = False
        keeper, zones, stream = self._keeper, socket.socket(fileno=os.dup(fds[0])), os.dup(fds[1])
        zones.setblocking(True)
        self._failback = threading.Thread(target=self._run_failback, args=(order, keeper, zones, stream))
        self._failback.start()
        return {}

    def _run_failback(self, order: Message, keeper: Keeper, sock: socket.socket, stream: int) -> None:
        wanted, plain = order.get("tls"), sock
        try:
            plain = _tls(sock, wanted) if wanted else sock
            link = self._failback_link = Link(plain)
            if self._failback_over:
                raise DataPathError("the failback", "it was ended", "It is tried again when the peer is back")
            tls = self._secure(order, stream, server=False)
            pace = (order["rate_bytes_s"], order["freeze_s"])
            failback = Failback(self._fs(), keeper, self._root, link, *pace, self._excluded)
            self._paced = failback
            self._find_names()

            def attach() -> None:
                self._find_names()
                self._fs().attach(stream, order["session"], order["epoch"], tls)

            came = failback.run(attach)
            self._failback_over = True  # before it is told: who hears of the end may begin the next at once
            self._send({"event": "failback"} | asdict(came))
        except (OSError, ValueError, FarmError) as error:
            lied, self._failback_over = isinstance(error, LogLied), True
            self._send({"event": "failback-failed", "text": str(error), "lied": lied})
        finally:
            if self._failback_link is not None:
                self._failback_link.close()
            self._failback_link = self._paced = None
            plain.close()
            if not wanted:
                os.close(stream)  # TLS goes on using it

    def _freeze(self, _: Message, __: list[int]) -> Message:
        self._find_names()
        self._fs().freeze()
        return {}

    def _find_names(self) -> None:
        """Look for names of files that have some and of which the data path knows none: a new peer is told of a file by
        its name. Once while changes go on, as it may take long, and once more when none comes any more.
        """
        if self._keeper is not None and (wanted := self._fs().nameless()):
            for path in names_of(self._root, wanted, lambda path: excludes(self._excluded, path))[0]:
                self._fs().look_up(path)

    def _end_failback(self, _: Message, __: list[int]) -> Message:
        """Its peer is gone, and the connection may not know that for a long time. It fails as if it had broken."""
        self._failback_over = True
        if (link := self._failback_link) is not None:
            link.abort()
        return {}

    def _pace(self, order: Message, _: list[int]) -> Message:
        if (failback := self._paced) is not None:
            failback.rate_bytes_s = order["rate_bytes_s"]
        return {}

    def _secure(self, order: Message, fd: int, server: bool) -> Tls | None:
        wanted = order.get("tls")
        if wanted is None:
            return None
        files = {name: Path(wanted[name]) for name in ("certificate", "key", "authority")}
        tls = Tls(fd, **files, peer_name=wanted["peer_name"], server=server)
        self._tls.append(tls)
        return tls

    def _attach(self, order: Message, fds: list[int]) -> Message:
        # TLS keeps using the descriptor that it shook hands on.
        fd = os.dup(fds[0])
        self._find_names()
        self._fs().attach(fd, order["session"], order["epoch"], self._secure(order, fd, server=False))
        if "tls" not in order:
            os.close(fd)
        return {}

    def _receive(self, order: Message, fds: list[int]) -> Message:
        if self._receiving is not None and self._receiving.is_alive():
            if not self._ended.is_set():
                raise ValueError("a stream is being received already")
            self._receiving.join()  # it has told its end, and a moment later it is over
        self._ended.clear()
        self._receiving = threading.Thread(target=self._apply, args=(os.dup(fds[0]), order))
        self._receiving.start()
        return {}

    def _apply(self, fd: int, order: Message) -> None:
        try:
            told = asdict(self._receive_from(fd, order))
        except FarmError as error:
            told = {"code": -1, "text": str(error)}
        finally:
            os.close(fd)
        self._ended.set()  # before it is told: who reads of the end may begin the next at once
        self._send({"event": "ended"} | told)

    def _receive_from(self, fd: int, order: Message) -> Received:
        return receive(
            Path(order["backing"]),
            fd,
            session=order["session"],
            epoch=order["epoch"],
            stop_fd=self._stop_read,
            silence_ms=order.get("silence_ms", 0),
            tls=self._secure(order, fd, server=True),
        )

    def _checkpoint(self, _: Message, __: list[int]) -> Message:
        # It waits for changes that wait for a `confirm`, which this thread must be free to read.
        threading.Thread(target=self._run_checkpoint, args=(self._fs(),), daemon=True).start()
        return {}

    def _run_checkpoint(self, fs: WriteThrough) -> None:
        try:
            if self._keeper is not None:
                self._keeper.checkpoint()
                self._send({"event": "checkpoint"})
            else:
                fs.checkpoint()
        except FarmError as error:
            self._send({"event": "checkpoint-failed", "text": str(error)})

    def _unmount(self, order: Message, _: list[int]) -> Message:
        fs = self._fs()
        fs.unmount(bool(order.get("force")))
        # With `keep` the stream lives on, for a last checkpoint, until `free`.
        return {} if order.get("keep") else self._free(order, [])

    def _free(self, _: Message, __: list[int]) -> Message:
        fs = self._fs()
        if self._keeper is None:
            self._report_events()
            self._selector.unregister(fs)
        self._close(fs)
        return {}

    def _close(self, fs: WriteThrough) -> None:
        if self._failback_link is not None:
            self._failback_link.abort()
        if self._failback is not None:
            self._failback.join()
        if self._keeper is not None:
            self._keeper.close()
            os.close(self._root)
        self._mounted = self._keeper = None
        fs.close()

    def _end(self, _: Message, __: list[int]) -> Message:
        self._over = True
        return {}

    def _stop(self) -> None:
        if self._mounted is not None:
            with contextlib.suppress(FarmError):
                self._mounted.unmount(force=True)
            self._close(self._mounted)
        os.write(self._stop_write, b"x")
        if self._receiving is not None:
            self._receiving.join()
        for tls in self._tls:
            tls.close()


def _tls(sock: socket.socket, files: dict[str, str]) -> ssl.SSLSocket:
    """TLS 1.3 to the peer that `files` names, both sides with certificates. Raises OSError."""
    context = tlscontext.client(files["certificate"], files["key"], files["authority"])
    sock.settimeout(_HANDSHAKE_S)
    tls = context.wrap_socket(sock, server_hostname=files["peer_name"])
    tls.settimeout(None)
    return tls


def run(kind: type[Engine], description: str) -> None:
    """Until the parent says `end` or goes away."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--control", type=int, required=True, metavar="FD")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it in order
    os.chdir("/")
    protect_process()
    kind(socket.socket(fileno=arguments.control)).run()


if __name__ == "__main__":
    run(Engine, str(__doc__))
