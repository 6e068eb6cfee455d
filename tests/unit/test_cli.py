# SPDX-License-Identifier: Apache-2.0
"""`farmctl` as a whole: every exit code, errors as sentences, start-up, completion, and the smaller verbs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from farmd.cli.errors import MEANING, ExitCode, exit_code
from farmd.cli.explain import parse_endpoint, parse_service
from farmd.cli.main import run
from farmd.model import errors
from farmd.model.errors import BadRequest, ConfigError, FarmError, Problem
from tests.unit.fakefarmd import Served, clean_environment, farmctl, farmctl_command, line_of, running_farmctl, serving


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


def ctl(farm: Served, *arguments: str) -> int:
    return run(["--socket", str(farm.path), *arguments])


# -- exit codes and errors --------------------------------------------------------------------------------------------


def test_every_kind_of_error_has_its_exit_code() -> None:
    expected = {
        "FarmError": 1,
        "KernelError": 1,
        "PeerError": 1,
        "BadRequest": 2,
        "NotFound": 4,
        "NotPermitted": 5,
        "DaemonUnreachable": 6,
        "TimedOut": 7,
        "Refused": 8,
        "ConfigError": 9,
    }
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FarmError)]
    seen = {}
    for kind in kinds:
        error = ConfigError((Problem("f", 1, 1, "a", "b"),)) if kind is ConfigError else kind("a", "b", "c")
        seen[kind.__name__] = int(exit_code(error))
    assert seen == expected


def test_the_help_lists_every_exit_code() -> None:
    text = farmctl("--help").stdout
    assert set(MEANING) == set(ExitCode)
    for code, meaning in MEANING.items():
        assert re.search(rf"^ +{int(code)}  {re.escape(meaning)}$", text, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["lab"]])
def test_no_verb_shows_the_help(arguments: list[str]) -> None:
    result = farmctl(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: farmctl" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["drian"], "farmctl: no such command 'drian'. Did you mean 'drain'? See `farmctl --help`."),
        (["drain"], "farmctl drain: missing argument 'NODE'. See `farmctl drain --help`."),
        (["status", "--wrong"], "farmctl status: no such option: --wrong"),
        (["weight", "node1", "many"], "farmctl weight: invalid value for 'N'"),
        (["weight", "node1", "256"], "farmctl weight: invalid value for 'N'"),
        (["--timeout", "x", "status"], "farmctl: invalid value for '--timeout'"),
        (["lab", "cut", "n1"], "farmctl lab cut: missing argument 'TO'"),
        (["explain", "somewhere"], "farmctl: somewhere: it is not an address"),
    ],
)
def test_wrong_usage_is_2_and_one_line_on_stderr(arguments: list[str], says: str) -> None:
    result = farmctl(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1


def test_a_missing_daemon_is_6(tmp_path: Path) -> None:
    result = farmctl("--socket", str(tmp_path / "api.sock"), "status")
    assert (result.returncode, result.stdout) == (6, "")
    assert result.stderr == (
        f"farmctl: socket {tmp_path}/api.sock: there is no such socket, so farmd does not run or serves another one. "
        "Start farmd (systemctl start farmd), or name its socket with --socket.\n"
    )


def test_a_daemon_that_hangs_is_7(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "api.sock"))
        deaf.listen()
        assert farmctl("--timeout", "0.2", "--socket", str(tmp_path / "api.sock"), "status").returncode == 7


@pytest.mark.root
def test_a_socket_that_one_may_not_open_is_5() -> None:
    # The first run imports everything while we may still read it.
    script = (
        "import os, sys; from farmd.cli.main import run; run(['--socket', '/nowhere', 'counters']); "
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(run(sys.argv[1:]))"
    )
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as farm:
        Path(folder).chmod(0o711)
        command = [sys.executable, "-c", script, "--socket", str(farm.path), "counters"]
        result = subprocess.run(
            command, env=clean_environment(), capture_output=True, text=True, check=False, timeout=60
        )
    assert (result.returncode, result.stdout) == (5, "")
    assert "you may not open it. Run farmctl as root, or as a member of the socket's group." in result.stderr


def test_refused_and_not_found_come_from_the_daemon(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(farm, "drain", "node1") == 8
    assert ctl(farm, "ready", "node9") == 4
    assert capsys.readouterr().err == (
        "farmctl: drain node1: no other node would serve. Bring another node up first, or use --force.\n"
        "farmctl: node node9: the farm has no such member. It has node1, node2, node3.\n"
    )


def test_a_fault_inside_farmd_is_1(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    farm.backend.fault = ZeroDivisionError("oh")
    assert ctl(farm, "status") == 1
    assert "ZeroDivisionError: oh" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_141_and_silent(farm: Served) -> None:
    with running_farmctl("--socket", str(farm.path), "status", "--watch=0.1", "--json") as writer:
        line_of(writer.stdout)
        assert writer.stdout is not None
        writer.stdout.close()
        assert writer.wait(20) == 141
        assert writer.stderr is not None
        assert writer.stderr.read() == ""


# -- global options, start-up, completion -----------------------------------------------------------------------------


def test_global_options_stand_before_or_after_the_verb(farm: Served) -> None:
    path = str(farm.path)
    before = farmctl("--socket", path, "--json", "counters")
    after = farmctl("counters", "--json", "--socket", path, FARMCTL_SOCKET="/nowhere")
    assert json.loads(before.stdout)["kind"] == json.loads(after.stdout)["kind"] == "Counters"


def test_output_into_a_pipe_has_no_colour(farm: Served) -> None:
    assert "\x1b" not in farmctl("--socket", str(farm.path), "status").stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "coloured"),
    [([], {}, True), (["--no-color"], {}, False), ([], {"NO_COLOR": "1"}, False), ([], {"TERM": "dumb"}, False)],
)
def test_a_terminal_gets_colour_unless_somebody_says_no(
    farm: Served, arguments: list[str], environment: dict[str, str], coloured: bool
) -> None:
    ours, its = os.openpty()
    command = farmctl_command("--socket", str(farm.path), *arguments, "status")
    subprocess.run(
        command, stdout=its, env=clean_environment(**{"TERM": "xterm", **environment}), check=True, timeout=60
    )
    os.close(its)
    text = os.read(ours, 65536).decode()
    os.close(ours)
    assert ("\x1b[32mUP\x1b[0m" in text) is coloured


def test_start_up_imports_nothing_heavy() -> None:
    script = "import sys, farmd.cli.main; print('\\n'.join(sys.modules))"
    seen = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=clean_environment()
    ).stdout.split()
    heavy = {"http.client", "asyncio", "rich", "pydantic", "cryptography", "pyroute2", "starlette", "uvicorn", "scapy"}
    assert heavy & set(seen) == set()
    assert [name for name in seen if name.startswith(("farmd.lab", "farmd.daemon", "farmd.net"))] == []


def complete(*words: str, **environment: str) -> list[str]:
    line = " ".join(["farmctl", *words])
    asking = {"COMP_WORDS": line, "COMP_CWORD": str(len(words)), "_FARMCTL_COMPLETE": "complete_bash"}
    return farmctl(**asking, **environment).stdout.split()


def test_completion_knows_verbs_and_node_names(farm: Served, tmp_path: Path) -> None:
    assert complete("dr") == ["drain"]
    assert complete("drain", "node", FARMCTL_SOCKET=str(farm.path)) == ["node1", "node2", "node3"]
    assert complete("drain", "node", FARMCTL_SOCKET=str(tmp_path / "none")) == []


def test_version() -> None:
    assert re.fullmatch(r"farmctl \d+\.\d+\.\d+\S*\n", farmctl("--version").stdout)


# -- explain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "port", "back"),
    [
        ("203.0.113.7", "203.0.113.7", None, "203.0.113.7"),
        ("203.0.113.7:51514", "203.0.113.7", 51514, "203.0.113.7:51514"),
        ("2001:DB8::7", "2001:db8::7", None, "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7", None, "2001:db8::7"),
        ("[2001:db8::7]:0", "2001:db8::7", 0, "[2001:db8::7]:0"),
    ],
)
def test_endpoints(text: str, address: str, port: int | None, back: str) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.address, endpoint.port, str(endpoint)) == (address, port, back)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "203.0.113.7:",
        "203.0.113.7:x",
        "203.0.113.7:70000",
        "203.0.113.7:-1",
        "[::1",
        "[::1]x",
        "[::1]:x",
        "name:80",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_endpoint(text)


def test_services() -> None:
    assert parse_service("192.0.2.1:443") == (parse_endpoint("192.0.2.1:443"), None)
    assert parse_service("[fd77::1]:53/udp") == (parse_endpoint("[fd77::1]:53"), "udp")
    for text in ("192.0.2.1", "192.0.2.1:80/", "192.0.2.1:80/sctp", "/tcp"):
        with pytest.raises(BadRequest):
            parse_service(text)


def test_explain_reads_like_this(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(farm, "explain", "203.0.113.7:51514", "10.77.0.100:80/tcp") == 0
    assert farm.backend.asked == [("explain", "203.0.113.7", 51514, "10.77.0.100", 80, "tcp")]
    assert capsys.readouterr().out == (
        """\
