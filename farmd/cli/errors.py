# SPDX-License-Identifier: Apache-2.0
"""Exit codes, and how an error is told on stderr: what it is about, why, and what to do next."""

from __future__ import annotations

import sys
from enum import IntEnum

from farmd.model import excerpt
from farmd.model.errors import ConfigError, FarmError


class ExitCode(IntEnum):
    """What farmctl's exit status means. Part of the interface: numbers are never given a new meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNHEALTHY = 3
    NOT_FOUND = 4
    NOT_PERMITTED = 5
    UNREACHABLE = 6
    TIMED_OUT = 7
    REFUSED = 8
    CONFIG = 9
    INTERRUPTED = 130
    READER_GONE = 141


MEANING = {
    ExitCode.OK: "done, or healthy",
    ExitCode.FAILED: "failed",
    ExitCode.USAGE: "wrong usage: nothing was done",
    ExitCode.UNHEALTHY: "the farm (status --check, --wait) or this server (doctor) is not healthy",
    ExitCode.NOT_FOUND: "no such node, rule, group or lab",
    ExitCode.NOT_PERMITTED: "not permitted (see the socket's mode)",
    ExitCode.UNREACHABLE: "farmd does not answer on the socket",
    ExitCode.TIMED_OUT: "stopped waiting; the operation goes on",
    ExitCode.REFUSED: "refused by a safety check",
    ExitCode.CONFIG: "the configuration is invalid",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C)",
    ExitCode.READER_GONE: "the reader of the output went away",
}

_BY_CODE = {
    "bad-request": ExitCode.USAGE,
    "unhealthy": ExitCode.UNHEALTHY,
    "not-found": ExitCode.NOT_FOUND,
    "not-permitted": ExitCode.NOT_PERMITTED,
    "unreachable": ExitCode.UNREACHABLE,
    "timed-out": ExitCode.TIMED_OUT,
    "refused": ExitCode.REFUSED,
    "config": ExitCode.CONFIG,
}


class Unhealthy(FarmError):
    """The answer came, and it is that the farm is not healthy."""

    code = "unhealthy"


def exit_code(error: FarmError) -> ExitCode:
    """The exit code of `error`; whatever has none of its own is `FAILED`."""
    return _BY_CODE.get(error.code, ExitCode.FAILED)


def tell(error: FarmError) -> None:
    """Write `error` to stderr as one paragraph; a ConfigError with its source lines."""
    if isinstance(error, ConfigError):
        text = excerpt.render(error)
    else:
        text = paragraph(error.subject, error.cause, error.next_step)
    print(f"farmctl: {text}", file=sys.stderr)


def paragraph(subject: str, cause: str, next_step: str) -> str:
    """Three parts, each a sentence of its own."""
    return f"{subject}: {_sentence(cause)} {_sentence(next_step)}".rstrip()


def _sentence(text: str) -> str:
    return text if not text or text[-1] in ".!?" else f"{text}."


def exit_code_table() -> str:
    """The codes as they stand in `farmctl --help`."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANING.items())
