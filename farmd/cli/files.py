# SPDX-License-Identifier: Apache-2.0
"""`farmctl check-config` and `keygen`: the farm's two files. Neither needs a daemon."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farmd.cli.output import envelope, say, say_json
from farmd.cli.session import Session, verb
from farmd.model.errors import ConfigError, FarmError, NotPermitted, Refused

if TYPE_CHECKING:
    from farmd.model.config import FarmConfig

_KEY_MODE = 0o600


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    verb(app, "check-config")(check_config)
    verb(app)(keygen)


def check_config(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", readable=False, help="A farm.toml")],
) -> None:
    """Check a farm.toml and show everything wrong with it.

    Each problem with its line and column, on stderr; exit 9 if there is any. Needs no farmd.
    """
    from farmd.model import farmfile

    try:
        config = farmfile.load(file)
    except ConfigError as error:
        if session.json:
            say_json(envelope("ConfigReport", {"valid": False, "problems": [_problem(p) for p in error.problems]}))
        raise
    if session.json:
        say_json(envelope("ConfigReport", {"valid": True, "problems": []}))
    else:
        say(f"{file}: valid. {_summary(config)}")


def keygen(
    session: Session, file: Annotated[Path, typer.Argument(metavar="FILE", readable=False, help="The key file to make")]
) -> None:
    """Make a new farm key in FILE; never overwrites.

    Copy the file to every member of the farm: whoever has it can speak as any of them.
    """
    from farmd.membership.keys import KeyRing

    text = KeyRing.new().render()
    try:
        _write_new(file, text.encode())
    except FileExistsError as error:
        raise Refused(
            f"key file {file}",
            "it exists, and members that lose their key lose their farm",
            "Name another file, or move this one away first",
        ) from error
    except PermissionError as error:
        raise NotPermitted(f"key file {file}", "you may not write there", "Run farmctl as root") from error
    except OSError as error:
        raise FarmError(f"key file {file}", f"cannot be written: {error.strerror}", "Check the path") from error
    if session.json:
        say_json(envelope("KeyFile", {"path": str(file)}))
    else:
        say(f"{file}: new key. Copy it to every member, mode 0600.")


def _write_new(path: Path, data: bytes) -> None:
    """`path` with all of `data`, or not at all."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _KEY_MODE)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _problem(problem: Any) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in ("file", "line", "column", "cause", "next_step")}


def _summary(config: FarmConfig) -> str:
    counts = ((config.members, "member"), (config.vips, "VIP"), (config.rules, "rule"))
    words = [f"{len(things)} {name}{'' if len(things) == 1 else 's'}" for things, name in counts]
    return f"Farm {config.farm}: {', '.join(words)}; this node is {config.me.name}."
