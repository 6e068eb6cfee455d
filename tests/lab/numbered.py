# SPDX-License-Identifier: Apache-2.0
"""A steady stream of numbered datagrams to a UDP echo behind the VIP: what was lost, and what was answered twice."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from farmd.lab import netns
from farmd.lab.farm import Farm
from farmd.lab.plan import VIP

PORT = 4007
RULE = f"""
[[rule]]
name = "echo"
vip = "{VIP}"
protocol = "udp"
port = {PORT}
affinity = "client-ip-port"
"""
_ECHO = f"""
import socket, sys
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("{VIP}", {PORT}))
while True:
    data, client = echo.recvfrom(64)
    echo.sendto(data + sys.argv[1].encode(), client)
"""
_SOCKETS = 24
"""Each is a client of its own, so that every node has some."""
_PAUSE_S = 0.002
_LAST_ANSWERS_S = 0.5
_NUMBER = struct.Struct("=Q")


@dataclass
class Stream:
    """What was sent, and what came back: number -> nodes."""

    sent: int = 0
    answers: dict[int, list[str]] = field(default_factory=dict)

    def lost(self) -> list[int]:
        return [number for number in range(self.sent) if number not in self.answers]

    def twice(self) -> dict[int, list[str]]:
        return {number: nodes for number, nodes in self.answers.items() if len(nodes) > 1}

    def by_node(self) -> Counter[str]:
        return Counter(nodes[0] for nodes in self.answers.values())


def serve_echo(farm: Farm) -> None:
    """Give every node the rule and the echo. It ends with the lab."""
    for host in farm.lab.plan.serving:
        path = farm.lab.plan.home(host) / "farm.toml"
        path.write_text(path.read_text() + RULE)
        farm.lab.api(host.name).reload()
        farm.wait("the rule is there", lambda name=host.name: has_rule(farm, name, "echo"))  # type: ignore[misc]
        argv = [sys.executable, "-c", _ECHO, host.name]
        netns.start_detached(host.namespace, argv, log=farm.lab.plan.home(host) / "echo.log")


def has_rule(farm: Farm, node: str, rule: str) -> bool:
    """Whether `node` runs with a rule of that name."""
    return any(one["name"] == rule for one in farm.status(node)["rules"])


@contextmanager
def numbered(farm: Farm) -> Iterator[Stream]:
    """Send until the end of the block; then `lost` and `twice` are final."""
    stream, end = Stream(), threading.Event()

    def talk() -> None:
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(_SOCKETS)]
        for client in clients:
            client.setblocking(False)
        while not end.is_set():
            with suppress(BlockingIOError):
                clients[stream.sent % _SOCKETS].sendto(_NUMBER.pack(stream.sent), (str(VIP), PORT))
                stream.sent += 1
            _collect(clients, stream)
            time.sleep(_PAUSE_S)
        until = time.monotonic() + _LAST_ANSWERS_S
        while time.monotonic() < until:
            _collect(clients, stream)
            time.sleep(_PAUSE_S)
        for client in clients:
            client.close()

    namespace = farm.lab.plan.host("client1").namespace
    netns.in_namespace(namespace, lambda: _until_answered(farm))
    thread = threading.Thread(target=netns.in_namespace, args=(namespace, talk))
    thread.start()
    try:
        yield stream
    finally:
        end.set()
        thread.join()


def _collect(clients: list[socket.socket], stream: Stream) -> None:
    for client in clients:
        with suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                data = client.recv(64)
                number = _NUMBER.unpack_from(data)[0]
                stream.answers.setdefault(number, []).append(data[_NUMBER.size :].decode())


def _until_answered(farm: Farm) -> None:
    """Until every node's echo runs, and the client knows the VIP's MAC."""
    seen: set[str] = set()

    def all_answer() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.3)
            client.connect((str(VIP), PORT))
            with suppress(OSError):
                client.send(_NUMBER.pack(0))
                seen.add(client.recv(64)[_NUMBER.size :].decode())
        return seen == {host.name for host in farm.lab.plan.serving}

    farm.wait("every echo answers", all_answer)
