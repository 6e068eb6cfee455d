# SPDX-License-Identifier: Apache-2.0
"""`farmctl mirror`: what it writes, what it refuses, and with which exit code; no node runs."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farmd.cli.main import run
from farmd.cli.mirrorshow import summary
from farmd.mirror.spread import top
from farmd.mirrord.mounts import unseen
from farmd.model.errors import BadRequest
from farmd.model.mirrorfile import load, size


def _farmctl(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def _create(folder: Path, *more: str) -> list[str]:
    (folder / "data").mkdir(exist_ok=True)
    place = ["--directory", str(folder / "data"), "--node", "1", "--no-tls", "--state", str(folder / "state")]
    return ["mirror", "create", "db", *place, "--listen", "192.0.2.1:7800", "--peer", "192.0.2.2:7800", *more]


def test_what_is_created_is_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = _create(tmp_path, "--exclude", "*.tmp", "--exclude", "/cache", "--json")
    code, out, _ = _farmctl(capsys, *words)
    assert code == 0
    config = load(tmp_path / "state/db")
    assert config.exclude == ("*.tmp", "/cache")
    assert not config.directories[0].own_mount
    assert json.loads(out)["data"]["directories"][0]["exclude"] == ["*.tmp", "/cache"]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--exclude", "*.tmp", "--exclude", "/a b", "--ack", "barrier", "--arbiter", "witness:h:1"),
        ("--directory", "wal={wal}", "--exclude", "wal:*.tmp", "--exclude", "/cache"),
    ],
)
def test_what_create_says_for_the_other_node_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    (tmp_path / "w al").mkdir()
    words = [word.format(wal=tmp_path / "w al") for word in more]
    _, out, _ = _farmctl(capsys, *_create(tmp_path, *words))
    program, *order = shlex.split(out.splitlines()[1])
    assert program == "farmctl"
    assert _farmctl(capsys, *order, "--state", str(tmp_path / "other"))[0] == 0
    one, two = load(tmp_path / "state/db"), load(tmp_path / "other/db")
    assert two == replace(one, node=2, listen=one.peer, peer=one.listen)


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--exclude", "a/../b"), 2, "name nothing below"),
        (("--exclude", "*"), 2, "everything"),
        (("--image", "5X"), 2, "not a size"),
        (("--image", "1M"), 2, "at least 16 MiB"),
        (("--image", "32M", "--exclude", "x"), 2, "nothing can be excluded"),
        (("--ack", "later"), 2, "strict, barrier, async"),
        (("--arbiter", "me"), 2, "no such arbiter"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], code: int, said: str
) -> None:
    found, _, error = _farmctl(capsys, *_create(tmp_path, *more))
    assert (found, said in error) == (code, True), error
    assert not (tmp_path / "state").exists()
    assert list((tmp_path / "data").iterdir()) == []


def test_several_directories_are_named_and_have_their_own_exclusions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pg_wal", "archive"):
        (tmp_path / name).mkdir()
    more = ["--directory", f"wal={tmp_path}/pg_wal", "--directory", str(tmp_path / "archive")]
    more += ["--exclude", "*.tmp", "--exclude", "wal:/cache", "--exclude", "other:x"]
    assert _farmctl(capsys, *_create(tmp_path, *more))[0] == 0
    config = load(tmp_path / "state/db")
    assert [(each.name, Path(each.path).name) for each in config.directories] == [
        ("data", "data"),
        ("wal", "pg_wal"),
        ("archive", "archive"),
    ]
    assert [each.exclude for each in config.directories] == [
        ("*.tmp", "other:x"),
        ("*.tmp", "/cache", "other:x"),
        ("*.tmp", "other:x"),
    ]
    code, out, _ = _farmctl(capsys, "mirror", "status", "--state", str(tmp_path / "state"))
    assert code == 0
    assert "as data" in out
    assert str(tmp_path / "pg_wal") in out
    assert "wal:/cache" in out


@pytest.mark.parametrize(
    ("second", "code", "said"),
    [
        ("data", 2, "is the same"),
        ("link", 2, "is the same"),
        ("data/below", 2, "is below"),
        ("other/data", 2, "its name 'data'"),
        ("missing", 4, "no such directory"),
        ("a b", 2, "letters, digits"),
    ],
)
def test_directories_that_cannot_be_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: str, code: int, said: str
) -> None:
    for name in ("data/below", "other/data", "a b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("data")
    found, _, error = _farmctl(capsys, *_create(tmp_path, "--directory", str(tmp_path / second)))
    assert (found, said in error) == (code, True), error
    assert not (tmp_path / "state").exists()


def test_a_directory_of_another_mirror_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _farmctl(capsys, *_create(tmp_path))[0] == 0
    words = _create(tmp_path)
    words[words.index("db")] = "other"
    code, _, error = _farmctl(capsys, *words)
    assert (code, "of mirror db" in error) == (8, True)
    assert not (tmp_path / "state/other").exists()


def test_an_image_wants_an_empty_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").touch()
    code, _, error = _farmctl(capsys, *_create(tmp_path, "--image", "32M"))
    assert (code, "would hide" in error) == (8, True)


def test_a_mirror_that_does_not_run_is_shown_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _farmctl(capsys, *_create(tmp_path))
    state = ["--state", str(tmp_path / "state")]
    code, out, _ = _farmctl(capsys, "mirror", "status", *state)
    assert (code, "STOPPED" in out) == (0, True)
    code, out, _ = _farmctl(capsys, "mirror", "status", "--json", *state)
    assert (code, json.loads(out)["data"]["role"]) == (0, "stopped")
    assert _farmctl(capsys, "mirror", "status", "--check", *state)[0] == 3
    for verb in ("status", "promote", "demote", "swap", "resync", "verify", "diff", "stop"):
        code, _, error = _farmctl(capsys, "mirror", verb, "db", *state)
        assert (code, "farmctl mirror start db" in error) == (6, True), verb
        assert _farmctl(capsys, "mirror", verb, "other", *state)[0] == 4


def test_the_summary_says_what_is_special() -> None:
    data: dict[str, Any] = {
        "name": "db", "node": 1, "role": "primary", "why": "in sync with node 2", "directory": "/srv/db",
        "exclude": [], "image_bytes": 20 << 30, "generation": "3-aa", "encrypted": False, "ack": "strict",
        "peer": {"address": "192.0.2.2:7800", "connected": True}, "lag": {"bytes": 4096}, "arbiter": "operator",
        "dirty": {"bytes": 65536, "files": 2, "more": True}, "resync": None, "last_resync": None, "trouble": "",
        "split": False,
    }  # fmt: skip
    text = summary(data)
    for part in ("PRIMARY", "an image of 21.5 GB", "not encrypted", "4.1 kB behind", "at least 65.5 kB in 2 files"):
        assert part in text
    assert "*.tmp" in summary(data | {"exclude": ["*.tmp"]})
    work = {"what": "verify", "phase": "contents", "share": 0.5, "bytes_sent": 0, "eta_s": None}
    slow = {"rate_bytes_s": 12_000_000, "why": "writes take 3.1 times as long as without it"}
    assert "12.0 MB/s at most: writes take 3.1 times" in summary(data | {"resync": work, "pace": slow})
    fast = {"rate_bytes_s": 0, "why": "nobody writes"}
    assert "no limit: nobody writes" in summary(data | {"resync": work, "pace": fast})


def test_a_mount_that_is_not_seen_from_here_is_told(tmp_path: Path) -> None:
    assert unseen({}) == []
    assert unseen({"/proc": top(Path("/proc")).device}) == []
    (text,) = unseen({str(tmp_path): "0:1"})
    assert str(tmp_path) in text
    assert "another mount namespace" in text


@pytest.mark.parametrize(("text", "wanted"), [("512M", 512 << 20), ("20G", 20 << 30), ("2TiB", 2 << 40), ("7", 7)])
def test_sizes(text: str, wanted: int) -> None:
    assert size(text) == wanted
    with pytest.raises(BadRequest):
        size(text + "!")
