# SPDX-License-Identifier: Apache-2.0
"""`farmctl demo`: builds a farm, changes and breaks it under traffic, and tells what clients saw."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from farmd.lab import netns
from farmd.lab.chapters import CHAPTERS, CONNECTIONS, Promise, Story
from farmd.lab.connections import Connections
from farmd.lab.farm import Farm
from farmd.lab.lab import Lab
from farmd.lab.load import WRK
from farmd.lab.observer import Observer
from farmd.lab.plan import LabPlan
from farmd.model.errors import Refused

NAME = "demo"
EXIT_KEPT = 0
EXIT_BROKEN = 1
EXIT_STOPPED = 130
"""Ctrl-C or SIGTERM: nothing was proved, and nothing is left behind."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """Somebody asked us to end. A BaseException, so that nothing on the way takes it for an error of its own."""


def run(json_output: bool = False) -> int:
    """Run the demo; 0 only if every promise held. Text goes to stdout; with `json_output` one JSON object does instead.

    Errors: NotPermitted without root; FarmError with the package to install, or when the farm does not form.
    """
    netns.require_tools(WRK)
    began = time.monotonic()

    def say(line: str) -> None:
        stream = sys.stderr if json_output else sys.stdout
        stream.write(f"{time.monotonic() - began:6.1f} s  {line}\n" if line else "\n")
        stream.flush()

    lab = Lab(LabPlan(NAME))
    promises: list[Promise] = []
    figures: dict[str, Any] = {}
    try:
        with _only_one(), _stoppable(lab.down):
            _play(lab, say, promises, figures)
    except _Stopped:
        say("stopped; nothing is left behind")
        return EXIT_STOPPED
    left = remains(lab)
    promises.append(
        Promise("nothing is left behind", not left, ", ".join(left) or "no namespace, process, pin or file")
    )
    figures["seconds"] = round(time.monotonic() - began, 1)
    kept = all(promise.kept for promise in promises)
    if json_output:
        rows = [{"promise": p.text, "kept": p.kept, "seen": p.seen} for p in promises]
        sys.stdout.write(json.dumps({"kept": kept, "promises": rows, "figures": figures}, indent=2) + "\n")
    else:
        sys.stdout.write(summary(promises, figures["seconds"]))
    return EXIT_KEPT if kept else EXIT_BROKEN


def summary(promises: list[Promise], seconds: float) -> str:
    """The closing table. Pure."""
    width = max(len(promise.text) for promise in promises)
    lines = ["", f"{'PROMISE':<{width}}  HELD  SEEN"]
    lines += [f"{p.text:<{width}}  {'yes ' if p.kept else 'NO  '}  {p.seen}" for p in promises]
    broken = sum(not promise.kept for promise in promises)
    verdict = "every promise held" if not broken else f"{broken} of {len(promises)} promises did not hold"
    return "\n".join([*lines, "", f"{verdict}; {seconds:.0f} s in all", ""])


def remains(lab: Lab) -> list[str]:
    """What a lab that is down has left on this machine; empty if `down` is true."""
    places = [str(path) for path in (lab.plan.directory, lab.plan.pins) if path.exists()]
    return [name for name in netns.namespaces() if lab.plan.owns_namespace(name)] + places


def _play(lab: Lab, say: Callable[[str], None], promises: list[Promise], figures: dict[str, Any]) -> None:
    say("Set-up")
    began = time.monotonic()
    lab.down()  # what a killed demo left
    lab.up(lambda text: say(f"  {text}"))
    farm = Farm(lab)
    farm.wait_serving([host.name for host in lab.plan.serving], seconds=60)
    figures["setup_seconds"] = round(time.monotonic() - began, 1)
    say(f"  the farm serves, {figures['setup_seconds']} s after the first namespace")
    with Observer(lab.plan) as observer, Connections(lab.plan, CONNECTIONS) as connections:
        addresses = sum(len(host.addresses) for host in lab.plan.client_hosts) // 2
        say(f"  {CONNECTIONS} long-lived connections from {addresses} client addresses, a request each every 200 ms")
        story = Story(lab, farm, observer, connections, lambda line: say(f"  {line}"), promises, figures)
        for title, chapter in CHAPTERS:
            say("")
            say(title)
            chapter(story)


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind("\0farmd-demo")
        except OSError as error:
            raise Refused("demo", "another demo runs on this machine", "Wait for it, or end it") from error
        yield


@contextlib.contextmanager
def _stoppable(clean_up: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal end the body as `_Stopped`, once; run `clean_up` whatever happens.

    The first signal is the last: a second Ctrl-C must not leave half a lab behind.
    """
    deaf = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal deaf
        if not deaf:
            deaf = True
            raise _Stopped

    previous = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        try:
            yield
        finally:
            deaf = True
    finally:  # two of them, because the first signal may come within the inner one
        clean_up()
        for number, handler in previous.items():
            signal.signal(number, handler)
