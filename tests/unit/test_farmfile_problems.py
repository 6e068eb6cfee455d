# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a farm.toml is said with its place, its cause and a way out."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farmd.model import excerpt, farmfile
from farmd.model.errors import ConfigError, Problem
from farmd.model.farmshape import FarmFile, known_keys
from tests.unit.test_farmfile import FULL, SMALL, members

GOOD = """\
[farm]
name = "web"
[node]
[[member]]
name = "node1"
number = 0
addresses = ["10.77.0.11"]
[[member]]
name = "node2"
number = 1
addresses = ["10.77.0.12"]
[[vip]]
address = "10.77.0.100"
[[group]]
name = "heavy"
weights = { node1 = 50 }
[[rule]]
name = "web"
vip = "10.77.0.100"
protocol = "tcp"
port = 80
[[rule]]
name = "dns"
vip = "10.77.0.100"
protocol = "udp"
port = 53
"""


def problems(text: str, host: str = "node1") -> list[str]:
    """The problems of `text`, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        farmfile.parse(text, Path("farm.toml"), host_name=host)
    return [str(problem).removeprefix("farm.toml:") for problem in caught.value.problems]


def test_the_file_that_the_cases_change_is_good() -> None:
    assert farmfile.parse(GOOD, Path("farm.toml"), host_name="node1").farm == "web"


NO_PORTS = ', which names no ports. Write a port from 1 to 65535, a range such as "8000-8099", or "any".'
NO_RANGE = (
    ", which is no range of ports from 1 to 65535, lower end first. "
    'Write a port from 1 to 65535, a range such as "8000-8099", or "any".'
)
CASES = [
    # Shape
    ("port = 80", "prot = 80", '21:1: unknown key "prot" in [[rule]] "web". Did you mean "port"?'),
    ("[node]", "[nod]", '3:2: unknown table or key "nod". Did you mean "node"?'),
    ('name = "web"\n[node]', "[node]", "1:2: [farm] has no name. Add name = ... to it."),
    ("port = 53\n", "", '22:3: [[rule]] "dns" has no port. Add port = ... to it.'),
    ("port = 80", 'port = "80"', f'21:8: "port" in [[rule]] "web" is "80"{NO_PORTS}'),
    ("port = 80", "port = 80.5", f'21:8: "port" in [[rule]] "web" is 80.5{NO_PORTS}'),
    ("port = 80", "port = true", f'21:8: "port" in [[rule]] "web" is true{NO_PORTS}'),
    ("port = 80", "port = 0", f'21:8: "port" in [[rule]] "web" is 0{NO_PORTS}'),
    ("port = 80", 'port = "8000-"', f'21:8: "port" in [[rule]] "web" is "8000-"{NO_PORTS}'),
    ("port = 80", 'port = "90-80"', f'21:8: "port" in [[rule]] "web" is "90-80"{NO_RANGE}'),
    ("port = 80", 'port = "0-80"', f'21:8: "port" in [[rule]] "web" is "0-80"{NO_RANGE}'),
    ("port = 80", 'port = "80-65536"', f'21:8: "port" in [[rule]] "web" is "80-65536"{NO_RANGE}'),
    ("port = 80", "port = 65536", f'21:8: "port" in [[rule]] "web" is 65536{NO_PORTS}'),
    ("number = 1", "number = 64", '10:10: "number" in [[member]] "node2" is 64. It must be less than 64.'),
    ("number = 1", "number = 1\nweight = 256", '11:10: "weight" in [[member]] "node2" is 256. It can be at most 255.'),
    ("node1 = 50", "node1 = -1", '16:21: "node1" in [[group]] "heavy" is -1. It must be at least 0.'),
    ('"tcp"', '"TCP"', '20:12: "protocol" in [[rule]] "web" is "TCP". Did you mean "tcp"?'),
    ('"tcp"', '"sctp"', '20:12: "protocol" in [[rule]] "web" is "sctp". It is one of "tcp" and "udp".'),
    ('"tcp"', '"x"', '20:12: "protocol" in [[rule]] "web" is "x". It is one of "tcp" and "udp".'),
    ("[node]", '[node]\nattach_mode = "drv"',
     '4:15: "attach_mode" in [node] is "drv". It is one of "auto", "native" and "generic".'),
    ('"10.77.0.12"', '"10.77.0.300"', '11:14: "addresses" in [[member]] "node2" is "10.77.0.300", not an IP address. '
     'Write one such as "192.0.2.7" or "2001:db8::7".'),
    ('address = "10.77.0.100"', 'address = "10.77.0.100/32"', '13:11: "address" in [[vip]] "10.77.0.100/32" is '
     '"10.77.0.100/32", not an IP address. Leave out the prefix length.'),
    ('"10.77.0.12"', '"224.0.0.1"',
     '11:14: "addresses" in [[member]] "node2" is 224.0.0.1, which no host on a network can '
     "have. Write a unicast address."),
    ('"10.77.0.12"', '"fe80::1%eth0"',
     '11:14: "addresses" in [[member]] "node2" is "fe80::1%eth0", an address with a scope '
     "or a mapped IPv4 address. Write a plain global or unique local address."),
    ('["10.77.0.12"]', "[]", '11:13: "addresses" in [[member]] "node2" has 0 entries. It needs at least 1.'),
    ("[node]", 'virtual_mac = "03:00:00:00:00:01"',
     '3:15: 03:00:00:00:00:01 is a group address, and delivery "flood" needs a unicast one. '
     'Take one whose first byte is even, such as 02, or delivery = "multicast".'),
    ("[node]", 'delivery = "multicast"\nvirtual_mac = "02:00:00:00:00:01"',
     '4:15: 02:00:00:00:00:01 is no group address, which delivery "multicast" needs. '
     "Take one whose first byte is odd, such as 03."),
    ("[node]", 'delivery = "directed"\nvirtual_mac = "02:00:00:00:00:01"',
     '4:1: delivery "directed" has no virtual MAC. Remove it: VIPs resolve to the nodes\' own addresses.'),
    ("[node]", 'virtual_mac = "ff:ff:ff:ff:ff:ff"',
     '3:15: "virtual_mac" in [farm] is ff:ff:ff:ff:ff:ff, which no farm can have. '
     'Write one such as "02:fa:00:00:00:01".'),
    ("[node]", 'virtual_mac = "02:00"', '3:15: "virtual_mac" in [farm] is "02:00", not a MAC address. '
     'Write six bytes such as "02:fa:00:00:00:01".'),
    ("[node]", "drain_deadline_s = 0", '3:20: "drain_deadline_s" in [farm] is 0. It must be more than 0.'),
    ("[node]", "drain_deadline_s = inf", '3:20: "drain_deadline_s" in [farm] is inf. Input should be a finite number.'),
    ("[node]", "drop_without_rule = 1",
     '3:21: "drop_without_rule" in [farm] is 1, not true or false. Write true or false.'),
    ("[node]", '[node]\ninterfaces = "eth0"', '4:14: "interfaces" in [node] is "eth0", not an array. Write an array.'),
    ("[node]", '[node]\ninterfaces = ["a b"]', '4:15: "interfaces" in [node] is "a b", which cannot be an interface. '
     "See `ip link` for the names on this machine."),
    ("[node]", '[node]\npin_dir = ""', '4:11: "pin_dir" in [node] is "", which cannot be a path. '
     "Write the path of a file, or leave the key out."),
    ('name = "heavy"', 'name = "a b"', '15:8: "name" in [[group]] "a b" is "a b", which cannot be a name. Use up to 63 '
     "letters, digits, dots, hyphens and underscores, a letter or digit first."),
    ("[[vip]]", "[vip]", '12:2: "vip" is a single table. Write [[vip]] on a line, once for each.'),
    # Meaning
    ("[node]", '[node]\nname = "node3"', '4:8: there is no member "node3". Did you mean "node2"?'),
    ('"node2"', '"node1"', '9:8: two members are named "node1". Give each member a name of its own.'),
    ("number = 1", "number = 0", '10:10: 0 is already the number of "node1". Take a free one, such as 1.'),
    ('"10.77.0.12"', '"10.77.0.11"',
     '11:14: 10.77.0.11 is already an address of "node1". Give each member its own addresses.'),
    ('"10.77.0.12"', '"fd77::12"', '11:14: fd77::12 is IPv6, but "node1" has IPv4 in this place. '
     "List the addresses of one network in the same place at every member."),
    ("[node]", '[node]\ninterfaces = ["a", "a"]', '4:20: interface "a" is listed twice. Remove one of the two.'),
    ("[node]", 'voters = ["node1", "nod2"]', '3:20: there is no member "nod2". Did you mean "node2"?'),
    ("[node]", 'voters = ["node1", "node1"]', '3:20: "node1" is listed twice. Remove one of the two.'),
    ('address = "10.77.0.100"\n', 'address = "10.77.0.100"\n[[vip]]\naddress = "10.77.0.100"\n',
     "15:11: VIP 10.77.0.100 is listed twice. Remove one of the two."),
    ('address = "10.77.0.100"\n', 'address = "10.77.0.100"\n[[vip]]\naddress = "10.77.0.12"\n',
     '15:11: VIP 10.77.0.12 is an address of member "node2". A VIP is an address that no host has by itself.'),
    ('address = "10.77.0.100"\n', 'address = "10.77.0.100"\n[[vip]]\naddress = "fe80::9"\n',
     "15:11: VIP fe80::9 is link-local. Take an address that clients can route to."),
    ("[node]", 'gateway = "10.77.0.11"',
     '3:11: the gateway is member "node1". Name the router that clients\' packets come through.'),
    ("[node]", 'gateway = "10.77.0.100"',
     "13:11: VIP 10.77.0.100 is the gateway's address. Take an address that no host has."),
    ("node1 = 50", "node5 = 50", '16:13: there is no member "node5". Did you mean "node2"?'),
    ("node1 = 50", "node1 = 0, node2 = 0",
     '16:1: every weight in group "heavy" is 0. Give at least one node a weight above 0.'),
    ('"dns"', '"web"', '23:8: two rules are named "web". Give each rule a name of its own.'),
    ("port = 53", 'port = 53\ngroup = "hevy"', '27:9: there is no group "hevy". Did you mean "heavy"?'),
    ("port = 53", 'port = 53\ngroup = "q"', '27:9: there is no group "q". Add a [[group]] with name = "q".'),
    ('"10.77.0.100"\nprotocol = "udp"', '"fd77::1"\nprotocol = "udp"', "24:7: there is no VIP fd77::1. "
     'Add a [[vip]] with address = "fd77::1".'),
    ('"udp"\nport = 53', '"tcp"\nport = 80', '26:8: rule "web" already names tcp port 80 of 10.77.0.100. '
     "Remove one of the two, or change its port."),
    ('"udp"\nport = 53', '"tcp"\nport = "8-80"', '26:8: rule "web" already names tcp port 80 of 10.77.0.100. '
     "Remove one of the two, or change its port."),
    ('80\n[[rule]]\nname = "dns"\nvip = "10.77.0.100"\nprotocol = "udp"\nport = 53',
     '"80-90"\n[[rule]]\nname = "dns"\nvip = "10.77.0.100"\nprotocol = "tcp"\nport = "any"',
     '26:8: rule "web" already names tcp ports 80-90 of 10.77.0.100. Remove one of the two, or change its port.'),
    ("port = 80", 'port = 80\naffinity = "packet-id"', '22:12: "packet-id" is for UDP: it would tear TCP connections '
     'apart, each of whose packets has another id. Use "client-ip-port", which places each connection on its own.'),
    ('[[vip]]\naddress = "10.77.0.100"\n[[group]]\nname = "heavy"\nweights = { node1 = 50 }\n[[rule]]\nname = "web"\n'
     'vip = "10.77.0.100"\nprotocol = "tcp"',
     '[[vip]]\naddress = "10.77.0.100"\n[[vip]]\naddress = "fd77::1"\n[[rule]]\nname = "web"\nvip = "fd77::1"\n'
     'protocol = "udp"\naffinity = "packet-id"',
     '20:12: "packet-id" is for IPv4: IPv6 packets have no id. '
     'Use "client-ip-port", which places each connection on its own.'),
    ("port = 80", 'port = 80\naffinity = "client-net"', '22:12: "affinity" in [[rule]] "web" is "client-net". '
     'Did you mean "client-network"?'),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), CASES, ids=[case[2][:50] for case in CASES])
def test_one_mistake_gives_one_problem(old: str, new: str, expected: str) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD

    assert problems(text) == [expected]


def test_a_host_that_is_no_member() -> None:
    expected = 'this host is named "elsewhere", and no member is. Add name = "..." to [node]: one of node1, node2.'

    assert problems(GOOD, host="elsewhere") == [f"3:2: {expected}"]


def test_a_witness_has_no_weight_and_no_interfaces_and_must_vote() -> None:
    text = (
        GOOD.replace("number = 0", 'number = 0\nrole = "witness"')
        .replace("[node]", '[node]\ninterfaces = ["eth0"]')
        .replace('name = "web"', 'name = "web"\nvoters = ["node2"]', 1)
    )

    assert [problem.partition(". ")[0] for problem in problems(text)] == [
        '5:1: "node1" is a witness, which has no filter',
        '9:8: "node1" is a witness but no voter, so it does nothing',
        '19:13: "node1" is a witness, which has no weight',
    ]


def test_somebody_must_serve() -> None:
    assert problems(members(0, 1))[0].startswith("6:8: every member is a witness")
    weightless = problems(SMALL + "weight = 0\n")
    assert weightless == [
        "8:10: every member's weight is 0, so nobody would serve. Give at least one node a weight above 0."
    ]


def available(nodes: int, witnesses: int, gateway: bool) -> str:
    head = '\nprofile = "available"\n' + ('gateway = "10.77.0.254"\n' if gateway else "")
    return members(nodes, witnesses).replace('\nname = "web"\n', '\nname = "web"' + head, 1)


def test_profile_available_is_for_two_nodes_with_a_gateway() -> None:
    assert farmfile.parse(available(2, 0, True), Path("f"), host_name="node1").gateway is not None
    for nodes, witnesses in ((1, 0), (3, 0), (2, 1)):
        (problem,) = problems(available(nodes, witnesses, True))
        assert problem.startswith('3:11: profile "available" is for exactly two nodes and no witness')
    (problem,) = problems(available(2, 0, False))
    assert problem.startswith('3:11: profile "available" needs a gateway')


def test_limits_of_voters_witnesses_and_groups() -> None:
    eight = members(8).replace('"web"', '"web"\nvoters = [' + ", ".join(f'"node{n}"' for n in range(1, 9)) + "]", 1)
    assert problems(eight)[0].startswith("3:1: there are 8 voters, more than 7")
    assert "there are 8 witnesses" in problems(members(1, 8))[0]
    groups = "".join(f'[[group]]\nname = "g{number}"\n' for number in range(16))
    assert "there are more than 16 groups" in problems(GOOD + groups)[0]


def test_all_problems_are_reported_at_once_in_the_files_order() -> None:
    text = GOOD.replace("port = 80", "port = 80000\nfliter = 3").replace("number = 0", 'number = "0"')

    places = [":".join(problem.split(":")[:2]) for problem in problems(text)]

    assert places == ["6:10", "21:8", "22:1"]


def test_syntax_errors_keep_their_place() -> None:
    assert problems("[farm]\nname = web\n") == [
        "2:8: this is not TOML: invalid value. Correct the line; strings need quotes."
    ]
    assert problems('[farm]\nname = "web')[0].startswith("2:12: this is not TOML: ")
    assert problems("")[0].startswith("1:1: there is no [farm] table")


def test_the_excerpt_points_at_the_place() -> None:
    text = GOOD.replace("port = 80", "\tprot = 80", 1)
    with pytest.raises(ConfigError) as caught:
        farmfile.parse(text, Path("farm.toml"), host_name="node1")

    assert excerpt.render(caught.value, text) == (
        'farm.toml:21:2: unknown key "prot" in [[rule]] "web". Did you mean "port"?\n   21 |  prot = 80\n      |  ^^^^'
    )


def test_the_excerpt_reads_the_file_by_itself_and_does_without(tmp_path: Path) -> None:
    path = tmp_path / "farm.toml"
    path.write_text("[farm]\nname = 3\n")
    with pytest.raises(ConfigError) as caught:
        farmfile.load(path)

    assert "    2 | name = 3\n      |        ^" in excerpt.render(caught.value)
    path.unlink()
    assert excerpt.render(caught.value) == str(caught.value)


def test_the_excerpt_never_talks_to_the_terminal() -> None:
    error = ConfigError((Problem("farm.toml", 1, 3, "bad", "Mend it."), Problem("farm.toml", 1, 500, "far", "Look.")))

    shown = excerpt.render(error, "\x1b[31m red")

    assert "\x1b" not in shown
    assert shown.count("\n") == 3


def test_every_table_is_known_by_name() -> None:
    assert known_keys(None) == tuple(FarmFile.model_fields)
    assert "affinity" in known_keys("rule")


def refuse_or_accept(text: str) -> None:
    """Reads `text`; a refusal must have places, and be fit to show."""
    try:
        farmfile.parse(text, Path("farm.toml"), host_name="node1")
    except ConfigError as error:
        unplaced = [problem for problem in error.problems if problem.line < 1 or problem.column < 1]
        if unplaced or not excerpt.render(error, text):
            raise AssertionError(f"no place: {unplaced}") from error
        raise


@given(st.data())
def test_no_damage_to_a_file_does_more_than_a_config_error(data: st.DataObject) -> None:
    lines = FULL.splitlines()
    index = data.draw(st.integers(0, len(lines) - 1))
    change = data.draw(
        st.sampled_from(["", "x = 1", "name = []", "[[rule]]", "port = -1", "[rule]", "vip = {}", "[a.b]"])
    )
    text = "\n".join([*lines[:index], change, *lines[index + data.draw(st.integers(0, 1)) :]])

    with contextlib.suppress(ConfigError):
        refuse_or_accept(text)
