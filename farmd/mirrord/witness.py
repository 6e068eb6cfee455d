# SPDX-License-Identifier: Apache-2.0
"""A witness: a third machine that holds registers and grants whoever claims what matches.

    python -m farmd.mirrord.witness --listen HOST:PORT --folder FOLDER [--keys FOLDER]

One line of JSON a question, one a answer, over mutual TLS 1.3 if there are keys. An answer is given after the register
is durable. One register a mirror, `FOLDER/<identity>`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from farmd.mirror.arbiter import Answer, Claim, Occasion, Register, decide
from farmd.mirror.generation import BLANK, Generation
from farmd.mirrord.disk import read_register, write_register
from farmd.mirrord.keys import WITNESS, Keys
from farmd.model.errors import FarmError, PeerError
from farmd.model.mirrorfile import address
from farmd.model.nodes import NodeId

TIMEOUT_S = 3.0
_LINE = 4096
_IDENTITY = re.compile(r"[0-9a-f]{32}")


def _generation(value: Any) -> Generation:
    epoch, tag = value
    return Generation(int(epoch), int(tag)) if epoch or tag else BLANK


def _plain(generation: Generation) -> list[int]:
    return [generation.epoch, generation.tag]


async def ask(place: tuple[str, int], mirror: bytes, me: NodeId, claim: Claim | None, keys: Keys | None) -> Answer:
    """Claim, or with None only read. Raises PeerError without an answer: it may have been granted."""
    question: dict[str, Any] = {"mirror": mirror.hex(), "node": int(me)}
    if claim is not None:
        question["claim"] = {
            "expected": _plain(claim.expected),
            "new": _plain(claim.new),
            "occasion": claim.occasion.value,
            "forced": claim.forced,
        }
    try:
        async with asyncio.timeout(TIMEOUT_S):
            tls = keys.client() if keys else None
            reader, writer = await asyncio.open_connection(*place, ssl=tls, server_hostname=WITNESS if tls else None)
            try:
                writer.write(json.dumps(question).encode() + b"\n")
                answer = json.loads(await reader.readline())
            finally:
                writer.close()
        if "error" in answer:
            raise ValueError(answer["error"])
        register = Register(_generation(answer["generation"]), NodeId(answer["holder"]), answer["moves"])
        return Answer(bool(answer["granted"]), register)
    except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
        name = f"witness {place[0]}:{place[1]}"
        raise PeerError(name, f"it did not answer ({error})", "Start it, or see what is between") from error


class Witness:
    """Answers questions, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def answer(self, question: Any) -> dict[str, Any]:
        """Decide, make it durable, and say it. Raises ValueError for what is no question."""
        mirror = question["mirror"]
        if not isinstance(mirror, str) or not _IDENTITY.fullmatch(mirror):
            raise ValueError("not a mirror's identity")
        path, identity = self._folder / mirror, bytes.fromhex(mirror)
        register = read_register(path, identity)
        decided = Answer(False, register)
        if "claim" in question:
            told = question["claim"]
            occasion = Occasion(told["occasion"])
            claim = Claim(_generation(told["expected"]), _generation(told["new"]), occasion, told["forced"] is True)
            decided = decide(register, claim, NodeId(int(question["node"])))
        if decided.register != register:
            write_register(path, identity, decided.register)
        held = decided.register
        return {
            "granted": decided.granted,
            "generation": _plain(held.generation),
            "holder": int(held.holder),
            "moves": held.moves,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                line = await reader.readline()
            try:
                answer = self.answer(json.loads(line))
            except (ValueError, KeyError, TypeError, OSError, FarmError) as error:
                answer = {"error": str(error)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


async def _run(place: tuple[str, int], folder: Path, keys: Keys | None) -> None:
    witness = Witness(folder)
    server = await asyncio.start_server(witness.serve, *place, limit=_LINE, ssl=keys.server() if keys else None)
    sys.stderr.write(f"the witness listens on {place[0]}:{place[1]}\n")
    sys.stderr.flush()
    async with server:
        await server.serve_forever()


def main() -> None:
    """Until it is ended by a signal."""
    parser = argparse.ArgumentParser("farmd.mirrord.witness", description="Holds the registers of mirrors.")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--keys", type=Path)
    arguments = parser.parse_args()
    keys = Keys(arguments.keys) if arguments.keys else None
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(address(arguments.listen), arguments.folder, keys))


if __name__ == "__main__":
    main()
