# SPDX-License-Identifier: Apache-2.0
"""Finding bcc, kernel headers and kernel types, and the one sentence when one of them is missing."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from farmd.cli.main import run
from farmd.model.errors import FarmError, KernelError
from farmd.trace import loader, program
from farmd.trace.btf import Types


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)


def package(folder: Path, text: str) -> Path:
    (folder / "bcc").mkdir(parents=True)
    (folder / "bcc" / "__init__.py").write_text(text)
    return folder


def test_without_bcc_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(FarmError, match=r"not installed.*apt-get install python3-bpfcc"):
        loader.load_bcc((tmp_path,))
    assert "bcc" not in sys.modules


def test_the_package_of_the_same_name_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package(tmp_path, "VERSION = 1")))
    with pytest.raises(FarmError, match=r"another package of that name.*apt-get install python3-bpfcc"):
        loader.load_bcc((tmp_path / "nothing",))


def test_the_distributions_bcc_is_found_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = package(tmp_path, "from bcc.parts import BPF")
    (place / "bcc" / "parts.py").write_text("class BPF: pass")
    assert hasattr(loader.load_bcc((place,)), "BPF")
    monkeypatch.delitem(sys.modules, "bcc.parts")


def test_a_broken_bcc_is_told_with_its_reason(tmp_path: Path) -> None:
    place = package(tmp_path, "raise OSError('libbcc.so.0: cannot open shared object file')")
    with pytest.raises(FarmError, match=r"libbcc\.so\.0.*--reinstall"):
        loader.load_bcc((place,))
    assert "bcc" not in sys.modules


def make_headers(sources: Path, version: str) -> None:
    common, flavour = (sources / f"linux-headers-{version}-{part}" for part in ("common", "amd64"))
    (common / "include" / "linux").mkdir(parents=True)
    (common / "include" / "linux" / "types.h").write_text("common")
    (common / "Makefile").write_text("common")
    (flavour / "include" / "generated").mkdir(parents=True)
    (flavour / "include" / "generated" / "autoconf.h").write_text("flavour")
    (flavour / "Makefile").write_text("flavour")


def test_the_running_kernels_own_headers_come_first(tmp_path: Path) -> None:
    (tmp_path / "modules" / "6.1.0-9" / "build" / "include").mkdir(parents=True)
    with loader.kernel_headers(
        "6.1.0-9", modules=tmp_path / "modules", sources=tmp_path, kheaders=tmp_path / "x"
    ) as which:
        assert which == "those of 6.1.0-9"
        assert "BCC_KERNEL_SOURCE" not in os.environ


def test_headers_of_another_kernel_are_merged_and_taken_away_again(tmp_path: Path) -> None:
    make_headers(tmp_path, "6.1.0-9")
    make_headers(tmp_path, "6.1.0-56")
    missing = tmp_path / "none"
    with loader.kernel_headers("6.18.1", modules=missing, sources=tmp_path, kheaders=missing) as which:
        tree = Path(os.environ["BCC_KERNEL_SOURCE"])
        assert "6.1.0-56-amd64" in which
        assert (tree / "include" / "linux" / "types.h").read_text() == "common"
        assert (tree / "include" / "generated" / "autoconf.h").read_text() == "flavour"
        assert (tree / "Makefile").read_text() == "flavour"
    assert not tree.exists()
    assert "BCC_KERNEL_SOURCE" not in os.environ


def test_without_headers_it_says_what_to_install(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with (
        pytest.raises(FarmError, match=r"none for 6\.18\.1.*apt-get install linux-headers"),
        loader.kernel_headers("6.18.1", modules=missing, sources=tmp_path, kheaders=missing),
    ):
        pass


def test_a_tree_named_by_the_user_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/my/tree")
    with loader.kernel_headers("6.18.1", modules=tmp_path, sources=tmp_path, kheaders=tmp_path / "x") as which:
        assert which == "those in /my/tree"


def make_btf() -> bytes:
    """struct outer { int a; struct { int hidden; }; wrapped_t box; }; wrapped_t is a struct with a field `net`."""
    strings = b"\0"

    def text(name: str) -> int:
        nonlocal strings
        at = len(strings)
        strings += name.encode() + b"\0"
        return at

    def kind(number: int, members: int = 0) -> int:
        return number << 24 | members

    records = [
        struct.pack("<IIII", text("int"), kind(1), 4, 32),  # 1
        struct.pack("<III", 0, kind(4, 1), 4) + struct.pack("<III", text("hidden"), 1, 0),  # 2: without a name
        struct.pack("<III", 0, kind(4, 1), 8) + struct.pack("<III", text("net"), 1, 32),  # 3
        struct.pack("<III", text("wrapped_t"), kind(8), 3),  # 4: typedef
        struct.pack("<III", text("outer"), kind(4, 3), 16)  # 5
        + struct.pack("<III", text("a"), 1, 0)
        + struct.pack("<III", 0, 2, 32)
        + struct.pack("<III", text("box"), 4, 64),
        struct.pack("<III", text("reason"), kind(6, 2), 4)
        + struct.pack("<Ii", text("ONE"), 1)
        + struct.pack("<Ii", text("TWO"), 2),
        struct.pack("<III", text("odd"), kind(4, 1) | 1 << 31, 4) + struct.pack("<III", text("bits"), 1, 3 << 24 | 8),
    ]
    types = b"".join(records)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


def test_offsets_come_from_the_kernels_types() -> None:
    types = Types(make_btf())

    assert types.offset("outer", "a") == 0
    assert types.offset("outer", "hidden") == 4, "inside a member without a name"
    assert types.offset("outer", "box.net") == 12, "through a typedef"
    assert types.offset("odd", "bits") == 1
    assert types.enumerators("reason") == {1: "ONE", 2: "TWO"}


@pytest.mark.parametrize(("structure", "path"), [("outer", "absent"), ("nowhere", "a"), ("outer", "a.deeper")])
def test_what_the_kernel_does_not_have_is_an_error(structure: str, path: str) -> None:
    with pytest.raises(KernelError, match="kernel types"):
        Types(make_btf()).offset(structure, path)


@pytest.mark.parametrize("blob", [b"", b"x" * 24, make_btf()[:60]])
def test_a_broken_blob_is_an_error(blob: bytes) -> None:
    with pytest.raises(KernelError, match="cannot be read"):
        Types(blob)


def test_a_kernel_that_hides_its_symbols_is_an_error() -> None:
    scope = program.Scope(1, (), None, 100)
    with pytest.raises(KernelError, match="kptr_restrict"):
        program.source(Types(make_btf()), ["0000000000000000 T do_xdp_generic"], scope)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--client", "nobody"], "--client nobody: it is no address and no network."),
        (["--vip", "10.0.0.0/8"], "--vip 10.0.0.0/8: it is no address."),
        (["--verdict", "maybe"], "--verdict maybe: there is no such verdict. Write one of pass, drop, tx."),
    ],
)
def test_wrong_filters_are_usage_errors(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trace", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_errors_of_the_tracer_are_farmctls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "--config", str(tmp_path / "farm.toml")]) == 9
    assert "farm.toml" in capsys.readouterr().err
