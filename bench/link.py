# SPDX-License-Identifier: Apache-2.0
"""A shaped link between two network namespaces with rsync's daemon at one end, for the benches beside rsync."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SOURCE, TARGET = f"bench-s{os.getpid()}", f"bench-t{os.getpid()}"
SOURCE_IP, TARGET_IP = "10.91.0.1", "10.91.0.2"


def inside(namespace: str | None, words: Sequence[str]) -> list[str]:
    """The command in a namespace. Not by `ip netns exec`: its mount namespace would hold on to all mounts."""
    return [*(["nsenter", f"--net=/run/netns/{namespace}"] if namespace else []), *words]


def see_rsync() -> None:
    """Before trees are made, which takes long. Raises SystemExit."""
    if shutil.which("rsync") is None:
        raise SystemExit("the bench runs beside rsync, which is not installed: apt-get install rsync")


@contextmanager
def link(gbit: int, served: Path, folder: Path) -> Iterator[None]:
    """A token bucket of `gbit` in each direction; the daemon serves `served` in the source's namespace."""
    config = folder / "rsyncd.conf"
    config.write_text(f"use chroot = no\nuid = root\ngid = root\n[source]\npath = {served}\n")
    daemon = None
    try:
        for namespace in (SOURCE, TARGET):
            subprocess.run(["ip", "netns", "add", namespace], check=True)
        ends = ["link-s", "netns", SOURCE, "type", "veth", "peer", "name", "link-t", "netns", TARGET]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        for namespace, device, address in ((SOURCE, "link-s", SOURCE_IP), (TARGET, "link-t", TARGET_IP)):
            subprocess.run(["ip", "-n", namespace, "address", "add", f"{address}/24", "dev", device], check=True)
            subprocess.run(["ip", "-n", namespace, "link", "set", device, "up"], check=True)
            shape = ["tbf", "rate", f"{gbit}gbit", "burst", "2mb", "latency", "20ms"]
            subprocess.run(["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *shape], check=True)
        serve = ["rsync", "--daemon", "--no-detach", "--port=873", f"--config={config}"]
        daemon = subprocess.Popen(inside(SOURCE, serve))
        time.sleep(1)
        yield
    finally:
        if daemon:
            daemon.terminate()
            daemon.wait(10)
        for namespace in (SOURCE, TARGET):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)
