# SPDX-License-Identifier: Apache-2.0
"""What of a mirrored directory stays on its node: patterns, and what is wrong with one.

A pattern without a slash names an entry at any depth (`*.tmp`, `lost+found`); one with a slash is a path below the
directory, and a slash at its beginning only anchors it (`/pg_stat_tmp`, `cache/*.dat`). With each entry all below it is
excluded. `*` and `?` match within one name, `[abc]`, `[a-z]`, `[!a]` one byte, a backslash takes the next byte as it
is. SafeKit's `notreplicated path="rel"` is `/rel`; of its `regexpath`, `.*\\.tmp$` is `*.tmp`. `cext/exclude.h` decides
for all parts of the data path alike.
"""

from __future__ import annotations

MAX_PATTERNS = 256
MAX_BYTES = 1024


def fault(pattern: str) -> str | None:
    """What is wrong with `pattern`, or None."""
    parts = pattern.removeprefix("/").split("/")
    if len(pattern.encode(errors="surrogateescape")) > MAX_BYTES:
        return f"a pattern has at most {MAX_BYTES} bytes"
    if "\n" in pattern or "\0" in pattern:
        return "a pattern has no line breaks and no zero bytes"
    if not all(parts):
        return "it is empty, or has an empty component"
    if any(part in (".", "..") for part in parts):
        return "'.' and '..' name nothing below the directory"
    if any("**" in part for part in parts):
        return "'**' is not known: a pattern without a slash is looked for at any depth"
    if all(set(part) <= {"*"} for part in parts) and len(parts) == 1:
        return "it would exclude everything"
    if any(_open_bracket(part) for part in parts):
        return "a '[' has no ']' (write '\\[' for the character itself)"
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        return "the backslash at its end takes nothing"
    return None


def _open_bracket(part: str) -> bool:
    at = 0
    while at < len(part):
        if part[at] == "\\":
            at += 2
        elif part[at] == "[":
            first = at + 1 + (part[at + 1 : at + 2] in ("!", "^"))
            end = part.find("]", first + 1)
            if end < 0:
                return True
            at = end + 1
        else:
            at += 1
    return False
