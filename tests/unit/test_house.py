# SPDX-License-Identifier: Apache-2.0
"""The house rules that a reader cannot check by eye: who imports whom, how long a module is, what a text may say."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_IMPORT: dict[str, set[str]] = {
    "model": set(),
    "client": {"model"},
    "membership": {"model"},
    "dataplane": {"model"},
    "net": {"model"},
    "modules": {"model"},
    "checkers": {"model"},
    "mirror": {"model"},
    "mirrord": {"model", "mirror"},
    "daemon": {"model", "membership", "dataplane", "net", "modules", "checkers", "mirror", "metrics"},
    "metrics": {"model", "client"},
    "console": {"model", "client"},
    # A frozen daemon cannot say how its lease stands, so the lab also looks at what is pinned.
    "lab": {"model", "net", "client", "dataplane"},
    "doctor": {"model", "client", "net", "dataplane"},
    "trace": {"model", "client", "net", "dataplane"},
    "cli": {"model", "client", "lab", "doctor", "mirrord"},
}
"""Which rooms a room may import besides itself. `client` is the module that speaks the daemon's API."""

SHARED = ("farmd.membership.keys", "farmd.daemon.httpd")
"""Modules that every room may import: the format of the key file has one home, and `cli` and `lab` make such files;
every local API is served on its socket in one way."""

MAX_LINES = 420
MAX_FUNCTION_LINES = 48
"""About 40 and some grace, docstring not counted."""
HEAVY = {
    "prometheus_client",
    "pyroute2",
    "scapy",
    "pydantic",
    "cryptography",
    "starlette",
    "uvicorn",
    "spanned_toml",
    "hypothesis",
}
LIGHT_MODULES = ["farmd.cli.main", "farmd.model.farmfile", "farmd.net.setup", "farmd.net.sockets", "farmd.net.gateway"]
"""Modules that must import quickly: nothing of HEAVY at import time."""
SPDX = {
    ".py": "# SPDX-License-Identifier: Apache-2.0",
    ".c": "// SPDX-License-Identifier:",
    ".h": "// SPDX-License-Identifier:",
    "Makefile": "# SPDX-License-Identifier: Apache-2.0",
    ".toml": "# SPDX-License-Identifier: Apache-2.0",
}
FORBIDDEN = {
    "unfinished work": re.compile(r"\b(TO" r"DO|FIX" r"ME|XXX|HACK)\b"),
    "a path of one machine": re.compile(r"(?<![\w.])/(work|root|home/\w+)/"),
    "the host of a package index": re.compile(r"\b(pypi\.org|pythonhosted|index-url)\b"),
    "a test that is switched off": re.compile(r"pytest\.(skip|importorskip|xfail|mark\.(skip|skipif|xfail))\b"),
}


def _files() -> list[Path]:
    """Every text file of the project, as git sees it; without git, as the folder has it."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        found = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        found = [
            Path(folder) / name
            for folder, folders, names in os.walk(ROOT)
            if not folders.__setitem__(
                slice(None), [each for each in folders if not each.startswith((".venv", ".git"))]
            )
            for name in names
        ]
    return [path for path in found if path.is_file() and path.suffix not in {".so", ".o", ".pyc"}]


FILES = _files()
PYTHON = [path for path in FILES if path.suffix == ".py"]
PACKAGE = [path for path in PYTHON if path.is_relative_to(ROOT / "farmd")]
TREES = {path: ast.parse(path.read_text(), str(path)) for path in PYTHON}


def _room(module: str) -> str | None:
    """`net` for `farmd.net.setup`; None for what is not ours or has no room."""
    parts = module.split(".")
    return parts[1] if parts[0] == "farmd" and len(parts) > 1 and parts[1] in MAY_IMPORT else None


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that is imported anywhere in `tree`, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from farmd import net` names the room among the names.
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_rooms_import_only_what_the_house_allows() -> None:
    wrong = []
    for path in PACKAGE:
        here = _room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if here is None:
            continue
        for module, line in _imports(TREES[path]):
            there = _room(module)
            if there not in {None, here} | MAY_IMPORT[here] and not module.startswith(SHARED):
                wrong.append(f"{_shown(path)}:{line}: {here} imports {module}")

    assert wrong == []


def test_every_room_is_in_the_plan() -> None:
    rooms = {path.relative_to(ROOT / "farmd").parts[0].removesuffix(".py") for path in PACKAGE}

    assert rooms - set(MAY_IMPORT) == {"__init__"}


def test_modules_are_short() -> None:
    lines = {_shown(path): len(path.read_text().splitlines()) for path in PACKAGE}

    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_functions_are_short() -> None:
    long = {}
    for path in PACKAGE:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                start = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0].lineno
                count = (node.end_lineno or start) - start + 1
                if count > MAX_FUNCTION_LINES:
                    long[f"{_shown(path)}:{node.lineno} {node.name}"] = count

    assert long == {}


@pytest.mark.parametrize("module", [name for name in LIGHT_MODULES if (ROOT / f"{name.replace('.', '/')}.py").exists()])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import {module}, sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert HEAVY & set(loaded.stdout.split()) == set()


def test_every_source_file_names_its_licence_first() -> None:
    wrong = []
    for path in FILES:
        expected = SPDX.get(path.suffix) or SPDX.get(path.name)
        if expected is None or path.name == "pyproject.toml":
            continue
        first = next((line for line in path.read_text().splitlines() if not line.startswith("#!")), "")
        if first and not first.startswith(expected):
            wrong.append(_shown(path))

    assert wrong == []


def test_kernel_code_may_be_loaded() -> None:
    """The kernel gives its GPL-only helpers to nobody else."""
    sources = [path for path in FILES if path.parent == ROOT / "ebpf" and path.suffix in {".c", ".h"}]
    expected = "// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)"

    assert [_shown(path) for path in sources if not path.read_text().startswith(expected)] == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_has(what: str) -> None:
    found = [
        f"{_shown(path)}:{number}: {line.strip()}"
        for path in FILES
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if FORBIDDEN[what].search(line)
    ]

    assert found == []


def test_the_licence_is_the_whole_standard_text() -> None:
    text = (ROOT / "LICENSE").read_text()

    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text.splitlines()) == 202


@pytest.mark.parametrize("script", [".ci/run", ".ci/setup"])
def test_scripts_are_executable_and_stop_at_the_first_error(script: str) -> None:
    path = ROOT / script

    assert os.access(path, os.X_OK)
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)
