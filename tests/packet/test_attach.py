# SPDX-License-Identifier: Apache-2.0
"""Attaching: the first time, again, over what others left, and every way in which it can fail."""

from __future__ import annotations

import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from farmd.dataplane.filter import OBJECT, Filter, purge
from farmd.dataplane.kernel import Link, Map, load, xdp_presence
from farmd.dataplane.links import link_pin
from farmd.model.config import AttachMode, FarmConfig
from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts
from farmd.model.planes import Planes
from tests.packet.rig import CLIENT4, CLIENT6, KEY, VIP4, VIP6, VIRTUAL_MAC, Rig
from tests.packet.test_decision import packet

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fresh() -> Iterator[Rig]:
    """A rig for this test alone, which may break it."""
    with Rig("attach-alone") as rig:
        yield rig


@contextmanager
def second_farm(rig: Rig) -> Iterator[FarmConfig]:
    """The configuration of another filter on the same node, with nothing pinned yet."""
    settings = replace(rig.config, pin_dir=rig.pin_dir.with_name(rig.pin_dir.name + "-second"))
    try:
        yield settings
    finally:
        rig.run(purge, settings.pin_dir)


def extra(rig: Rig, name: str, kind: str = "veth") -> InterfaceFacts:
    """One more interface of the node."""
    rig.node.ip(f"link add {name} type veth peer name {name}-peer")
    rig.node.ip(f"link set {name} up")
    return rig.interface_facts(name, kind)


def test_veth_gets_generic_mode_and_says_why(rig: Rig) -> None:
    (one,) = rig.filter.attachments
    assert (one.interface, one.mode, one.reattached) == ("eth0", "generic", False)
    assert "virtual MAC" in one.reason
    assert rig.run(xdp_presence, rig.facts.ifindex).generic
    assert not rig.run(xdp_presence, rig.facts.ifindex).native


def test_pins_are_for_root_only(rig: Rig) -> None:
    assert rig.pin_dir.stat().st_mode & 0o077 == 0
    assert {path.name for path in rig.pin_dir.iterdir()} == {
        *("active", "tables", "planes", "routes", "macs", "lease", "counters", "fragments"),
        *("watch", "samples"),
        *("filter", "explain", "renew"),
        f"link-{rig.facts.ifindex}",
    }


def test_native_where_the_driver_can(rig: Rig) -> None:
    facts = extra(rig, "native0", kind="")  # a veth that says it is something else
    with second_farm(rig) as settings:
        made = rig.run(Filter.attach, replace(settings, interfaces=("native0",)), KEY, [facts])
        assert [one.mode for one in made.attachments] == ["native"]
        assert rig.run(xdp_presence, facts.ifindex).native
        made.close()
        made = rig.run(Filter.attach, replace(settings, interfaces=("native0",)), KEY, [facts])
        assert made.attachments[0].reason == "the driver supports it; the link of the last run goes on"
        made.close()


def test_generic_where_the_driver_cannot(rig: Rig) -> None:
    lo = InterfaceFacts("lo", 1, bytes(6), "loopback", "", 65536)
    with second_farm(rig) as settings:
        made = rig.run(Filter.attach, replace(settings, interfaces=("lo",)), KEY, [lo])
        (one,) = made.attachments
        assert (one.mode, one.reason) == ("generic", "loopback refused native XDP: Operation not supported")
        made.close()
        made = rig.run(Filter.attach, replace(settings, interfaces=("lo",)), KEY, [lo])
        assert made.attachments[0].reason.startswith("loopback had refused native XDP, or")
        made.close()


def test_native_by_order_fails_where_the_driver_cannot(rig: Rig) -> None:
    lo = InterfaceFacts("lo", 1, bytes(6), "loopback", "", 65536)
    with second_farm(rig) as settings:
        wanted = replace(settings, interfaces=("lo",), attach_mode=AttachMode.NATIVE)
        with pytest.raises(KernelError, match=r'refused native XDP.*`attach_mode = "auto"`'):
            rig.run(Filter.attach, wanted, KEY, [lo])


