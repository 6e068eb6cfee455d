# SPDX-License-Identifier: Apache-2.0
"""`farmctl trace`: live samples of what the filter on this node did, and of what became of VIP connections."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from farmd.cli.output import Style, local_clock, note, say, say_json
from farmd.cli.session import Session, verb
from farmd.model.errors import BadRequest, FarmError

_COLOURS = {"pass": "green", "tx": "green", "drop": "yellow"}
_VERDICTS = ("pass", "drop", "tx")
_LAST_LINES = 20
_END_PATIENCE_S = 5.0


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    verb(app)(trace)


def trace(
    session: Session,
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", readable=False, help="This node's farm.toml")
    ] = Path("/etc/farmd/farm.toml"),
    client: Annotated[str | None, typer.Option("--client", metavar="CIDR", help="Only these clients")] = None,
    vip: Annotated[str | None, typer.Option("--vip", metavar="IP", help="Only this VIP")] = None,
    verdict: Annotated[
        list[str] | None, typer.Option("--verdict", metavar="pass|drop|tx", help="Only these verdicts; repeatable")
    ] = None,
    rate: Annotated[
        int, typer.Option("--rate", metavar="N", min=10, max=10_000, help="At most N events a second")
    ] = 100,
    seconds: Annotated[float, typer.Option("--for", metavar="SECONDS", min=0.1, max=3600, help="How long")] = 30,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="End after N events")] = None,
    pcap: Annotated[
        Path | None, typer.Option("--pcap", metavar="FILE", readable=False, help="Also write the frames' heads there")
    ] = None,
) -> None:
    """Show samples of the filter's verdicts, and resets, retransmits and drops of VIP connections.

    Each verdict with its reason, rule, bucket and owner. Needs root, python3-bpfcc and kernel headers; bounded in rate
    and time. Drops are seen in native mode too; the last line counts what the filter itself counted by reason.
    """
    from farmd.client import RemoteError
    from farmd.model import farmfile

    arguments = ["--config", str(config), "--rate", str(rate), "--seconds", str(seconds)]
    arguments += _checked(client, vip, verdict or [])
    farmfile.load(config)  # so that what is wrong with it is told as `check-config` tells it
    arguments += [] if limit is None else ["--limit", str(limit)]
    arguments += [] if pcap is None else ["--pcap", str(pcap.absolute())]
    with _tracer(arguments) as lines:
        for line in lines:
            event = json.loads(line)
            if event["type"] == "error":
                raise RemoteError(event["code"], event["subject"], event["cause"], event["next_step"])
            if session.json:
                say_json(event, stream=True)
            else:
                _show(event, session.style)


def _checked(client: str | None, vip: str | None, verdicts: list[str]) -> list[str]:
    """Options that the tracer gets as they are; BadRequest for what it would not understand."""
    checked = []
    try:
        checked += ["--client", str(ip_network(client, strict=False))] if client else []
    except ValueError as error:
        step = "Write 203.0.113.7, 203.0.113.0/24 or 2001:db8::/64"
        raise BadRequest(f"--client {client}", "it is no address and no network", step) from error
    try:
        checked += ["--vip", str(ip_address(vip))] if vip else []
    except ValueError as error:
        raise BadRequest(f"--vip {vip}", "it is no address", "`farmctl status` lists the VIPs") from error
    for each in verdicts:
        if each not in _VERDICTS:
            raise BadRequest(f"--verdict {each}", "there is no such verdict", f"Write one of {', '.join(_VERDICTS)}")
        checked += ["--verdict", each]
    return checked


@contextmanager
def _tracer(arguments: list[str]) -> Iterator[Iterator[str]]:
    """The lines of the process that traces. It ends with us, and its probes with it."""
    with tempfile.TemporaryFile("w+") as complaints:
        command = [sys.executable, "-m", "farmd.trace", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True) as process:
            assert process.stdout is not None  # we asked for a pipe
            try:
                yield _whole(process, process.stdout, complaints)
            finally:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_END_PATIENCE_S)
                process.kill()


def _whole(process: subprocess.Popen[str], output: IO[str], complaints: IO[str]) -> Iterator[str]:
    """Every line of `output`; FarmError, with what it printed, if the process ends without a last word."""
    last = ""
    for line in output:
        last = line
        if json.loads(line)["type"] == "error":
            _repeat(complaints)
        yield line
    if process.wait() != 0 and '"error"' not in last:
        _repeat(complaints)
        raise FarmError("the tracer", f"it ended with status {process.returncode}", "Report it with the lines above")


def _repeat(complaints: IO[str]) -> None:
    complaints.seek(0)
    for line in complaints.read().splitlines()[-_LAST_LINES:]:
        note(line)


def _show(event: dict[str, Any], style: Style) -> None:
    if event["type"] == "start":
        for each in event["interfaces"]:
            note(f"tracing {event['node']}: {each['interface']}, {each['mode']} mode")
    elif event["type"] == "summary":
        note(_summary(event))
    else:
        say(_line(event, style))


def _line(event: dict[str, Any], style: Style) -> str:
    place = f"bucket {event['bucket']} of {event['owner'] or 'no node'}" if event["bucket"] is not None else ""
    what = event["type"] if event["type"] != "verdict" else event["verdict"]
    why = (
        event["detail"] if event["type"] != "verdict" else event["reason"] or "reason unknown: buckets moved meanwhile"
    )
    words = (
        _clock(event["at"]),
        f"{_endpoint(event['client'], event['port'])} > {_endpoint(event['vip'], event['vport'])}",
        f"{event['protocol']} {event['flags']}".strip(),
        style(what, _COLOURS.get(what, "red")),
        why,
        event["rule"],
        place,
    )
    return "  ".join(word for word in words if word)


def _clock(at: str) -> str:
    return f"{local_clock(at)}.{at.partition('.')[2][:3]}"


def _endpoint(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _summary(event: dict[str, Any]) -> str:
    held = sum(event["suppressed"].values())
    lines = [f"{event['events']} events" + (f"; the bounds held back {held} more (see --rate)" if held else "")]
    lines += [f"  counted  {each['rule'] or '-'}  {each['reason']}  {each['packets']}" for each in event["counted"]]
    return "\n".join(lines)
