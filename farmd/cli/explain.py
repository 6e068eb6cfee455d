# SPDX-License-Identifier: Apache-2.0
"""`farmctl explain`: which node serves a client, why, and what the program in the kernel says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated

import typer

from farmd.cli.output import Style, say, say_json, warn
from farmd.cli.session import Session, verb
from farmd.model.answers import Explanation, PlanesData
from farmd.model.buckets import BUCKETS
from farmd.model.errors import BadRequest, FarmError
from farmd.model.question import PacketKind
from farmd.model.rules import Affinity, Protocol

_PLANES: Sequence[tuple[str, str]] = (
    ("own", "own (accepts)"),
    ("held", "held (moved away, keeps its connections)"),
    ("fresh", "fresh (just received, the previous owner keeps its connections)"),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address, with a port if one was written."""

    address: str
    port: int | None

    def __str__(self) -> str:
        if self.port is None:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


_EXAMPLES = """\b
Examples:
  farmctl explain 203.0.113.7                                     who serves this client?
  farmctl explain 203.0.113.7:51514 192.0.2.10:443/tcp            ... this very connection?
  farmctl explain 203.0.113.7 192.0.2.10 --packet echo            who answers its ping?
  farmctl explain 203.0.113.7:5353 192.0.2.10:53/udp --id 4711    a datagram, by "packet-id"
  farmctl explain 203.0.113.7:5353 192.0.2.10:53/udp --packet later-fragment
  farmctl explain 203.0.113.7:51514 192.0.2.10:443 --packet icmp-error

\b
Packets:
  opening         a TCP SYN, or a UDP datagram
  following       a later segment of a TCP connection
  first-fragment  the first fragment of either
  later-fragment  another fragment, after the first
  lost-fragment   another fragment whose first one was lost, or comes after it
  icmp-error      "unreachable" or "too big", about what the VIP sent to the client
  echo            a ping of the VIP
"""


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    verb(app, epilog=_EXAMPLES)(explain)


def explain(
    session: Session,
    client: Annotated[
        str, typer.Argument(metavar="CLIENT[:PORT]", help="203.0.113.7, 203.0.113.7:51514, [2001:db8::7]:51514")
    ],
    service: Annotated[str | None, typer.Argument(metavar="VIP:PORT[/PROTO]", help="192.0.2.10:443/tcp")] = None,
    packet: Annotated[
        PacketKind, typer.Option("--packet", metavar="KIND", help="Which packet of the client; see below")
    ] = PacketKind.OPENING,
    identification: Annotated[
        int | None,
        typer.Option("--id", metavar="N", min=0, max=(1 << 32) - 1, help="Its identification in the IP header"),
    ] = None,
) -> None:
    """Show which node serves a client, why, and proof.

    The proof is a made-up packet of that client, run through the program that is loaded on this node. It is counted
    nowhere and reaches nobody.
    """
    source = parse_endpoint(client)
    vip, protocol = (None, None) if service is None else parse_service(service, portless=packet is PacketKind.ECHO)
    answer = session.client().explain(
        source.address,
        source.port,
        vip.address if vip else None,
        vip.port if vip else None,
        protocol,
        None if packet is PacketKind.OPENING else packet,
        identification,
    )
    data = answer.data
    if session.json:
        say_json(answer.raw)
    else:
        warn(answer.warnings)
        say(render(data, answer.node, session.style))
    if data["proof"] is not None and not data["proof"]["agrees"]:
        raise FarmError(
            f"the filter on {data['proof']['node']}",
            "the loaded program does not do what the view says",
            "Ask again; if it stays so, restart farmd on that node and report it with the output above",
        )


def parse_endpoint(text: str) -> Endpoint:
    """An address with or without a port; IPv6 with a port needs brackets. BadRequest if it is none."""
    host, port = text, ""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise _bad(text)
        port = port[1:] if port else ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not port:
            raise _bad(text)
    try:
        address = str(ip_address(host))
        number = int(port) if port else None
    except ValueError as error:
        raise _bad(text) from error
    if number is not None and not 0 <= number <= 65535:
        raise BadRequest(text, f"there is no port {number}", "Ports go up to 65535")
    return Endpoint(address, number)


def parse_service(text: str, *, portless: bool = False) -> tuple[Endpoint, str | None]:
    """VIP:PORT with or without /tcp or /udp; `portless`: VIP will do. BadRequest if it is none."""
    place, slash, name = text.partition("/")
    endpoint = parse_endpoint(place)
    if endpoint.port is None and not portless:
        raise BadRequest(text, "the port is missing", "Write VIP:PORT, such as 192.0.2.10:443 or [2001:db8::10]:443")
    if slash and name not in [protocol.value for protocol in Protocol]:
        raise BadRequest(text, f"{name!r} is no protocol of a rule", "Write /tcp or /udp, or leave it out")
    return endpoint, name or None


def render(data: Explanation, node: str, style: Style) -> str:
    """The explanation as text; `node` is the one that answered."""
    client = Endpoint(data["client"], data["port"])
    owner = style(data["owner"], "bold") if data["owner"] else "no node"
    ignored = "  (the port does not count)" if data["affinity"] == Affinity.CLIENT_IP else ""
    lines = [f"client {client} -> {owner}"]
    packet = data.get("packet", PacketKind.OPENING)
    if packet != PacketKind.OPENING:
        lines.append(_line("packet", packet))
    if data["rule"] is not None:
        vip = data["vip"] or "any VIP"
        service = f"[{vip}]" if ":" in vip else vip
        service += f":{data.get('ports') or data['vport']}/{data['protocol']}"
        lines.append(_line("rule", f"{data['rule']}  {service}, affinity {data['affinity']}"))
    elif packet != PacketKind.LOST_FRAGMENT:
        lines.append(_line("rule", f"none: {data['vip']} shares this out by {data['affinity']}"))
    lines += [
        _line("key", f"{data['key']}{ignored}"),
        _line("hash", f"siphash-1-3 = {data['hash']} -> bucket {data['bucket']} of {BUCKETS}, group {data['group']}"),
        _line("owner", data["owner"] or "none"),
        _line("why", data["why"]),
        _line(node, _planes(data["planes"])),
    ]
    proof = data["proof"]
    if proof is None:
        lines.append(_line("proof", "none: no filter is loaded on this node"))
    else:
        agreed = style("as the view says", "green") if proof["agrees"] else style("NOT what the view says", "red")
        reason = f" ({proof['reason']})" if proof["reason"] else ""
        reason += f", on to {proof['sent_to']}" if proof["sent_to"] else ""
        lines.append(_line("proof", f"the program loaded on {proof['node']} says {proof['verdict']}{reason}: {agreed}"))
    return "\n".join(lines)


def _line(name: str, text: str) -> str:
    return f"  {name:<8}  {text}"


def _planes(planes: PlanesData) -> str:
    held = [text for name, text in _PLANES if planes[name]]  # type: ignore[literal-required]
    return f"bucket is {' and '.join(held)}" if held else "bucket is in none of its planes"


def _bad(text: str) -> BadRequest:
    return BadRequest(
        text,
        "it is not an address with an optional port",
        "Write 203.0.113.7, 203.0.113.7:51514 or [2001:db8::7]:51514",
    )
