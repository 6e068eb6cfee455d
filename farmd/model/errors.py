# SPDX-License-Identifier: Apache-2.0
"""The errors that farmd shows to people.

    FarmError
    ├── ConfigError          farm.toml or the key file is wrong; nothing was changed
    ├── KernelError          the kernel refused: BPF, XDP, netlink, a socket
    ├── PeerError            another node did not answer, or answered something we cannot accept
    ├── Refused              a safety check said no; `--force` may override where the text says so
    ├── NotFound             no such node, rule, VIP or group
    ├── NotPermitted         the caller may not do this
    ├── BadRequest           a request or an argument that means nothing; nothing was done
    ├── DaemonUnreachable    farmctl found no farmd on the socket
    └── TimedOut             we stopped waiting; the operation itself goes on

Each carries three sentences, because a person at three in the morning needs all of them: the object it is about, the
cause, and the next step.
"""

from __future__ import annotations

from dataclasses import dataclass


class FarmError(Exception):
    """A failure with its object, cause and next step. The base of everything farmd raises on purpose."""

    code = "failed"

    def __init__(self, subject: str, cause: str, next_step: str) -> None:
        super().__init__(f"{subject}: {cause}. {next_step}")
        self.subject = subject
        self.cause = cause
        self.next_step = next_step


class KernelError(FarmError):
    """The kernel refused a BPF, XDP, netlink or socket operation."""

    code = "kernel"


class PeerError(FarmError):
    """Another node did not answer, or its answer cannot be accepted."""

    code = "peer"


class Refused(FarmError):
    """A safety check said no."""

    code = "refused"


class NotFound(FarmError):
    """No such node, rule, VIP or group."""

    code = "not-found"


class NotPermitted(FarmError):
    """The caller may not do this."""

    code = "not-permitted"


class BadRequest(FarmError):
    """A request or an argument that means nothing; nothing was done."""

    code = "bad-request"


class DaemonUnreachable(FarmError):
    """Nothing answers on the daemon's socket."""

    code = "unreachable"


class TimedOut(FarmError):
    """The wait is over; the operation goes on."""

    code = "timed-out"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file. `line` and `column` count from 1; both are 0 when the whole file is meant."""

    file: str
    line: int
    column: int
    cause: str
    next_step: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.cause}. {self.next_step}"


class ConfigError(FarmError):
    """A configuration that was refused whole, with every problem found in it."""

    code = "config"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        if not problems:
            raise ValueError("a ConfigError needs at least one problem")
        first = problems[0]
        super().__init__(first.file, first.cause, first.next_step)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)
