# SPDX-License-Identifier: Apache-2.0
"""What the doctor says: one finding a check and object."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from farmd.model.errors import FarmError


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Works, but worse than it could, or only under a condition that the text names."""
    FAIL = "fail"
    """The farm does not work, or is not safe, until this is mended."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names the question and stays the same over releases; `text` is what was found, `fix` what to do (one
    sentence; "" if there is nothing to do)."""

    check: str
    level: Level
    text: str
    fix: str = ""


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, text)


def warn(check: str, text: str, fix: str) -> Finding:
    """Not as good as it could be."""
    return Finding(check, Level.WARN, text, fix)


def fail(check: str, text: str, fix: str) -> Finding:
    """Has to be mended."""
    return Finding(check, Level.FAIL, text, fix)


def of_error(check: str, error: FarmError) -> Finding:
    """A check that could not even be made."""
    return fail(check, f"{error.subject}: {error.cause}", error.next_step)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level among `findings`; OK if there are none."""
    return max((finding.level for finding in findings), key=list(Level).index, default=Level.OK)
