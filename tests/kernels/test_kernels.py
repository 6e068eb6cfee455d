# SPDX-License-Identifier: Apache-2.0
"""The filter loads and does its work on another kernel too. A sample; `make kernels` runs every packet test there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.image import archive, closure, depends
from tests.kernels.run import MODULES, SAMPLE, find_kernel, pytest_command, run_in_guest


@pytest.mark.root
@pytest.mark.timeout(900)
def test_the_filter_works_on_the_distributions_kernel() -> None:
    result = run_in_guest(find_kernel(), pytest_command(SAMPLE), limit_s=800)

    assert result.status == 0, result.console
    assert " passed" in result.console


@pytest.mark.root
def test_how_a_command_ends_is_told() -> None:
    result = run_in_guest(find_kernel(), "echo said; exit 7", limit_s=200)

    assert (result.status, "said" in result.console) == (7, True)


def test_modules_come_after_those_they_need() -> None:
    kernel = find_kernel()
    order = [path.stem.replace("-", "_") for path in closure(kernel.modules, MODULES)]

    assert set(order) >= {"9p", "9pnet", "overlay", "veth", "virtio_pci"}
    for path in closure(kernel.modules, MODULES):
        assert all(order.index(need) < order.index(path.stem.replace("-", "_")) for need in depends(path))
    with pytest.raises(FileNotFoundError, match="has no module unheard_of"):
        closure(kernel.modules, ["unheard_of"])


def test_the_archive_is_aligned(tmp_path: Path) -> None:
    """The kernel reads headers and contents at multiples of four."""
    init, module = tmp_path / "init", tmp_path / "some.ko"
    init.write_bytes(b"12345")
    module.write_bytes(b"1")
    made = archive(init, [module], "true")

    at, names = 0, []
    while at < len(made):
        assert made[at : at + 6] == b"070701"
        size, name_size = int(made[at + 54 : at + 62], 16), int(made[at + 94 : at + 102], 16)
        names.append(made[at + 110 : at + 109 + name_size].decode())
        at += -(-(110 + name_size) // 4) * 4
        at += -(-size // 4) * 4
    assert names == ["dev", "dev/console", "modules", "modules/000-some.ko", "command", "init", "TRAILER!!!"]
