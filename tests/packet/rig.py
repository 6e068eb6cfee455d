# SPDX-License-Identifier: Apache-2.0
"""A node for packets: the real filter, loaded in a namespace of its own and attached to one end of a cable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from farmd.dataplane.filter import Filter, Probe, purge
from farmd.dataplane.kernel import Program
from farmd.dataplane.planes import KernelPlanes
from farmd.dataplane.reasons import VERDICTS, Reason
from farmd.model.buckets import ALL_BUCKETS
from farmd.model.config import FarmConfig
from farmd.model.interfaces import InterfaceFacts
from farmd.model.planes import Planes
from farmd.model.rules import Affinity, Protocol, Rule
from farmd.model.siphash import bucket_of
from tests.unit import farms
from tests.unit.namespaces import Namespace

T = TypeVar("T")

NODE_MAC = "02:00:00:00:00:11"
CLIENT_MAC = "02:00:00:00:02:01"
VIRTUAL_MAC = farms.config().virtual_mac.hex(":")
VIP4, VIP6 = str(farms.VIP4), str(farms.VIP6)
CLIENT4, CLIENT6 = "10.77.0.201", "fd77::201"
NODE4, NODE6 = "10.77.0.11", "fd77::11"
STATES = ("own", "own+fresh", "held", "none")
KEY = farms.KEY

RULES = (
    Rule(1, "web", farms.VIP4, Protocol.TCP, 80, Affinity.CLIENT_IP, 0),
    Rule(2, "web6", farms.VIP6, Protocol.TCP, 80, Affinity.CLIENT_IP, 0),
    Rule(3, "api", farms.VIP4, Protocol.TCP, 8080, Affinity.CLIENT_IP_PORT, 1),
    Rule(4, "api6", farms.VIP6, Protocol.TCP, 8080, Affinity.CLIENT_IP_PORT, 1),
    Rule(5, "dns", farms.VIP4, Protocol.UDP, 53, Affinity.CLIENT_IP, 0),
    Rule(6, "dns6", farms.VIP6, Protocol.UDP, 53, Affinity.CLIENT_IP_PORT, 1),
)


def config(pin_dir: Path) -> FarmConfig:
    """The farm of these tests: TCP 80 by client-ip in group 0, TCP 8080 by client-ip-port in group 1, UDP 53."""
    return replace(farms.config(), rules=RULES, pin_dir=pin_dir)


class Rig:
    """Holds the lease and every bucket unless a test says otherwise. Leaving it as a context removes everything."""

    def __init__(self, name: str) -> None:
        self.pin_dir = Path(f"/sys/fs/bpf/farmd-test-{os.getpid()}-{name}")
        self.node, self.client = Namespace(), Namespace()
        self.node.wire("eth0", self.client, "eth0")
        self.node.ip(f"link set eth0 address {NODE_MAC}")
        self.client.ip(f"link set eth0 address {CLIENT_MAC}")
        self.config = config(self.pin_dir)
        self.facts = self.interface_facts("eth0")
        self.filter = self.attach()
        self.control = KernelPlanes.open(self.pin_dir)
        self.attached = Program.get(self.pin_dir / "filter")
        self.reset()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.control.close()
        self.attached.close()
        self.filter.close()
        self.run(purge, self.pin_dir)
        self.node.__exit__(None, None, None)
        self.client.__exit__(None, None, None)

    def run(self, call: Callable[..., T], *args: object, **kwargs: object) -> T:
        """What `call` returns on the node."""
        return self.node.run(call, *args, **kwargs)

    def interface_facts(self, name: str, kind: str = "veth") -> InterfaceFacts:
        """Facts of an interface of the node."""
        line = self.node.ip(f"-o link show {name}")
        index, mac = line.split(":")[0], line.split("link/ether ")[1].split()[0]
        return InterfaceFacts(name, int(index), bytes.fromhex(mac.replace(":", "")), kind, kind, 1500)

    def attach(self, settings: FarmConfig | None = None) -> Filter:
        """Attach as the daemon does when it starts."""
        return self.run(Filter.attach, settings or self.config, KEY, [self.facts])

    def reset(self) -> None:
        """Back to a node that owns everything."""
        self.run(self.filter.configure, self.config, KEY, [self.facts])
        self.hold_lease()
        self.state("own")

    def hold_lease(self, seconds: float = 3600) -> None:
        """Renew the lease."""
        self.control.renew(time.clock_gettime_ns(time.CLOCK_BOOTTIME) + round(seconds * 1e9))

    def state(self, name: str, *, buckets: int = ALL_BUCKETS, groups: tuple[int, ...] = (0, 1)) -> None:
        """Put `buckets` into one of `STATES`, and all others into none."""
        planes = {
            "own": Planes(own=buckets),
            "own+fresh": Planes(own=buckets, fresh=buckets),
            "held": Planes(held=buckets),
            "none": Planes(),
        }[name]
        for group in (0, 1):
            self.control.write(group, planes if group in groups else Planes())

    def counted(self, rule: int, reason: str) -> int:
        """How many packets were counted so."""
        return self.filter.counters().get((rule, Reason(reason)), 0)

    def judge(self, frame: bytes) -> Probe:
        """What the filter does with a frame; proves that twin and attached program agree, and that it counts right."""
        told = self.run(self.filter.probe, frame)
        before = self.filter.counters()
        done = self.run(self.attached.run_xdp, frame, self.facts.ifindex)
        after = self.filter.counters()
        counted = {at: after[at] - before.get(at, 0) for at in after if after[at] != before.get(at, 0)}
        assert VERDICTS[done.result] == told.verdict
        assert done.frame == told.frame
        assert counted == ({(told.rule, told.reason): 1} if told.reason else {})
        return told


def bucket_bit(client: str, port: int = 0) -> int:
    """The plane with just the bucket of this client (and port, for client-ip-port), by the oracle in pure Python."""
    affinity = Affinity.CLIENT_IP_PORT if port else Affinity.CLIENT_IP
    return 1 << bucket_of(KEY, affinity, ip_address(client), port)


def with_mac(frame: bytes, *, destination: str | None = None, source: str | None = None) -> bytes:
    """`frame` with other Ethernet addresses."""
    to = bytes.fromhex(destination.replace(":", "")) if destination else frame[:6]
    by = bytes.fromhex(source.replace(":", "")) if source else frame[6:12]
    return to + by + frame[12:]


def expect(told: Probe, frame: bytes, reason: str | None, rule: int = 0) -> None:
    """Assert reason, rule and verdict, and the frame: readdressed to the node if accepted, else untouched."""
    assert (told.reason, told.rule) == (Reason(reason) if reason else None, rule)
    if reason is None:
        assert (told.verdict, told.frame) == ("pass", frame)
    elif reason.startswith("accept-"):
        assert (told.verdict, told.frame) == ("pass", with_mac(frame, destination=NODE_MAC))
    else:
        assert (told.verdict, told.frame) == ("drop", frame)