client 203.0.113.7:51514 -> node2
  rule      web  10.77.0.100:80/tcp, affinity client-ip
  key       203.0.113.7  (the port does not count)
  hash      siphash-1-3 = 0x9c3f00000000a8a2 -> bucket 2210 of 4096, group default
  owner     node2
  why       view 12 (started), weights: node1 100, node2 100, node3 100
  node1     bucket is held (moved away, keeps its connections)
  proof     the program loaded on node1 says drop (not-owner): as the view says
"""
    )


def test_explain_asks_about_other_packets(farm: Served) -> None:
    assert ctl(farm, "explain", "203.0.113.7", "10.77.0.100", "--packet", "echo") == 0
    assert ctl(farm, "explain", "203.0.113.7:5", "10.77.0.100:53/udp", "--packet", "lost-fragment", "--id", "7") == 0
    assert farm.backend.asked == [
        ("explain", "203.0.113.7", None, "10.77.0.100", None, None, "echo", None),
        ("explain", "203.0.113.7", 5, "10.77.0.100", 53, "udp", "lost-fragment", 7),
    ]


def test_explain_fails_when_the_program_disagrees(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    farm.backend.agrees = False
    assert ctl(farm, "explain", "203.0.113.7", "--json") == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["data"]["proof"]["agrees"] is False
    assert "does not do what the view says" in output.err


# -- events and counters ----------------------------------------------------------------------------------------------


def test_events_show_the_newest_last(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1, 6):
        farm.append("view.started", f"view {number} started")

    assert ctl(farm, "events", "--limit", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ID", "WHEN", "TYPE", "TEXT"]
    assert [line.split()[0] for line in lines[1:]] == ["4", "5"]
    assert lines[2].endswith("view.started  view 5 started")

    assert ctl(farm, "events", "--after", "1", "--limit", "2", "--json") == 0
    assert [event["id"] for event in json.loads(capsys.readouterr().out)["data"]["events"]] == [2, 3]


def test_follow_goes_on_across_a_restart_of_farmd(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with serving(tmp_path) as farm:
            farm.append("note", "one")
            following = stack.enter_context(running_farmctl("events", "-f", "--json", "--socket", str(farm.path)))
            assert json.loads(line_of(following.stdout))["text"] == "one"
            farm.append("note", "two")
            assert json.loads(line_of(following.stdout))["text"] == "two"
        assert "waiting for it" in line_of(following.stderr)
        with serving(tmp_path) as farm:
            farm.append("note", "three")
            event = json.loads(line_of(following.stdout))
    assert (event["id"], event["text"]) == (3, "three")


def test_counters(farm: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(farm, "counters") == 0
    assert capsys.readouterr().out == (
        """\
