# SPDX-License-Identifier: Apache-2.0
"""A valid farm.toml and what it becomes."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from farmd.model import farmfile
from farmd.model.config import TIMINGS, AttachMode, Delivery, FarmConfig, Profile
from farmd.model.errors import ConfigError
from farmd.model.nodes import Role
from farmd.model.rules import Affinity, Group, Protocol, Rule, RuleBook

SMALL = """
[farm]
name = "web"
[[member]]
name = "node1"
number = 0
addresses = ["10.77.0.11"]
"""

FULL = """
[farm]
name = "web"
key_file = "keys/farm.key"
profile = "exclusive"
timing = "fast"
delivery = "flood"
virtual_mac = "02-FA-00-00-00-09"
gateway = "10.77.0.254"
port = 4900
voters = ["node2", "node1", "third"]
drop_without_rule = false
drain_deadline_s = 90
[node]
name = "node2"
interfaces = ["eth0", "eth1.5"]
attach_mode = "native"
api_socket = "api.sock"
engine_socket = "/run/e.sock"
pin_dir = "/sys/fs/bpf/here"
state_dir = "state"
[[member]]
name = "third"
number = 9
addresses = ["10.77.0.13", "fd78::13"]
role = "witness"
[[member]]
name = "node2"
number = 5
addresses = ["10.77.0.12", "fd78::12"]
weight = 0
[[member]]
name = "node1"
number = 2
addresses = ["10.77.0.11", "fd78::11"]
weight = 255
[[vip]]
address = "10.77.0.100"
[[vip]]
address = "fd77::100"
[[group]]
name = "heavy"
weights = { node2 = 50 }
[[group]]
name = "default"
weights = { node1 = 7 }
[[rule]]
name = "web"
vip = "10.77.0.100"
protocol = "tcp"
port = 80
[[rule]]
name = "dns"
vip = "fd77:0::100"
protocol = "udp"
port = 53
affinity = "client-ip-port"
group = "heavy"
"""


def parse(text: str, path: str = "/etc/farmd/farm.toml", host: str = "node1") -> FarmConfig:
    return farmfile.parse(text, Path(path), host_name=host)


def test_a_small_file_gets_every_default() -> None:
    config = parse(SMALL)

    assert config.path == Path("/etc/farmd/farm.toml")
    assert (config.farm, config.key_file) == ("web", Path("/etc/farmd/farm.key"))
    assert (config.profile, config.timing, config.delivery) == (
        Profile.EXCLUSIVE,
        TIMINGS["default"],
        Delivery.FLOOD,
    )
    assert (config.gateway, config.port) == (None, 4804)
    assert config.me is config.members[0]
    assert config.voters == {0}
    assert (config.vips, config.rules, config.groups) == ((), (), (Group(0, "default"),))
    assert config.weights == ({0: 100},)
    assert (config.interfaces, config.attach_mode) == ((), AttachMode.AUTO)
    assert (config.drop_without_rule, config.drain_deadline_s) == (True, 3600.0)
    assert config.api_socket == Path("/run/farmd/api.sock")
    assert config.engine_socket == Path("/run/farmd/engine.sock")
    assert (config.pin_dir, config.state_dir) == (Path("/sys/fs/bpf/farmd"), Path("/var/lib/farmd"))


def test_a_full_file_says_what_it_says() -> None:
    config = parse(FULL)

    assert config.key_file == Path("/etc/farmd/keys/farm.key")
    assert config.timing == TIMINGS["fast"]
    assert config.virtual_mac == bytes.fromhex("02fa00000009")
    assert (config.gateway, config.port) == (ip_address("10.77.0.254"), 4900)
    assert [(member.name, member.id, member.role) for member in config.members] == [
        ("node1", 2, Role.NODE),
        ("node2", 5, Role.NODE),
        ("third", 9, Role.WITNESS),
    ]
    assert config.me.name == "node2"
    assert config.me.addresses == (ip_address("10.77.0.12"), ip_address("fd78::12"))
    assert config.voters == {2, 5, 9}
    assert config.vips == (ip_address("10.77.0.100"), ip_address("fd77::100"))
    assert config.interfaces == ("eth0", "eth1.5")
    assert config.attach_mode is AttachMode.NATIVE
    assert (config.drop_without_rule, config.drain_deadline_s) == (False, 90.0)
    assert config.api_socket == Path("/etc/farmd/api.sock")
    assert config.engine_socket == Path("/run/e.sock")
    assert config.state_dir == Path("/etc/farmd/state")


def test_groups_come_in_order_after_the_default_one_and_override_weights() -> None:
    config = parse(FULL)

    assert config.groups == (Group(0, "default"), Group(1, "heavy"))
    assert config.weights == ({2: 7, 5: 0}, {2: 255, 5: 50})


def test_rules_count_from_one_and_name_their_group_by_index() -> None:
    config = parse(FULL)

    assert config.rules == (
        Rule(1, "web", ip_address("10.77.0.100"), Protocol.TCP, 80, Affinity.CLIENT_IP, 0),
        Rule(2, "dns", ip_address("fd77::100"), Protocol.UDP, 53, Affinity.CLIENT_IP_PORT, 1),
    )


@pytest.mark.parametrize(
    ("text", "ports", "told"),
    [
        ("80", range(80, 81), "80"),
        ('"80"', None, None),
        ('"8000-8099"', range(8000, 8100), "8000-8099"),
        ('"7-7"', range(7, 8), "7"),
        ('"1-65535"', range(1, 65536), "1-65535"),
        ('"any"', range(65536), "any"),
    ],
)
def test_ports_of_a_rule(text: str, ports: range | None, told: str | None) -> None:
    changed = FULL.replace("port = 80\n", f"port = {text}\n")
    if ports is None:
        with pytest.raises(ConfigError):
            parse(changed)
        return
    rule = parse(changed).rules[0]
    assert (rule.ports, rule.ports_text) == (ports, told)


def test_ranges_that_only_touch_do_not_overlap() -> None:
    more = '[[rule]]\nname = "more"\nvip = "10.77.0.100"\nprotocol = "tcp"\nport = "81-90"\n'
    assert parse(FULL + more).rules[2].ports == range(81, 91)


def test_a_rule_book_finds_what_the_file_says() -> None:
    vip = ip_address("10.77.0.100")
    rules = [
        Rule(1, "a", vip, Protocol.TCP, 90, Affinity.CLIENT_IP, 0, 99),
        Rule(2, "b", vip, Protocol.TCP, 80, Affinity.CLIENT_IP, 0),
        Rule(3, "c", vip, Protocol.UDP, 1, Affinity.PACKET_ID, 0),
        Rule(4, "d", vip, Protocol.UDP, 2, Affinity.PACKET_ID, 1),
    ]
    book = RuleBook(rules)
    ports = {port: found.index for port in range(100) if (found := book.find(vip, Protocol.TCP, port))}

    assert ports == {80: 2} | dict.fromkeys(range(90, 100), 1)
    assert book.find(ip_address("10.77.0.101"), Protocol.TCP, 80) is None
    assert (book.orphan(vip, Protocol.TCP), book.orphan(vip, Protocol.UDP)) == (rules[0], None)


def test_the_host_name_names_this_node() -> None:
    text = SMALL.replace("node1", socket.gethostname())

    assert farmfile.parse(text, Path("farm.toml")).me.name == socket.gethostname()


def test_relative_paths_start_at_the_file_wherever_the_daemon_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")

    assert parse(SMALL, "share/farm.toml").key_file == Path("/usr/share/farm.key")


def test_the_virtual_mac_is_unicast_local_and_the_farms_own() -> None:
    macs = {farmfile.virtual_mac(f"farm{number}") for number in range(100)}

    assert len(macs) == 100
    assert all(len(mac) == 6 and mac[0] & 0b11 == 0b10 for mac in macs)
    assert farmfile.virtual_mac("web").hex(":") == "02:fa:4b:5e:57:f6"


def test_delivery_multicast_has_a_group_address_and_directed_none_of_its_own() -> None:
    mac = farmfile.virtual_mac("web", Delivery.MULTICAST)
    assert mac.hex(":") == "03:fa:4b:5e:57:f6"
    several = parse(SMALL.replace("[farm]", '[farm]\ndelivery = "multicast"'))
    assert (several.delivery, several.virtual_mac[0]) == (Delivery.MULTICAST, 3)
    assert parse(SMALL.replace("[farm]", '[farm]\ndelivery = "directed"')).delivery is Delivery.DIRECTED


def members(nodes: int, witnesses: int = 0) -> str:
    tables = ""
    for number in range(nodes + witnesses):
        role = "witness" if number >= nodes else "node"
        tables += f"""[[member]]
