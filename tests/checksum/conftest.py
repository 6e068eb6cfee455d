# SPDX-License-Identifier: Apache-2.0
"""A disk of their own for these tests: a run ends with syncfs, which would wait for all that others write here."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checksum.rig import disk


@pytest.fixture(scope="session")
def quiet_disk() -> Iterator[Path]:
    """An ext4 in memory."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="checksum-", dir=memory if memory.is_dir() else None) as folder,
        disk(Path(folder), 2048) as mount,
    ):
        yield mount


@pytest.fixture
def tmp_path(quiet_disk: Path) -> Iterator[Path]:
    """In place of pytest's own."""
    folder = Path(tempfile.mkdtemp(dir=quiet_disk))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