def test_a_restart_keeps_everything(fresh: Rig) -> None:
    planes = Planes(own=0b1110, held=0b1, fresh=0b100)
    fresh.judge(packet("syn", 4))
    fresh.control.write(1, planes)
    counters = fresh.filter.counters()

    again = fresh.attach()

    (one,) = again.attachments
    assert (one.reattached, again.fresh_maps) == (True, False)
    assert one.reason.endswith("virtual MAC would be lost; the link of the last run goes on")
    assert fresh.control.read(1) == planes
    assert fresh.control.lease_left_ns() > 0
    assert again.counters() == counters
    with Link.get(link_pin(fresh.pin_dir, fresh.facts.ifindex)) as link:
        assert link.target()[0] == again._loaded.programs["farm_filter"].identity()[0]
    again.close()


def test_no_frame_passes_unfiltered_while_farmd_restarts(fresh: Rig) -> None:
    """Frames without a rule are dropped and counted: every one, through ten restarts."""
    fresh.node.ip("addr add 10.77.0.11/24 dev eth0")
    before = fresh.counted(0, "drop-no-rule")
    wire = fresh.client.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    wire.bind(("eth0", 0))
    frame, sent = packet("syn", 4, 9), 0
    for _ in range(10):
        for _ in range(100):
            sent += wire.send(frame) == len(frame)
        made = fresh.attach()
        made.close()
    wire.close()
    assert sent == 1000
    assert fresh.counted(0, "drop-no-rule") - before == sent


