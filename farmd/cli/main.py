# SPDX-License-Identifier: Apache-2.0
"""`farmctl`'s entry point: puts the verbs together and turns what they raise into a sentence and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from farmd import __version__
from farmd.cli import counters, demo, doctor, drain, events, explain, files, lab, mirror, status, trace, weight
from farmd.cli.errors import ExitCode, exit_code, exit_code_table, paragraph, tell
from farmd.cli.output import ReaderGone, note, say
from farmd.cli.session import ColourOption, JsonOption, Session, SocketOption, TimeoutOption
from farmd.model.errors import FarmError

# Typer exports no name for the class of all usage errors; it is the parent of the one that it does export.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_EPILOG = f"""\b
Exit codes:
{exit_code_table()}

\b
Completion of commands and node names:
  eval "$(_FARMCTL_COMPLETE=source_bash farmctl)"    (or source_zsh, source_fish)
"""

app = typer.Typer(
    name="farmctl",
    help="Look at a farm and steer it, from any of its nodes.",
    epilog=_EPILOG,
    # Prepares Typer for the shell's questions; otherwise it would only add two options for installing the answers.
    add_completion="_FARMCTL_COMPLETE" in os.environ,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for family in (status, drain, weight, explain, trace, doctor, events, counters, files, lab, mirror, demo):
    family.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"farmctl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def farmctl(
    ctx: typer.Context,
    socket: SocketOption = None,
    json_output: JsonOption = False,
    no_color: ColourOption = False,
    timeout: TimeoutOption = None,
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version"),
) -> None:
    """Look at a farm and steer it, from any of its nodes."""
    ctx.obj = Session.from_environment().override(socket, json_output, no_color, timeout)
    if ctx.invoked_subcommand is None:
        say(ctx.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run farmctl with `arguments` (without the program's name) and return its exit code."""
    try:
        code = app(list(status.spell_out_watch(arguments)), prog_name="farmctl", standalone_mode=False)
        sys.stdout.flush()
    except FarmError as error:
        tell(error)
        return exit_code(error)
    except (ReaderGone, BrokenPipeError):
        # What is still in the buffer has nowhere to go; without this the interpreter would complain at its end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.READER_GONE
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except _UsageError as error:
        note(_usage(error))
        return ExitCode.USAGE
    return code if isinstance(code, int) else ExitCode.OK


def main() -> NoReturn:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end the program.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "farmctl"
    cause = error.format_message() if hasattr(error, "format_message") else str(error)
    return paragraph(command, cause[:1].lower() + cause[1:], f"See `{command} --help`")
