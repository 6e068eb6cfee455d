# SPDX-License-Identifier: Apache-2.0
"""A small farm as values, for tests that need one."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from farmd.daemon.report import EngineReport, PeerReport
from farmd.model.buckets import NO_OWNERS
from farmd.model.config import TIMINGS, AttachMode, Delivery, FarmConfig, Member, Profile
from farmd.model.nodes import BootId, MemberState, NodeId, Role
from farmd.model.planes import Planes
from farmd.model.rules import Affinity, Group, Protocol, Rule
from farmd.model.view import Ballot, View, successor, weights_table

KEY = bytes(range(16))
VIP4, VIP6 = ip_address("10.77.0.100"), ip_address("fd77::100")
NODES = tuple(NodeId(number) for number in range(3))


def config(folder: Path = Path("/nowhere"), profile: Profile = Profile.EXCLUSIVE) -> FarmConfig:
    """Three nodes of weight 100; web on both VIPs by client-ip, api by client-ip-port in a group of its own."""
    members = tuple(
        Member(node, f"node{node + 1}", Role.NODE, (ip_address(f"10.77.0.{11 + node}"),), 100) for node in NODES
    )
    return FarmConfig(
        path=folder / "farm.toml",
        farm="test",
        key_file=folder / "farm.key",
        profile=profile,
        timing=TIMINGS["default"],
        delivery=Delivery.FLOOD,
        virtual_mac=bytes.fromhex("02fa12000001"),
        gateway=None,
        port=4804,
        me=members[0],
        members=members,
        voters=frozenset(NODES),
        vips=(VIP4, VIP6),
        groups=(Group(0, "default"), Group(1, "heavy")),
        rules=(
            Rule(1, "web", VIP4, Protocol.TCP, 80, Affinity.CLIENT_IP, 0),
            Rule(2, "web6", VIP6, Protocol.TCP, 80, Affinity.CLIENT_IP, 0),
            Rule(3, "api", VIP4, Protocol.TCP, 8080, Affinity.CLIENT_IP_PORT, 1),
        ),
        weights=(dict.fromkeys(NODES, 100), dict.fromkeys(NODES, 100)),
        interfaces=("eth0",),
        attach_mode=AttachMode.AUTO,
        drop_without_rule=True,
        drain_deadline_s=3600.0,
        api_socket=folder / "api.sock",
        engine_socket=folder / "engine.sock",
        pin_dir=folder / "pins",
        state_dir=folder / "state",
    )


def view(members: frozenset[NodeId] = frozenset(NODES), drained: frozenset[NodeId] = frozenset()) -> View:
    """A view of both groups with `members`."""
    table = weights_table(dict.fromkeys(NODES, 100))
    nothing = View(Ballot(0, NodeId(0), BootId(0)), frozenset(), frozenset(), (table, table), (NO_OWNERS, NO_OWNERS))
    return successor(nothing, Ballot(7, NodeId(0), BootId(0xABCD)), members, drained=drained)


def report(the_view: View | None, *, deadline_ns: int = 10**12, exclusive: bool = True) -> EngineReport:
    """What the engine of node 0 would say at instant 10**12 - 4 * 10**8 of its clock."""
    planes = (Planes(), Planes()) if the_view is None else tuple(Planes(own=own) for own in the_view.shares(NODES[0]))
    return EngineReport(
        at_ns=10**12 - 4 * 10**8,
        pid=1,
        boot=BootId(5),
        fingerprint="f",
        phase="serving",
        exclusive=exclusive,
        view=the_view,
        started=True,
        view_since_ns=10**9,
        deadline_ns=deadline_ns,
        planes=planes,
        peers=tuple(PeerReport(node, MemberState.UP, 10**9, 10**12 - 5 * 10**8, 10 * node, 0) for node in NODES),
        warnings=(),
        dropped={"replayed": 2},
    )
