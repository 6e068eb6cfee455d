# SPDX-License-Identifier: Apache-2.0
"""The two directories that most tests compare."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Empty, source and target."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    return source, target
