# SPDX-License-Identifier: Apache-2.0
"""The arbiters: one register with compare-and-swap, kept by the operator, in a shared file, or by a witness."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from farmd.mirror.arbiter import Answer, Claim, Register, decide, decide_by_operator, followed
from farmd.mirror.generation import Generation
from farmd.mirrord import witness
from farmd.mirrord.disk import read_register, write_register
from farmd.mirrord.keys import Keys
from farmd.model.mirrorfile import MirrorConfig, address
from farmd.model.nodes import NodeId

T = TypeVar("T")


class Arbiter(Protocol):
    """Raises OSError or FarmError when it cannot be asked: then nobody knows, and the claim is repeated."""

    async def claim(self, claim: Claim, ordered: bool) -> Answer:
        """The compare-and-swap."""

    async def read(self) -> Register:
        """What the register holds."""

    def follow(self, generation: Generation) -> None:
        """This node's copy was brought to `generation`."""


class OperatorArbiter:
    """This node's own copy of the register: only its primary and the administrator move it."""

    def __init__(self, path: Path, mirror: bytes, me: NodeId) -> None:
        self._path, self._mirror, self._me = path, mirror, me

    async def claim(self, claim: Claim, ordered: bool) -> Answer:
        """Decide here."""
        answer = decide_by_operator(await self.read(), claim, self._me, ordered=ordered)
        if answer.granted:
            write_register(self._path, self._mirror, answer.register)
        return answer

    async def read(self) -> Register:
        """From the file."""
        return read_register(self._path, self._mirror)

    def follow(self, generation: Generation) -> None:
        """The register follows the data."""
        before = read_register(self._path, self._mirror)
        after = followed(before, generation, self._me)
        if after != before:
            write_register(self._path, self._mirror, after)


class FileArbiter:
    """A register in a file that both nodes see, under a lock. The disk must keep locks and renames for both of them."""

    def __init__(self, path: Path, mirror: bytes, me: NodeId) -> None:
        self._path, self._mirror, self._me = path, mirror, me

    async def claim(self, claim: Claim, ordered: bool) -> Answer:
        """Decide under the lock."""
        return await asyncio.to_thread(self._locked, lambda: self._decide(claim))

    async def read(self) -> Register:
        """From the file."""
        return await asyncio.to_thread(self._locked, lambda: read_register(self._path, self._mirror))

    def follow(self, generation: Generation) -> None:
        """Nothing: the register is one for both."""

    def _decide(self, claim: Claim) -> Answer:
        answer = decide(read_register(self._path, self._mirror), claim, self._me)
        if answer.granted:
            write_register(self._path, self._mirror, answer.register)
        return answer

    def _locked(self, action: Callable[[], T]) -> T:
        fd = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            return action()
        finally:
            os.close(fd)


class WitnessArbiter:
    """A register on a third machine, asked over TCP."""

    def __init__(self, place: tuple[str, int], mirror: bytes, me: NodeId, keys: Keys | None) -> None:
        self._place, self._mirror, self._me, self._keys = place, mirror, me, keys

    async def claim(self, claim: Claim, ordered: bool) -> Answer:
        """Ask the witness, which decides and makes it durable."""
        return await witness.ask(self._place, self._mirror, self._me, claim, self._keys)

    async def read(self) -> Register:
        """Ask what it holds."""
        return (await witness.ask(self._place, self._mirror, self._me, None, self._keys)).register

    def follow(self, generation: Generation) -> None:
        """Nothing: the register is one for both."""


def make(config: MirrorConfig, folder: Path, keys: Keys | None) -> Arbiter:
    """The arbiter that the configuration names."""
    mirror, me = bytes.fromhex(config.mirror), NodeId(config.node)
    kind, _, where = config.arbiter.partition(":")
    if kind == "file":
        return FileArbiter(Path(where), mirror, me)
    if kind == "witness":
        return WitnessArbiter(address(where), mirror, me, keys)
    return OperatorArbiter(folder / "register", mirror, me)
