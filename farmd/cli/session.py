# SPDX-License-Identifier: Apache-2.0
"""What every verb has in common: the global options, accepted before the verb and after it, and the client."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from farmd.cli.output import Style, wants_colour

if TYPE_CHECKING:
    from farmd.client import Client

P = ParamSpec("P")

DEFAULT_SOCKET = Path("/run/farmd/api.sock")
DEFAULT_TIMEOUT_S = 5.0
_COMPLETION_TIMEOUT_S = 0.2

# readable=False: Typer would call a socket that we may not read a usage error; we say what it is.
SocketOption = Annotated[
    Path | None,
    typer.Option("--socket", metavar="PATH", readable=False, help="farmd's API socket  [env: FARMCTL_SOCKET]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON; one object a line where it is a stream")]
ColourOption = Annotated[bool, typer.Option("--no-color", help="No colour  [env: NO_COLOR]")]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long one answer may take  [default: 5]"),
]


@dataclass(frozen=True, slots=True)
class Session:
    """The global options as one invocation has them."""

    socket: Path
    json: bool = False
    no_color: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S

    @classmethod
    def from_environment(cls) -> Session:
        """What holds when no option is given."""
        return cls(Path(os.environ.get("FARMCTL_SOCKET") or DEFAULT_SOCKET))

    def override(self, socket: Path | None, json: bool, no_color: bool, timeout_s: float | None) -> Session:
        """This session with the options that were given on top."""
        return replace(
            self,
            socket=socket or self.socket,
            json=json or self.json,
            no_color=no_color or self.no_color,
            timeout_s=timeout_s or self.timeout_s,
        )

    @property
    def style(self) -> Style:
        """How to write to stdout."""
        return Style(wants_colour(os.environ, self.no_color))

    def client(self) -> Client:
        """farmd behind our socket."""
        from farmd.client import Client

        return Client(self.socket, self.timeout_s)


def verb(
    app: typer.Typer, name: str | None = None, **settings: Any
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Register a function as a verb of `app`. It gets a Session first; the global options are added to its own.

    A global option that the function defines itself (such as `timeout`) is the function's.
    """

    def register(function: Callable[Concatenate[Session, P], None]) -> Callable[Concatenate[Session, P], None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        taken = {parameter.name for parameter in own}
        added = [parameter for parameter in _COMMON if parameter.name not in taken]

        def run(**arguments: Any) -> None:
            session = arguments.pop("ctx").obj
            common = {parameter.name: arguments.pop(parameter.name) for parameter in added}
            session = session.override(
                common.get("socket"), common.get("json_output", False), common["no_color"], common.get("timeout")
            )
            function(session, **arguments)  # type: ignore[call-arg]

        parameters = [_CONTEXT, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *added))]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = function.__doc__
        app.command(name or function.__name__, **settings)(run)
        return function

    return register


def node_names(incomplete: str) -> list[str]:
    """Names of the farm's members, for the shell's completion: quick, and empty when farmd does not answer."""
    from farmd.client import Client
    from farmd.model.errors import FarmError

    try:
        members = Client(Session.from_environment().socket, _COMPLETION_TIMEOUT_S).status().data["members"]
    except FarmError:
        return []
    return [member["name"] for member in members if member["name"].startswith(incomplete)]


NodeArgument = Annotated[str, typer.Argument(metavar="NODE", autocompletion=node_names, help="A member's name")]

_CONTEXT = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
_COMMON = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (
        ("socket", None, SocketOption),
        ("json_output", False, JsonOption),
        ("no_color", False, ColourOption),
        ("timeout", None, TimeoutOption),
    )
]
