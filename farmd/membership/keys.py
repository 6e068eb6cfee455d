# SPDX-License-Identifier: Apache-2.0
"""The farm's secrets: a key file, the same on every node, mode 0600.

One setting a line, `name: value`; empty lines and lines that begin with `#` are skipped:

    hash-key: cCqQ...==       16 bytes in base64: the key of the bucket hash; changing it moves every client
    active: 2                 which of the keys below seals what we send
    key 1: 8sWk...=           32 bytes in base64; numbers 1..255. What we receive may be sealed with any of them
    key 2: Zm9v...=

To change the key without a gap, in three sweeps over all nodes: add the new key, make it active, remove the old one.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from farmd.model.errors import ConfigError, Problem

KEY_BYTES = 32
HASH_KEY_BYTES = 16
MAX_KEY_ID = 255


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys by number, the number of the one that seals, and the bucket hash's key. Shows no secret when printed."""

    keys: Mapping[int, bytes] = field(repr=False)
    active: int
    hash_key: bytes = field(repr=False)

    @classmethod
    def new(cls) -> KeyRing:
        """A fresh ring with one key, from the operating system's randomness."""
        return cls({1: secrets.token_bytes(KEY_BYTES)}, 1, secrets.token_bytes(HASH_KEY_BYTES))

    @classmethod
    def parse(cls, text: str, path: Path) -> KeyRing:
        """Read a key file's text. ConfigError with every problem and its line; no problem quotes a secret."""
        return _Parser(str(path)).parse(text)

    def render(self) -> str:
        """The text of a key file; `parse(render())` gives an equal ring."""
        lines = [
            "# The farm's secrets. The same file on every node, mode 0600.",
            f"hash-key: {_base64(self.hash_key)}",
            f"active: {self.active}",
            *(f"key {number}: {_base64(key)}" for number, key in sorted(self.keys.items())),
        ]
        return "\n".join(lines) + "\n"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class _Parser:
    """Reads one file, collecting problems."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._problems: list[Problem] = []
        self._keys: dict[int, bytes] = {}
        self._hash_key: bytes | None = None
        self._active: tuple[int, int] | None = None

    def parse(self, text: str) -> KeyRing:
        for number, line in enumerate(text.splitlines(), start=1):
            stripped = line.strip()
            if stripped and not stripped.startswith("#"):
                self._line(number, stripped)
        if self._hash_key is None and not self._problems:
            self._problem(
                0, "there is no hash-key", "Copy the key file of another node, or make one with `farmctl keygen`"
            )
        if not self._keys and not self._problems:
            self._problem(0, "there is no key", "Copy the key file of another node, or make one with `farmctl keygen`")
        active = self._checked_active()
        if self._problems or self._hash_key is None:
            raise ConfigError(tuple(self._problems))
        return KeyRing(self._keys, active, self._hash_key)

    def _checked_active(self) -> int:
        if self._active is None:
            if len(self._keys) > 1:
                self._problem(0, "it does not say which key is active", "Add a line like `active: 1`")
            return next(iter(self._keys), 0)
        line, active = self._active
        if active not in self._keys and not self._problems:
            known = ", ".join(str(number) for number in sorted(self._keys))
            self._problem(line, f"the active key {active} is not in the file", f"Name one of: {known}")
        return active

    def _line(self, line: int, text: str) -> None:
        name, colon, value = (part.strip() for part in text.partition(":"))
        words = name.split()
        if not colon:
            self._problem(line, "this is not `name: value`", "Use `hash-key:`, `active:` or `key N:`")
        elif name == "hash-key":
            if self._hash_key is not None:
                self._problem(line, "a second hash-key", "Keep one")
            self._hash_key = self._secret(line, "hash-key", value, HASH_KEY_BYTES)
        elif name == "active":
            number = self._number(line, value)
            if self._active is not None:
                self._problem(line, "a second active", "Keep one")
            self._active = None if number is None else (line, number)
        elif len(words) == 2 and words[0] == "key":
            self._key(line, words[1], value)
        else:
            self._problem(line, "this setting is unknown", "Use `hash-key:`, `active:` or `key N:`")

    def _key(self, line: int, word: str, value: str) -> None:
        number = self._number(line, word)
        key = self._secret(line, "key", value, KEY_BYTES)
        if number is None or key is None:
            return
        if number in self._keys:
            self._problem(line, f"a second key {number}", "Give each key its own number")
        self._keys[number] = key

    def _number(self, line: int, text: str) -> int | None:
        if text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= MAX_KEY_ID:
            return int(text[:4])
        self._problem(line, "a key's number is a whole number from 1 to 255", "Write for example `key 1:`")
        return None

    def _secret(self, line: int, name: str, text: str, size: int) -> bytes | None:
        try:
            secret = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            self._problem(line, f"the {name} is not base64", "Copy the line again from another node")
            return None
        if len(secret) != size:
            self._problem(line, f"the {name} has {len(secret)} bytes instead of {size}", "Copy the line again")
            return None
        return secret

    def _problem(self, line: int, cause: str, next_step: str) -> None:
        self._problems.append(Problem(self._path, line, 1 if line else 0, cause, next_step))
