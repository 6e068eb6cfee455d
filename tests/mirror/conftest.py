# SPDX-License-Identifier: Apache-2.0
"""What all tests of the mirror share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mirror.uring import WANTED, switched_on


@pytest.fixture(scope="session", autouse=True)
def _over_io_uring() -> Iterator[None]:
    """See `tests.mirror.uring`."""
    if WANTED:
        with switched_on() as on:
            assert on, "this kernel has no FUSE over io_uring"
            yield
    else:
        yield
