# SPDX-License-Identifier: Apache-2.0
"""What is not replicated: the patterns' meaning, against an oracle of Python's own, and what is wrong with one."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farmd.mirror.native import excludes
from farmd.model.exclusions import fault


@pytest.mark.parametrize(
    ("pattern", "path", "is_so"),
    [
        ("*.tmp", b"a.tmp", True),
        ("*.tmp", b"deep/down/a.tmp", True),
        ("*.tmp", b"a.tmp.gz", False),
        ("*.tmp", b".tmp", True),
        ("cache", b"a/cache/b/c", True),
        ("/cache", b"cache/b", True),
        ("/cache", b"a/cache", False),
        ("a/*/c", b"a/b/c/d", True),
        ("a/*/c", b"a/b/b/c", False),
        ("a/*", b"a", False),
        ("?", b"\xff", True),
        ("??", "é".encode(), True),
        ("[!a-c]x", b"dx", True),
        ("[!a-c]x", b"bx", False),
        ("[]]", b"]", True),
        ("\\*", b"*", True),
        ("\\*", b"x", False),
        ("a*b*c", b"aXbYbZc", True),
        ("a*b*c", b"aXbYbZ", False),
        ("*", b"a/b", True),
    ],
)
def test_what_a_pattern_names(pattern: str, path: bytes, is_so: bool) -> None:
    assert excludes((pattern,), path) is is_so
    assert excludes(("nothing", pattern), path) is is_so


def _oracle(pattern: str, path: str) -> bool:
    """Component by component with Python's fnmatch, for the path and each directory that it is in."""
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        above = parts[:count]
        if "/" not in pattern:
            if fnmatchcase(above[-1], pattern):
                return True
            continue
        wanted = pattern.removeprefix("/").split("/")
        if len(wanted) == count and all(map(fnmatchcase, above, wanted)):
            return True
    return False


_NAMES = st.text("ab", min_size=1, max_size=3)


@given(st.lists(_NAMES, min_size=1, max_size=4).map("/".join), st.text("ab*?/[]!-", min_size=1, max_size=8))
def test_patterns_mean_what_pythons_do(path: str, pattern: str) -> None:
    if fault(pattern) is None:
        assert excludes((pattern,), path.encode()) == _oracle(pattern, path)


@pytest.mark.parametrize(
    "pattern", ["", "/", "a//b", "a/", "..", "a/../b", "./a", "a\nb", "**/a", "*", "[ab", "a\\", "x" * 2000]
)
def test_a_pattern_that_means_nothing_is_a_fault(pattern: str) -> None:
    assert fault(pattern)


@pytest.mark.parametrize("pattern", ["*.tmp", "/a/b", "[]x]", "[!]x]", "\\[", "lost+found", "a/*"])
def test_a_good_pattern_has_none(pattern: str) -> None:
    assert fault(pattern) is None
