# SPDX-License-Identifier: Apache-2.0
"""What `farmctl mirror create` says of directories: `[NAME=]PATH` and `[NAME:]PATTERN`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from farmd.model.errors import BadRequest, NotFound
from farmd.model.mirrorfile import Directory, named


def directories_of(words: list[str], exclude: list[str], image_bytes: int) -> tuple[Directory, ...]:
    """What `[NAME=]PATH` and `[NAME:]PATTERN` say. Raises NotFound, BadRequest."""
    found = []
    for word in words:
        told, _, rest = word.rpartition("=") if not Path(word).is_dir() else ("", "", word)
        path = Path(rest)
        if not path.is_dir():
            raise NotFound(rest, "there is no such directory", "Make it, then try again")
        own = path.is_mount()
        found.append(Directory(str(path.resolve()), told, image_bytes=image_bytes, own_mount=own))
    directories = named(tuple(found))
    _see_that_they_differ(directories)
    return tuple(replace(each, exclude=_patterns_of(each.name, exclude, directories)) for each in directories)


def _see_that_they_differ(directories: tuple[Directory, ...]) -> None:
    """One directory may have two paths: a bind mount."""
    seen: dict[tuple[int, int], str] = {}
    for each in directories:
        st = Path(each.path).stat()
        if (other := seen.setdefault((st.st_dev, st.st_ino), each.path)) != each.path:
            raise BadRequest(each.path, f"it is the same directory as {other}", "Name each directory once")


def _patterns_of(name: str, exclude: list[str], directories: tuple[Directory, ...]) -> tuple[str, ...]:
    names = {each.name for each in directories if each.name}
    told = [pattern.partition(":") for pattern in exclude]
    return tuple(
        rest if before in names and colon else before + colon + rest
        for before, colon, rest in told
        if before not in names or not colon or before == name
    )
