# SPDX-License-Identifier: Apache-2.0
"""One loaded filter for all tests of a module; each test finds a node that owns every bucket and holds its lease."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import missing_privilege
from tests.packet.rig import Rig


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if lacking := missing_privilege():
        pytest.fail(lacking, pytrace=False)
    with Rig(request.module.__name__.rpartition("_")[2]) as rig:
        yield rig


@pytest.fixture
def rig(loaded: Rig) -> Rig:
    loaded.reset()
    return loaded
