# SPDX-License-Identifier: Apache-2.0
"""Takes a safeguard away from code under test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

Patch = tuple[object, str, object]
"""Owner, the attribute's name, and what stands in for it."""


@contextmanager
def patched(patches: Iterable[Patch]) -> Iterator[None]:
    """All of `patches` in place, as long as the context lasts."""
    with ExitStack() as stack:
        for owner, name, replacement in patches:
            stack.enter_context(patch.object(owner, name, replacement))
        yield