name = "node{number + 1}"
number = {number}
role = "{role}"
addresses = ["10.77.0.{number + 1}"]
"""
    return '[farm]\nname = "web"\n' + tables


def test_all_vote_up_to_seven() -> None:
    assert parse(members(6, 1)).voters == set(range(7))


def test_in_a_large_farm_witnesses_and_the_lowest_numbers_vote() -> None:
    assert parse(members(9, 1)).voters == {0, 1, 2, 3, 4, 5, 9}


def test_the_example_is_valid_and_complete() -> None:
    path = Path(__file__).parents[2] / "examples" / "farm.toml"

    config = farmfile.load(path, host_name="node1")

    assert [member.name for member in config.members] == ["node1", "node2", "node3"]
    assert config.rules
    assert {vip.version for vip in config.vips} == {4, 6}


def test_the_examples_commented_out_settings_are_valid_too() -> None:
    path = Path(__file__).parents[2] / "examples" / "farm.toml"
    lines = path.read_text().splitlines()
    everything = "\n".join(
        line.removeprefix("#") if line.startswith("#") and line[1:2] != " " else line for line in lines
    )

    config = parse(everything)

    assert config.gateway is not None
    assert len(config.groups) > 1


@pytest.mark.parametrize("size", [farmfile.MAX_BYTES + 1, farmfile.MAX_BYTES * 3])
def test_a_file_that_is_too_large_is_not_read_as_a_farm(tmp_path: Path, size: int) -> None:
    path = tmp_path / "farm.toml"
    path.write_bytes(b"#" * size)

    with pytest.raises(ConfigError, match="more than 1 MiB"):
        farmfile.load(path)


def test_a_missing_file_is_a_config_error_about_the_whole_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file") as caught:
        farmfile.load(tmp_path / "farm.toml")

    assert [(problem.line, problem.column) for problem in caught.value.problems] == [(0, 0)]


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        farmfile.load(tmp_path)


def test_bytes_that_are_not_utf_8_are_placed(tmp_path: Path) -> None:
    path = tmp_path / "farm.toml"
    path.write_bytes(b'[farm]\nname = "w\xe9b"\n')

    with pytest.raises(ConfigError) as caught:
        farmfile.load(path)

    assert str(caught.value) == f"{path}:2:10: byte 0xe9 is not UTF-8. Save the file as UTF-8."


def test_windows_line_ends_are_fine() -> None:
    assert parse(FULL.replace("\n", "\r\n")) == parse(FULL)
