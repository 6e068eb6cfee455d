# SPDX-License-Identifier: Apache-2.0
"""The flooding test's frames and judgement, and what the doctor reads on the wire and from /proc."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from farmd.doctor import flood
from farmd.doctor.ask_host import bpffs_of
from farmd.doctor.finding import Level
from farmd.doctor.flood import Hail, Kind, Tally
from farmd.doctor.wire import read_claim
from farmd.model.config import FarmConfig
from farmd.net import portholder
from tests.unit import farms

FARM = farms.config()
OTHER = replace(FARM, me=FARM.members[1])
MAC = bytes.fromhex("02000000000b")


def exchange(rounds: int, *, flooded: bool, back: bool = True) -> tuple[Tally, Tally]:
    """Two nodes that take part; `flooded`: frames to the virtual MAC reach the second; `back`: the first."""
    one, two = Tally(0), Tally(1)
    for _ in range(rounds):
        for kind in Kind:
            if kind is Kind.BROADCAST or flooded:
                two.take(one.hail(kind))
            if kind is Kind.BROADCAST or back:
                one.take(two.hail(kind))
    return one, two


def levels(config: FarmConfig, tally: Tally) -> dict[str, str]:
    return {finding.text: finding.level for finding in flood.judge(config, "eth0", tally)}


def test_a_hail_survives_the_wire() -> None:
    for kind in Kind:
        hail = Hail(kind, 1, 0b101, 0b1)
        frame = flood.encode(OTHER, MAC, hail)
        assert len(frame) >= 60
        assert frame[6:12] == MAC, "never the virtual MAC as a source"
        assert flood.decode(FARM, frame) == hail


def test_what_is_not_ours_is_passed_over() -> None:
    frame = flood.encode(OTHER, MAC, Hail(Kind.VIRTUAL, 1, 0, 0))
    assert flood.decode(replace(FARM, farm="another"), frame) is None
    assert flood.decode(OTHER, frame) is None, "our own frame, come back"
    assert flood.decode(FARM, frame[:20]) is None
    assert flood.decode(FARM, frame.replace(b"fdr1", b"xxxx")) is None
    wrong_way = flood.BROADCAST + frame[6:]
    assert flood.decode(FARM, wrong_way) is None, "a broadcast proves nothing about flooding"
    assert flood.decode(FARM, frame[:19] + b"\x09" + frame[20:]) is None


def test_a_switch_that_floods_is_well_on_both_sides() -> None:
    one, two = exchange(3, flooded=True)

    assert levels(FARM, one)["eth0: frames to the virtual MAC arrive from and at node2"] == Level.OK
    assert levels(OTHER, two)["eth0: frames to the virtual MAC arrive from and at node1"] == Level.OK


def test_a_port_that_does_not_flood_fails_on_both_sides() -> None:
    one, two = exchange(3, flooded=False)

    assert levels(FARM, one)["eth0: node2 gets our broadcasts, but not our frames to the virtual MAC"] == Level.FAIL
    assert levels(OTHER, two)["eth0: broadcasts of node1 arrive, its frames to the virtual MAC do not"] == Level.FAIL


def test_who_takes_no_part_is_a_warning() -> None:
    findings = list(flood.judge(FARM, "eth0", Tally(0)))

    assert [finding.level for finding in findings] == [Level.WARN, Level.WARN]
    assert "on node2 at the same time" in findings[0].fix


def test_an_answer_that_came_too_late_is_a_warning() -> None:
    tally = Tally(0)
    tally.take(Hail(Kind.BROADCAST, 1, 0, 0))
    tally.take(Hail(Kind.VIRTUAL, 1, 0, 0))

    assert (
        levels(FARM, tally)["eth0: frames of node2 to the virtual MAC arrive; it did not say in time whether ours do"]
        == Level.WARN
    )


VIPS = (farms.VIP4, farms.VIP6)


def test_claims_are_read_from_arp_and_neighbour_discovery() -> None:
    reply = ARP(op=2, hwsrc="02:00:00:00:be:ef", psrc="10.77.0.100", hwdst="02:00:00:00:00:0b", pdst="0.0.0.0")
    advert = IPv6(src="fd77::1", dst="ff02::1") / ICMPv6ND_NA(tgt="fd77::100")
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:0b")

    assert read_claim(bytes(ether / reply), VIPS) == (farms.VIP4, bytes.fromhex("02000000beef"))
    with_option = ether / advert / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:be:ef")
    assert read_claim(bytes(with_option), VIPS) == (IPv6Address("fd77::100"), bytes.fromhex("02000000beef"))
    assert read_claim(bytes(ether / advert), VIPS) == (IPv6Address("fd77::100"), bytes.fromhex("020000000001"))
    reply.op = 1
    assert read_claim(bytes(ether / reply), VIPS) is None
    assert read_claim(b"", VIPS) is None


MOUNTS = [
    "22 1 0:20 / / rw - ext4 /dev/vda rw",
    "30 22 0:25 / /sys/fs/bpf rw,relatime shared:9 - bpf bpf rw,mode=700",
    "31 22 0:26 / /var rw - tmpfs tmpfs rw",
]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("/sys/fs/bpf/farmd", "/sys/fs/bpf"), ("/sys/fs/bpf", "/sys/fs/bpf"), ("/var/pins", None), ("/else", None)],
)
def test_the_bpffs_of_a_folder(folder: str, expected: str | None) -> None:
    assert bpffs_of(Path(folder), MOUNTS) == expected


def test_a_later_mount_covers_an_earlier_one() -> None:
    assert bpffs_of(Path("/sys/fs/bpf/farmd"), [*MOUNTS, "40 30 0:30 / /sys/fs/bpf rw - tmpfs tmpfs rw"]) is None


def test_the_holder_of_a_port_is_found_by_address_or_any() -> None:
    def row(local: str, inode: int) -> str:
        return f"  1: {local} 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 {inode} 2 0 0"

    here = struct.unpack("<I", ip_address("10.77.0.11").packed)[0]
    lines = ["  sl  local_address rem_address", row(f"{here:08X}:12C4", 11), row("00000000:12C4", 12)]
    lines += [row(f"{here:08X}:12C5", 13), row("0100007F:12C4", 14)]
    assert portholder.sockets(lines, ip_address("10.77.0.11"), 4804) == [11, 12]

    v6 = "000077FD" + "0" * 16 + "11000000"
    assert portholder.sockets([row(f"{v6}:12C4", 21), row(f"{'0' * 32}:12C4", 22)], ip_address("fd77::11"), 4804) == [
        21,
        22,
    ]
