# SPDX-License-Identifier: Apache-2.0
"""Requests through the lab's load balancer, and what the balancer thinks of the nodes."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from farmd.lab import netns
from farmd.lab.farm import Farm
from farmd.model.config import HEALTH_PORT
from farmd.model.rules import Address

_TIMEOUT_S = 4
_PAUSE_S = 0.01


@dataclass(frozen=True)
class Request:
    """One request: when it was sent, and the node that answered; None: it failed."""

    at: float
    node: str | None


@dataclass
class Requests:
    """A steady stream of requests, each on a connection of its own."""

    made: list[Request] = field(default_factory=list)

    def since(self, at: float) -> list[Request]:
        return [one for one in self.made if one.at >= at]

    def nodes(self, at: float) -> set[str]:
        return {one.node for one in self.since(at) if one.node}

    def failed(self, at: float = 0) -> int:
        return sum(one.node is None for one in self.since(at))


@contextmanager
def requests(farm: Farm, vip: Address, port: int) -> Iterator[Requests]:
    """Ask one page after another from client1 until the end."""
    found, end = Requests(), threading.Event()

    def ask() -> None:
        while not end.is_set():
            at = time.monotonic()
            found.made.append(Request(at, _get(str(vip), port)))
            end.wait(_PAUSE_S)

    namespace = farm.lab.plan.host("client1").namespace
    thread = threading.Thread(target=netns.in_namespace, args=(namespace, ask))
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()


def _get(host: str, port: int) -> str | None:
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        text = answer.read().decode().strip()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return text if answer.status == 200 else None


def health(farm: Farm, node: str, path: str = "/health", *, timeout_s: float = _TIMEOUT_S) -> tuple[int, str]:
    """Status and text of a node's health URL as the balancer's host sees it; 0 if nobody answers."""

    def ask() -> tuple[int, str]:
        address = str(farm.lab.plan.host(node).addresses[0].ip)
        connection = http.client.HTTPConnection(address, HEALTH_PORT, timeout=timeout_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode().strip()
        except OSError as error:
            return 0, str(error)
        finally:
            connection.close()

    return netns.in_namespace(farm.lab.plan.balancers[0].namespace, ask)


def used_by_balancer(farm: Farm) -> set[str] | None:
    """The nodes to which HAProxy sends clients; None while its services differ."""
    home = farm.lab.plan.home(farm.lab.plan.balancers[0])
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_TIMEOUT_S)
        line.connect(str(home / "haproxy.sock"))
        line.sendall(b"show stat\n")
        text = b"".join(iter(lambda: line.recv(65536), b"")).decode()
    head, *rows = [row.split(",") for row in text.removeprefix("# ").splitlines() if row]
    named = [dict(zip(head, row, strict=False)) for row in rows]
    servers = [row for row in named if row["svname"].startswith("node")]
    up = [(row["pxname"], row["svname"]) for row in servers if row["status"].startswith("UP")]
    by_service = [{node for where, node in up if where == service} for service in {row["pxname"] for row in servers}]
    return by_service[0] if all(nodes == by_service[0] for nodes in by_service) else None
