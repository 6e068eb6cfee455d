# SPDX-License-Identifier: Apache-2.0
"""A host that has VIPs and keeps quiet about them, asked by a neighbour on a wire."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from farmd.model import farmfile
from farmd.model.config import Delivery, FarmConfig
from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts
from farmd.net import interfaces, setup, sysctl
from farmd.net.setup import Acceptance
from tests.unit.namespaces import Namespace

pytestmark = pytest.mark.root

FARM = """
[farm]
name = "web"
[node]
interfaces = ["eth0"]
state_dir = "state"
[[member]]
name = "node1"
number = 0
addresses = ["10.1.0.1"]
[[vip]]
address = "10.1.0.100"
[[vip]]
address = "fd01::100"
"""


@dataclass(frozen=True)
class Bench:
    """A host under test, and a neighbour at the other end of its eth0."""

    host: Namespace
    neighbour: Namespace
    config: FarmConfig
    facts: tuple[InterfaceFacts, ...]

    def apply(self) -> setup.Applied:
        return self.host.run(setup.apply, self.config, self.facts)

    def remove(self) -> tuple[str, ...]:
        return self.host.run(setup.remove, self.config)

    def addresses(self) -> list[dict[str, Any]]:
        (lo,) = json.loads(self.host.ip("-json address show lo"))
        return [a for a in lo["addr_info"] if a["local"] not in ("127.0.0.1", "::1")]

    def macs(self) -> str:
        return self.host.shell("bridge fdb show dev eth0")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Namespace() as host, Namespace() as neighbour:
        host.wire("eth0", neighbour, "eth0")
        for side, number in ((host, 1), (neighbour, 2)):
            side.ip(f"address add 10.1.0.{number}/24 dev eth0")
            side.ip(f"address add fd01::{number}/64 dev eth0 nodad")
        config = farmfile.parse(FARM, tmp_path / "farm.toml", host_name="node1")
        yield Bench(host, neighbour, config, host.run(interfaces.facts, config.interfaces))


def test_vips_are_on_lo_where_nothing_picks_them_as_a_source(bench: Bench) -> None:
    bench.apply()

    v4, v6 = sorted(bench.addresses(), key=lambda address: str(address["family"]))
    assert (v4["local"], v4["prefixlen"], v4["scope"]) == ("10.1.0.100", 32, "host")
    assert (v6["local"], v6["prefixlen"], v6["preferred_life_time"]) == ("fd01::100", 128, 0)
    assert v6["nodad"]
    assert not v6.get("tentative")


def test_a_second_time_changes_nothing(bench: Bench) -> None:
    first = bench.apply()
    state = (bench.addresses(), bench.macs())

    second = bench.apply()

    assert first.changes
    assert second.changes == ()
    assert second.acceptance == first.acceptance
    assert (bench.addresses(), bench.macs()) == state


@pytest.mark.parametrize("vip", ["10.1.0.100", "fd01::100"])
def test_a_neighbour_learns_nothing_of_a_vip(bench: Bench, vip: str) -> None:
    bench.apply()

    bench.neighbour.run(_poke, vip)

    assert _neighbour_state(bench.neighbour, vip) in ("INCOMPLETE", "FAILED")


def test_the_kernel_would_have_told_without_the_settings(bench: Bench) -> None:
    """The IPv4 case above proves something only if the question reaches the host and is answered by default."""
    bench.apply()
    for name in ("all", "eth0"):
        bench.host.run(sysctl.write, f"ipv4/conf/{name}/arp_ignore", 0)

    bench.neighbour.run(_poke, "10.1.0.100")

    assert _neighbour_state(bench.neighbour, "10.1.0.100") == "REACHABLE"


def test_the_host_asks_in_its_own_name_even_when_it_sends_from_a_vip(bench: Bench) -> None:
    bench.apply()

    bench.host.run(_poke, "10.1.0.2", "10.1.0.100")
    bench.host.run(_poke, "fd01::2", "fd01::100")

    assert _neighbour_state(bench.host, "10.1.0.2") == "REACHABLE"
    assert _neighbour_state(bench.host, "fd01::2") == "REACHABLE"
    assert _knows(bench.neighbour) <= {"10.1.0.1", "fd01::1"}


def test_a_host_that_lost_its_address_does_not_speak_as_the_vip(bench: Bench) -> None:
    bench.apply()
    bench.host.ip("address flush dev eth0")
    bench.host.ip("route add 10.1.0.0/24 dev eth0")

    bench.host.run(_poke, "10.1.0.2")

    assert "10.1.0.100" not in _knows(bench.neighbour)


def test_frames_for_the_virtual_mac_reach_the_stack(bench: Bench) -> None:
    applied = bench.apply()

    assert applied.acceptance == {"eth0": Acceptance.PROMISCUOUS}  # a veth has no unicast filter
    assert f"{bench.config.virtual_mac.hex(':')} self permanent" in bench.macs()


def test_the_group_of_a_multicast_farm_is_joined_and_left(bench: Bench) -> None:
    group = bytes.fromhex("03fa12000001")
    config = replace(bench.config, delivery=Delivery.MULTICAST, virtual_mac=group)

    assert bench.host.run(setup.apply, config, bench.facts).acceptance == {"eth0": Acceptance.MULTICAST_FILTER}
    assert f"{group.hex(':')} self permanent" in bench.macs()
    assert "PROMISC" not in bench.host.ip("link show eth0")
    assert bench.host.run(setup.apply, config, bench.facts).changes == ()

    bench.host.run(setup.remove, config, bench.facts)
    assert group.hex(":") not in bench.macs()


def test_a_directed_farm_has_no_virtual_mac_and_takes_an_earlier_one_back(bench: Bench) -> None:
    bench.apply()
    config = replace(bench.config, delivery=Delivery.DIRECTED)

    assert bench.host.run(setup.apply, config, bench.facts).acceptance == {"eth0": Acceptance.OWN_MAC}
    assert bench.config.virtual_mac.hex(":") not in bench.macs()


def test_a_nic_that_takes_no_more_addresses_becomes_promiscuous(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise NetlinkError(errno.EOPNOTSUPP)

    monkeypatch.setattr(setup, "_filter_entry", no_room)

    assert bench.apply().acceptance == {"eth0": Acceptance.PROMISCUOUS}
    assert "PROMISC" in bench.host.ip("link show eth0")
    assert bench.apply().changes == ()

    bench.remove()
    assert "PROMISC" not in bench.host.ip("link show eth0")


def test_a_promiscuous_nic_of_someone_else_stays_so(bench: Bench) -> None:
    bench.host.ip("link set eth0 promisc on")

    bench.apply()
    bench.remove()

    assert "PROMISC" in bench.host.ip("link show eth0")


def test_strict_reverse_path_filtering_is_loosened_only_where_it_is_on(bench: Bench) -> None:
    bench.host.run(sysctl.write, "ipv4/conf/all/rp_filter", 0)
    bench.host.run(sysctl.write, "ipv4/conf/eth0/rp_filter", 0)
    bench.apply()
    assert bench.host.run(sysctl.read, "ipv4/conf/eth0/rp_filter") == 0

    bench.host.run(sysctl.write, "ipv4/conf/all/rp_filter", 1)
    bench.apply()
    assert bench.host.run(sysctl.read, "ipv4/conf/eth0/rp_filter") == 2

    bench.remove()
    assert bench.host.run(sysctl.read, "ipv4/conf/eth0/rp_filter") == 0


def test_remove_restores_what_was_there(bench: Bench) -> None:
    before = (bench.addresses(), bench.macs(), _settings(bench))
    bench.apply()
    assert _settings(bench) == [1, 2, 1, 2]

    undone = bench.remove()

    assert (bench.addresses(), bench.macs(), _settings(bench)) == before
    assert "net.ipv4.conf.eth0.arp_ignore is 0 again" in undone
    assert bench.remove() == ()


def test_remove_leaves_what_others_set(bench: Bench) -> None:
    bench.host.ip("address add 10.1.0.100/32 dev lo")
    bench.apply()
    bench.host.run(sysctl.write, "ipv4/conf/all/arp_ignore", 2)

    bench.remove()

    assert [address["local"] for address in bench.addresses()] == ["10.1.0.100"]
    assert bench.host.run(sysctl.read, "ipv4/conf/all/arp_ignore") == 2


def test_a_stricter_setting_stays(bench: Bench) -> None:
    bench.host.run(sysctl.write, "ipv4/conf/eth0/arp_ignore", 2)

    bench.apply()

    assert bench.host.run(sysctl.read, "ipv4/conf/eth0/arp_ignore") == 2


def test_what_the_farm_no_longer_has_is_taken_back(bench: Bench) -> None:
    bench.apply()
    other = replace(bench.config, vips=(ip_address("10.1.0.101"),), virtual_mac=bytes.fromhex("02fa00000009"))

    bench.host.run(setup.apply, other, bench.facts)

    assert [address["local"] for address in bench.addresses()] == ["10.1.0.101"]
    assert bench.config.virtual_mac.hex(":") not in bench.macs()
    assert "02:fa:00:00:00:09" in bench.macs()


def test_without_its_record_remove_still_takes_the_vips_away(bench: Bench) -> None:
    bench.apply()
    (bench.config.state_dir / "net.json").write_text("{damaged")
    (bench.config.state_dir / "net.json").unlink()

    bench.host.run(setup.remove, bench.config, bench.facts)

    assert bench.addresses() == []
    assert bench.config.virtual_mac.hex(":") not in bench.macs()


def test_a_vip_on_a_real_interface_is_refused(bench: Bench) -> None:
    bench.host.ip("address add 10.1.0.100/24 dev eth0")

    with pytest.raises(KernelError, match=r"VIP 10\.1\.0\.100: it is configured on eth0.*ip address del"):
        bench.apply()


def test_a_nic_that_has_the_virtual_mac_is_refused(bench: Bench) -> None:
    config = replace(bench.config, virtual_mac=bench.facts[0].mac)

    with pytest.raises(KernelError, match="interface eth0: its own MAC address is the farm's virtual MAC"):
        bench.host.run(setup.apply, config, bench.facts)


def test_ipv6_switched_off_is_said(bench: Bench) -> None:
    bench.host.run(sysctl.write, "ipv6/conf/lo/disable_ipv6", 1)

    with pytest.raises(KernelError, match="VIP fd01::100: IPv6 is switched off on lo"):
        bench.apply()


def test_a_state_folder_that_cannot_be_written_changes_nothing(bench: Bench) -> None:
    config = replace(bench.config, state_dir=Path("/proc/no"))

    with pytest.raises(KernelError, match=r"/proc/no/net\.json: it cannot be written"):
        bench.host.run(setup.apply, config, bench.facts)

    assert bench.addresses() == []
    assert _settings(bench) == [0, 0, 0, 0]


def test_a_setting_is_spelt_as_sysctl_does() -> None:
    assert sysctl.spoken("ipv4/conf/eth0.5/arp_ignore") == "net.ipv4.conf.eth0/5.arp_ignore"
    assert sysctl.read("ipv4/conf/no-such-interface/arp_ignore") is None


def _settings(bench: Bench) -> list[int | None]:
    names = [f"ipv4/conf/{name}/{what}" for name in ("all", "eth0") for what in ("arp_ignore", "arp_announce")]
    return [bench.host.run(sysctl.read, name) for name in names]


def _poke(address: str, source: str | None = None) -> None:
    """Makes the kernel look for a neighbour: a datagram to the discard port."""
    import socket

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as out:
        if source:
            out.bind((source, 0))
        out.sendto(b"", (address, 9))


def _knows(where: Namespace) -> set[str]:
    """The addresses whose MAC address is known there, link-local ones left out."""
    entries = json.loads(where.ip("-json neighbour show"))
    return {entry["dst"] for entry in entries if "lladdr" in entry and not entry["dst"].startswith("fe80:")}


def _neighbour_state(where: Namespace, address: str) -> str:
    """The state of a neighbour entry once it is decided; INCOMPLETE if half a second decides nothing."""
    state = "NONE"
    for _ in range(50):
        entries = json.loads(where.ip(f"-json neighbour show {address}"))
        state = entries[0]["state"][0] if entries else "NONE"
        if state not in ("NONE", "INCOMPLETE"):
            break
        time.sleep(0.01)
    return state


def test_behind_a_balancer_vips_come_and_go_with_on_host(bench: Bench) -> None:
    """First a farm with a filter; then a balancer that rewrites the VIPs; then one that keeps one of them."""
    bench.apply()
    external = replace(bench.config, delivery=Delivery.EXTERNAL, outside_vips=frozenset(bench.config.vips))
    bench.host.run(setup.retire, external)
    applied = bench.host.run(setup.apply, external, bench.facts)
    assert applied.acceptance == {}
    assert bench.addresses() == []
    assert bench.config.virtual_mac.hex(":") not in bench.macs()

    kept = replace(external, outside_vips=frozenset({ip_address("fd01::100")}))
    bench.host.run(setup.apply, kept, bench.facts)
    assert [one["local"] for one in bench.addresses()] == ["10.1.0.100"]
    assert bench.host.run(sysctl.read, "ipv4/conf/eth0/arp_ignore") == 1
    assert bench.config.virtual_mac.hex(":") not in bench.macs()


def test_behind_a_balancer_a_vip_that_is_there_already_is_left_alone(bench: Bench) -> None:
    external = replace(bench.config, delivery=Delivery.EXTERNAL)
    bench.host.ip("address add 10.1.0.100/32 dev eth0")
    bench.host.run(setup.apply, external, bench.facts)
    assert [one["local"] for one in bench.addresses()] == ["fd01::100"]
    bench.host.run(setup.remove, external)
    assert "10.1.0.100" in bench.host.ip("address show eth0")
