# SPDX-License-Identifier: Apache-2.0
"""Finds the distribution's bcc, and kernel headers for it to compile against.

`import bcc` is not enough: a venv does not see the distribution's modules, and an unrelated package on the Python
package index has the same name. bcc needs headers only for its own prologue and the UAPI types (all our offsets come
from BTF), so those of another kernel version do when the running kernel has none.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from farmd.model.errors import FarmError

DISTRIBUTION = Path("/usr/lib/python3/dist-packages")
MODULES = Path("/lib/modules")
SOURCES = Path("/usr/src")
KHEADERS = Path("/sys/kernel/kheaders.tar.xz")
_DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's names of machines."""
_SOURCE_VARIABLE = "BCC_KERNEL_SOURCE"


def load_bcc(places: Sequence[Path] = (DISTRIBUTION,)) -> Any:
    """The distribution's `bcc` module. FarmError, with the package to install, if it is not there."""
    module = sys.modules.get("bcc") or _import_ours(places)
    if module is None or not hasattr(module, "BPF"):
        cause = "the distribution's Python module bcc is not installed"
        if module is not None:
            cause = f"{module.__file__} is another package of that name"
        raise FarmError("bcc", cause, "Install it: `apt-get install python3-bpfcc` (not from the Python package index)")
    return module


def _import_ours(places: Sequence[Path]) -> Any:
    """bcc from the first of `places` that has it; else whatever this interpreter finds by that name; else None."""
    for place in places:
        if not (place / "bcc" / "__init__.py").is_file():
            continue
        path = place / "bcc" / "__init__.py"
        spec = importlib.util.spec_from_file_location("bcc", path, submodule_search_locations=[str(path.parent)])
        assert spec is not None  # for a file that exists and ends in .py there always is one
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["bcc"] = module  # its parts import one another by this name
        try:
            spec.loader.exec_module(module)
        except (ImportError, OSError) as error:
            del sys.modules["bcc"]
            step = "Install it again: `apt-get install --reinstall python3-bpfcc libbpfcc`"
            raise FarmError("bcc", f"{path} cannot be loaded: {error}", step) from error
        return module
    try:
        return importlib.import_module("bcc")
    except ImportError:
        return None


@contextmanager
def kernel_headers(
    release: str = "", *, modules: Path = MODULES, sources: Path = SOURCES, kheaders: Path = KHEADERS
) -> Iterator[str]:
    """Make bcc find kernel headers while it compiles; yields which ones, in words.

    The running kernel's own if installed; else, from /usr/src, Debian's pair of header packages merged into one
    temporary tree of symbolic links. FarmError, with the package to install, if there are none.
    """
    release = release or platform.release()
    if os.environ.get(_SOURCE_VARIABLE):
        yield f"those in {os.environ[_SOURCE_VARIABLE]}"
        return
    if (modules / release / "build" / "include").is_dir() or kheaders.exists():
        yield f"those of {release}"
        return
    pair = _newest_pair(sources)
    if pair is None:
        cause = f"there are none for {release}, and bcc cannot compile without"
        debian = _DEBIAN.get(platform.machine(), platform.machine())
        raise FarmError("kernel headers", cause, f"Install them: `apt-get install linux-headers-{debian}`")
    with TemporaryDirectory(prefix="farmd-headers-") as tree:
        merge(Path(tree), pair)
        os.environ[_SOURCE_VARIABLE] = tree
        try:
            yield f"those of {pair[1].name.removeprefix('linux-headers-')} (none for {release} are installed)"
        finally:
            del os.environ[_SOURCE_VARIABLE]


def _newest_pair(sources: Path) -> tuple[Path, Path] | None:
    """(common, flavour): Debian splits a kernel's headers into what all flavours share and what one adds."""
    for common in sorted(sources.glob("linux-headers-*-common"), key=_version, reverse=True):
        for flavour in sorted(sources.glob(common.name.removesuffix("common") + "*")):
            if flavour != common and (flavour / "include" / "generated").is_dir():
                return common, flavour
    return None


def _version(path: Path) -> list[int]:
    return [int(part) for part in path.name.replace("-", ".").split(".") if part.isdigit()]


def merge(target: Path, trees: Sequence[Path]) -> None:
    """Let `target` show the union of `trees` by links; a file that several have is the last one's."""
    names: dict[str, list[Path]] = {}
    for tree in trees:
        for entry in tree.iterdir():
            names.setdefault(entry.name, []).append(entry)
    for name, entries in names.items():
        if len(entries) > 1 and all(entry.is_dir() for entry in entries):
            (target / name).mkdir()
            merge(target / name, entries)
        else:
            (target / name).symlink_to(entries[-1])