RULE  VERDICT  REASON      PACKETS
-     drop     lease-over        3
web   drop     not-owner        99
web   pass     accept-own   123456
"""
    )


# -- files ------------------------------------------------------------------------------------------------------------

_FARM_TOML = """\
[farm]
name = "web"
key_file = "farm.key"
[node]
name = "node1"
interfaces = ["eth0"]
[[member]]
name = "node1"
number = 0
addresses = ["10.77.0.11"]
[[member]]
name = "node2"
number = 1
addresses = ["10.77.0.12"]
[[member]]
name = "node3"
number = 2
addresses = ["10.77.0.13"]
[[vip]]
address = "10.77.0.100"
[[rule]]
name = "web"
vip = "10.77.0.100"
protocol = "tcp"
port = 80
"""


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "farm.toml"
    file.write_text(_FARM_TOML)

    assert run(["check-config", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: valid. Farm web: 3 members, 1 VIP, 1 rule; this node is node1.\n"
    assert run(["check-config", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == {"valid": True, "problems": []}


def test_an_invalid_config_is_9_with_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "farm.toml"
    file.write_text(_FARM_TOML.replace("port = 80", "prot = 80").replace("number = 2", "numbr = 2"))

    assert run(["check-config", str(file)]) == 9
    output = capsys.readouterr()
    assert output.out == ""
    assert len(re.findall(rf"{re.escape(str(file))}:\d+:\d+: ", output.err)) >= 2

    assert run(["check-config", str(file), "--json"]) == 9
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["valid"] is False
    assert all(problem["line"] > 0 for problem in data["problems"])


def test_keygen_makes_a_private_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from farmd.membership.keys import KeyRing

    file = tmp_path / "farm.key"
    assert run(["keygen", str(file)]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert KeyRing.parse(text, file).render() == text

    assert run(["keygen", str(file)]) == 8
    assert file.read_text() == text
    assert "it exists" in capsys.readouterr().err
    assert run(["keygen", str(tmp_path / "no" / "farm.key")]) == 1