def test_kill_9_leaves_the_filter_and_the_next_farmd_takes_it_over(rig: Rig) -> None:
    facts = extra(rig, "killed0")
    code = (
        "import pickle, sys, time\n"
        "from farmd.dataplane.filter import Filter\n"
        "kept = Filter.attach(*pickle.load(sys.stdin.buffer))\n"
        "print('attached', flush=True)\n"
        "time.sleep(60)\n"
    )
    with second_farm(rig) as settings:
        settings = replace(settings, interfaces=("killed0",))
        loader: subprocess.Popen[bytes] = rig.run(
            subprocess.Popen, [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert loader.stdin is not None
        assert loader.stdout is not None
        with loader:
            loader.stdin.write(pickle.dumps((settings, KEY, [facts])))
            loader.stdin.close()
            assert loader.stdout.readline() == b"attached\n"
            loader.send_signal(signal.SIGKILL)
            assert loader.wait() == -signal.SIGKILL
        left = rig.run(xdp_presence, facts.ifindex).generic
        assert left

        made = rig.run(Filter.attach, settings, KEY, [facts])
        assert made.attachments[0].reattached
        assert rig.run(xdp_presence, facts.ifindex).generic not in (0, left)
        made.close()


def test_a_foreign_program_is_named_and_left_alone(rig: Rig) -> None:
    facts = extra(rig, "foreign0")
    foreign = load(OBJECT, {}, ("farm_explain",))
    with second_farm(rig) as settings, rig.run(Link.create, foreign.programs["farm_explain"], facts.ifindex, 0):
        number = foreign.programs["farm_explain"].identity()[0]
        with pytest.raises(KernelError, match=rf"foreign0: another XDP program .* farm_explain \(id {number}\)"):
            rig.run(Filter.attach, replace(settings, interfaces=("foreign0",)), KEY, [facts])
        assert rig.run(xdp_presence, facts.ifindex).any == number
    foreign.close()


def test_another_layout_begins_with_fresh_maps(fresh: Rig) -> None:
    with Map.get(fresh.pin_dir / "active") as active:
        generation = active.read(0, 8)[:4]
        active.write(0, generation + (99).to_bytes(4, "little"))
    again = fresh.attach()
    assert again.fresh_maps
    assert again.attachments[0].reattached
    assert "fresh maps: the last run had layout 99" in again.attachments[0].reason
    again.close()

    with Map.get(fresh.pin_dir / "lease") as other:
        other.pin(fresh.pin_dir / "planes")
    again = fresh.attach()
    assert "fresh maps: farm_planes has another layout now" in again.attachments[0].reason
    with Map.get(fresh.pin_dir / "lease") as lease:
        assert lease.read(0, 8) == bytes(8)  # closed until an engine opens it
    again.close()


def test_another_mode_by_order(fresh: Rig) -> None:
    made = fresh.attach(replace(fresh.config, attach_mode=AttachMode.NATIVE))
    (one,) = made.attachments
    assert (one.mode, one.reattached, one.reason) == ("native", False, "farm.toml says so; was generic before")
    made.close()

    made = fresh.attach(replace(fresh.config, attach_mode=AttachMode.NATIVE))
    assert made.attachments[0].reason == "farm.toml says so; the link of the last run goes on"
    made.close()


def test_auto_after_an_order_does_not_leave_a_veth_native(fresh: Rig) -> None:
    """There native mode loses every frame to the virtual MAC, so nobody but an order may have it."""
    fresh.attach(replace(fresh.config, attach_mode=AttachMode.NATIVE)).close()

    made = fresh.attach()
    (one,) = made.attachments
    assert (one.mode, one.reattached) == ("generic", False)
    assert one.reason.endswith("frames to the virtual MAC would be lost; was native before")
    assert fresh.run(xdp_presence, fresh.facts.ifindex).native == 0
    made.close()
    made = fresh.attach()
    assert made.attachments[0].reattached
    made.close()


def test_auto_after_an_order_leaves_another_driver_as_it_is(rig: Rig) -> None:
    """Both modes work there; a change would leave a moment without a filter."""
    facts = extra(rig, "ordered0", kind="")
    with second_farm(rig) as settings:
        ordered = replace(settings, interfaces=("ordered0",), attach_mode=AttachMode.GENERIC)
        rig.run(Filter.attach, ordered, KEY, [facts]).close()
        made = rig.run(Filter.attach, replace(ordered, attach_mode=AttachMode.AUTO), KEY, [facts])
        (one,) = made.attachments
        assert (one.mode, one.reattached) == ("generic", True)
        assert "farm.toml had asked for generic mode" in one.reason
        made.close()


def test_an_interface_that_is_no_longer_named_is_released(fresh: Rig) -> None:
    facts = extra(fresh, "second0")
    both = fresh.run(Filter.attach, replace(fresh.config, interfaces=("eth0", "second0")), KEY, [fresh.facts, facts])
    assert [one.reattached for one in both.attachments] == [True, False]
    both.close()

    fresh.attach().close()
    assert fresh.run(xdp_presence, facts.ifindex).any == 0
    assert fresh.run(xdp_presence, fresh.facts.ifindex).any


def test_an_interface_that_went_away_and_came_back(fresh: Rig) -> None:
    gone = extra(fresh, "plugged0")
    settings = replace(fresh.config, interfaces=("eth0", "plugged0"))
    fresh.run(Filter.attach, settings, KEY, [fresh.facts, gone]).close()
    fresh.node.ip("link del plugged0")
    back = extra(fresh, "plugged0")
    assert back.ifindex != gone.ifindex

    made = fresh.run(Filter.attach, settings, KEY, [fresh.facts, back])
    assert [one.reattached for one in made.attachments] == [True, False]
    assert not link_pin(fresh.pin_dir, gone.ifindex).exists()
    made.close()


def test_detach_leaves_nothing(rig: Rig) -> None:
    facts = extra(rig, "brief0")
    with second_farm(rig) as settings:
        made = rig.run(Filter.attach, replace(settings, interfaces=("brief0",)), KEY, [facts])
        rig.run(made.detach)
        assert rig.run(xdp_presence, facts.ifindex).any == 0
        assert not settings.pin_dir.exists()
        rig.run(purge, settings.pin_dir)  # nothing to do is no error


def test_an_interface_that_does_not_exist(rig: Rig) -> None:
    with pytest.raises(KernelError, match=r"interface eth7: there is no such interface \(there are: eth0\)"):
        rig.attach(replace(rig.config, interfaces=("eth7",)))
    vanished = replace(rig.facts, name="eth8", ifindex=4711)
    with second_farm(rig) as settings, pytest.raises(KernelError, match="interface"):
        rig.run(Filter.attach, replace(settings, interfaces=("eth8",)), KEY, [vanished])


def test_a_compiled_filter_that_is_missing_or_is_none(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"cannot be read: No such file.*cext/build\.py"):
        rig.run(Filter.attach, rig.config, KEY, [rig.facts], object_path=tmp_path / "none.o")
    (tmp_path / "text.o").write_text("no ELF file")
    with pytest.raises(KernelError, match=r"no compiled filter.*cext/build\.py"):
        rig.run(Filter.attach, rig.config, KEY, [rig.facts], object_path=tmp_path / "text.o")


def test_pins_belong_on_a_bpffs(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="not on a bpffs"):
        rig.attach(replace(rig.config, pin_dir=tmp_path / "pins"))


def test_without_privilege() -> None:
    code = (
        "import os\n"
        "from farmd.dataplane.filter import OBJECT\n"
        "from farmd.dataplane.kernel import load\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "load(OBJECT, {}, ('farm_filter',))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Run it as root, or give it CAP_BPF" in done.stderr


def test_a_missing_bpffs_is_mounted() -> None:
    code = (
        "from pathlib import Path\n"
        "from farmd.dataplane import bpffs\n"
        "bpffs.prepare(Path('/sys/fs/bpf/farmd-test-mount/node'))\n"
        "print('mounted' if Path('/sys/fs/bpf/farmd-test-mount/node').is_dir() else 'missing')\n"
    )
    script = 'while umount /sys/fs/bpf 2>/dev/null; do :; done; exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("mounted\n", "")
    assert not Path("/sys/fs/bpf/farmd-test-mount").exists()  # it was another mount than ours


class TestOnTheWire:
    """The attached filter on live traffic: the client's stack asks for the VIP, connects, and is answered."""

    @pytest.fixture
    def wired(self) -> Iterator[Rig]:
        with Rig("attach-wire") as rig:
            for space, four, six in ((rig.node, "10.77.0.11", "fd77::11"), (rig.client, CLIENT4, CLIENT6)):
                space.ip(f"addr add {four}/24 dev eth0")
                space.ip(f"addr add {six}/64 dev eth0 nodad")
            rig.node.ip(f"addr add {VIP4}/32 dev lo")
            rig.node.ip(f"addr add {VIP6}/128 dev lo nodad")
            for knob, value in (("arp_ignore", "1"), ("arp_announce", "2")):
                rig.run(Path(f"/proc/sys/net/ipv4/conf/all/{knob}").write_text, value)
            yield rig

    @pytest.mark.parametrize(("family", "vip"), [(socket.AF_INET, VIP4), (socket.AF_INET6, VIP6)], ids=["v4", "v6"])
    def test_a_client_connects(self, wired: Rig, family: int, vip: str) -> None:
        def listen() -> socket.socket:
            made = socket.socket(family)
            made.bind((vip, 80))
            made.listen()
            return made

        with wired.run(listen) as listening, wired.client.run(socket.socket, family) as client:
            client.settimeout(10)
            client.connect((vip, 80))
            listening.settimeout(10)
            listening.accept()[0].close()
        assert VIRTUAL_MAC in wired.client.ip(f"neigh show {vip}")
        assert wired.counted(0, "arp-answered" if vip == VIP4 else "nd-answered") >= 1
        assert wired.counted(1 if vip == VIP4 else 2, "accept-own") >= 3

    def test_nobody_answers_for_a_bucket_of_another_node(self, wired: Rig) -> None:
        wired.state("none")
        wired.client.ip(f"neigh replace {VIP4} lladdr {VIRTUAL_MAC} dev eth0")
        with wired.client.run(socket.socket) as client:
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.connect((VIP4, 80))
        assert wired.counted(1, "drop-not-owner") >= 1

    def test_the_switch_never_learns_the_virtual_mac(self, wired: Rig) -> None:
        wire = wired.client.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.bind(("eth0", 0))
        with wire, wired.client.run(socket.socket) as client:
            client.settimeout(0.5)
            with pytest.raises(OSError, match="refused"):
                client.connect((VIP4, 80))  # nobody listens; the node's stack says so
            wire.setblocking(False)
            frames = list(iter(partial(_received, wire), b""))
        virtual = bytes.fromhex(VIRTUAL_MAC.replace(":", ""))
        assert any(virtual in frame for frame in frames)
        assert not any(frame[6:12] == virtual for frame in frames)


def _received(wire: socket.socket) -> bytes:
    """The next frame, or nothing if there is none."""
    try:
        return wire.recv(2048)
    except BlockingIOError:
        return b""
