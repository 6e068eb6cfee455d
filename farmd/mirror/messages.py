# SPDX-License-Identifier: Apache-2.0
"""What the two nodes of a mirror say to each other, over a connection of its own beside the data.

Messages keep their order among themselves. Beside the data one thing is part of the protocol: whatever went out before
DONE has been applied when DONE is read (see `farmd.mirror.commands.Say`). On the wire a message is JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from farmd.mirror.generation import BLANK, MAX_HISTORY, Cause, Era, Generation, History
from farmd.model.nodes import NodeId

MAX_MESSAGE_BYTES = 65_536


class Plan(StrEnum):
    """How a resync finds what differs."""

    LOG = "log"
    """From both nodes' journals."""
    COMPARE = "compare"
    """By comparing checksums of everything: the journals say nothing about this pair of copies."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Who I am and what I have. Sent on every connection, and again when it changes."""

    mirror: bytes
    node: NodeId
    generation: Generation
    history: History
    uptodate: bool
    primary: bool
    claiming: bool
    """I have a claim whose answer I do not know: I may be primary without knowing it."""
    log_usable: bool
    """My journal says everything about where my copy may differ."""


@dataclass(frozen=True, slots=True)
class Enter:
    """The primary: become my target. Answered by READY once it is durable that the copy is not to be trusted."""

    generation: Generation
    plan: Plan
    base: Generation
    """The generation that the target's copy has from now on until DONE; new if everything is compared."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The target: begin. My own journal's cover stands in the stream before this."""


@dataclass(frozen=True, slots=True)
class Done:
    """The primary: everything is in the stream, and I acknowledge nothing without you any more."""

    generation: Generation
    history: History


@dataclass(frozen=True, slots=True)
class UpToDate:
    """The target: all of it is durable here, and so is my right to be promoted with `generation`."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Resigned:
    """The primary: I serve no more, all is durable on both. `handover`: take over, if you may."""

    generation: Generation
    handover: bool


Message = Hello | Enter | Ready | Done | UpToDate | Resigned
_TYPES: dict[str, type[Message]] = {
    each.__name__.lower(): each for each in (Hello, Enter, Ready, Done, UpToDate, Resigned)
}


def encode(message: Message) -> bytes:
    """The message as JSON."""
    fields = {name: _plain(getattr(message, name)) for name in message.__dataclass_fields__}
    return json.dumps({"type": type(message).__name__.lower(), **fields}, separators=(",", ":")).encode()


def decode(data: bytes) -> Message:
    """Read a peer's message. Raises ValueError, with the cause, for anything that `encode` would not write."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(data)} bytes")
    try:
        fields = json.loads(data)
        kind = _TYPES[fields.pop("type")]
        readers = {name: _READERS[name] for name in kind.__dataclass_fields__}
        if set(fields) != set(readers):
            raise ValueError(f"fields {sorted(fields)}")
        return kind(**{name: read(fields[name]) for name, read in readers.items()})
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a message: {error!r}") from error


def _plain(value: object) -> object:
    if isinstance(value, Generation):
        return [value.epoch, value.tag]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [[_plain(era.generation), era.node, era.at_s, era.cause] for era in value]
    return value


def _generation(value: Any) -> Generation:
    epoch, tag = value
    if not all(type(one) is int and 0 <= one < 1 << 64 for one in (epoch, tag)):
        raise ValueError(f"{value!r} is not a generation")
    return Generation(epoch, tag) if epoch or tag else BLANK


def _history(value: Any) -> History:
    if len(value) > MAX_HISTORY:
        raise ValueError(f"a history of {len(value)} generations")
    return tuple(
        Era(_generation(one), NodeId(_int(node)), _int(at_s), Cause(cause)) for one, node, at_s, cause in value
    )


def _int(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a number")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


_READERS: dict[str, Any] = {
    "mirror": bytes.fromhex,
    "node": lambda value: NodeId(_int(value)),
    "generation": _generation,
    "base": _generation,
    "history": _history,
    "plan": Plan,
    "uptodate": _bool,
    "primary": _bool,
    "claiming": _bool,
    "log_usable": _bool,
    "handover": _bool,
}
