# SPDX-License-Identifier: Apache-2.0
"""`farmctl lab`: a whole farm on this machine, and the faults that it is there for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farmd.cli.output import envelope, note, say, say_json, table
from farmd.cli.session import Session, verb
from farmd.model.config import AttachMode, Delivery, Profile
from farmd.model.errors import BadRequest, FarmError

if TYPE_CHECKING:
    from farmd.lab.lab import Lab, LabStatus

_app = typer.Typer(help="A whole farm on this machine, in network namespaces. Needs root.", rich_markup_mode=None)

NameOption = Annotated[str, typer.Option("--name", help="Which lab: 1 to 8 lower-case letters and digits")]
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="node1 or n1, client1 or c1, witness")]
NetworkOption = Annotated[int, typer.Option("--network", min=0, max=1, help="0: service, 1: second heartbeat network")]


def register(app: typer.Typer) -> None:
    """Add this family's verbs to `app`."""
    app.add_typer(_app, name="lab")
    for function in (up, down, status, kill, stop, freeze, thaw, start, cut, split, heal):
        verb(_app)(function)
    verb(_app, "exec", context_settings={"allow_interspersed_args": False})(execute)
    verb(_app, "link-down")(link_down)
    verb(_app, "link-up")(link_up)


@_app.callback(invoke_without_command=True)
def _lab_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        say(context.get_help())


def up(
    session: Session,
    name: NameOption = "lab",
    nodes: Annotated[int, typer.Option("--nodes", help="How many nodes serve")] = 3,
    clients: Annotated[int, typer.Option("--clients", help="How many client hosts")] = 2,
    networks: Annotated[int, typer.Option("--networks", help="2 adds a second heartbeat network")] = 1,
    witness: Annotated[bool, typer.Option("--witness", help="Add a witness")] = False,
    profile: Annotated[
        Profile, typer.Option("--profile", help="What counts more without a majority")
    ] = Profile.EXCLUSIVE,
    timing: Annotated[
        str, typer.Option("--timing", metavar="default|fast", help="The protocol's clockwork")
    ] = "default",
    delivery: Annotated[
        Delivery, typer.Option("--delivery", help="How packets reach the nodes; external adds HAProxy in front")
    ] = Delivery.FLOOD,
    attach_mode: Annotated[
        AttachMode, typer.Option("--attach-mode", help="native: with --delivery directed only")
    ] = AttachMode.AUTO,
) -> None:
    """Build the lab, or complete it. Safe to repeat.

    Nodes with farmd and nginx, clients, a switch between them.
    """
    from farmd.lab.lab import Lab
    from farmd.lab.plan import LabPlan
    from farmd.model.config import TIMINGS

    if timing not in TIMINGS:
        raise BadRequest("--timing", f"{timing!r} is none", f"Use one of {', '.join(TIMINGS)}")
    plan = LabPlan(
        name=name,
        nodes=nodes,
        clients=clients,
        networks=networks,
        witness=witness,
        profile=profile,
        timing=timing,
        delivery=delivery,
        attach_mode=attach_mode,
    )
    Lab(plan).up(note)
    if session.json:
        say_json(envelope("Lab", {"name": name, "change": "up"}))
    else:
        first = plan.members[0]
        say(f"lab {name} is up. Ask a node: farmctl --socket {plan.home(first) / 'api.sock'} status --wait")


def down(session: Session, name: NameOption = "lab") -> None:
    """Remove the lab and all that is its own. Safe to repeat."""
    from farmd.lab.lab import Lab
    from farmd.lab.plan import LabPlan

    try:
        lab = Lab.open(name)
    except FarmError:
        # Never written down, or by another version: what is left still carries the lab's name.
        lab = Lab(LabPlan(name=name))
    lab.down()
    _done(session, name, "down", f"lab {name} is gone")


def status(session: Session, name: NameOption = "lab") -> None:
    """Show the lab's hosts, processes and what is broken."""
    seen = _lab(name).status()
    if session.json:
        say_json(envelope("LabStatus", _status_data(seen)))
        return
    rows = [(one.host.name, one.host.kind, str(one.host.addresses[0].ip), one.summary) for one in seen.hosts]
    say(table(("HOST", "KIND", "ADDRESS", "RUNS"), rows))
    for source, target in seen.cuts:
        say(f"cut: {source} -> {target}")


def execute(
    session: Session,
    host: HostArgument,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="What to run there")],
    name: NameOption = "lab",
) -> None:
    """Run COMMAND on a host, with this terminal.

    Its exit status is ours. Options of ours go before HOST.
    """
    argv = _lab(name).command(host, command)
    os.execvp(argv[0], argv)


def kill(
    session: Session,
    node: HostArgument,
    name: NameOption = "lab",
    daemon: Annotated[bool, typer.Option("--daemon", help="Only the daemon; its engine goes on for a while")] = False,
) -> None:
    """kill -9 a node's farmd; the lease has to stop its filter."""
    lab = _lab(name)
    (lab.kill_daemon if daemon else lab.kill)(node)
    _done(session, name, "kill", f"farmd on {node} is killed")


def stop(session: Session, node: HostArgument, name: NameOption = "lab") -> None:
    """End a node's farmd as a service manager would."""
    _lab(name).stop(node)
    _done(session, name, "stop", f"farmd on {node} was asked to stop")


def freeze(session: Session, node: HostArgument, name: NameOption = "lab") -> None:
    """SIGSTOP a node's farmd; its filter has to stop by itself."""
    _lab(name).freeze(node)
    _done(session, name, "freeze", f"farmd on {node} is frozen")


def thaw(session: Session, node: HostArgument, name: NameOption = "lab") -> None:
    """SIGCONT after freeze."""
    _lab(name).thaw(node)
    _done(session, name, "thaw", f"farmd on {node} goes on")


def start(session: Session, node: HostArgument, name: NameOption = "lab") -> None:
    """Start a node's farmd (and nginx) again."""
    _lab(name).start(node)
    _done(session, name, "start", f"farmd on {node} is started")


def cut(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="FROM")],
    target: Annotated[str, typer.Argument(metavar="TO")],
    name: NameOption = "lab",
) -> None:
    """Drop what FROM sends to TO; the way back stays open."""
    _lab(name).cut(source, target)
    _done(session, name, "cut", f"{source} -> {target} is cut")


def split(
    session: Session,
    groups: Annotated[list[str], typer.Argument(metavar="HOST,HOST...", help="One argument a group")],
    name: NameOption = "lab",
) -> None:
    """Split the switch: hosts of different groups are apart.

    Hosts that you do not name belong to the first group.
    """
    _lab(name).split([group.split(",") for group in groups])
    _done(session, name, "split", f"split: {' | '.join(groups)}")


def link_down(session: Session, host: HostArgument, name: NameOption = "lab", network: NetworkOption = 0) -> None:
    """Pull a host's cable."""
    _lab(name).link_down(host, network)
    _done(session, name, "link-down", f"the link of {host} is down")


def link_up(session: Session, host: HostArgument, name: NameOption = "lab", network: NetworkOption = 0) -> None:
    """Plug a host's cable in again."""
    _lab(name).link_up(host, network)
    _done(session, name, "link-up", f"the link of {host} is up")


def heal(session: Session, name: NameOption = "lab") -> None:
    """Undo every cut and split, and plug every cable in."""
    _lab(name).heal()
    _done(session, name, "heal", "the network is whole")


def _lab(name: str) -> Lab:
    from farmd.lab.lab import Lab

    return Lab.open(name)


def _done(session: Session, name: str, change: str, text: str) -> None:
    if session.json:
        say_json(envelope("Lab", {"name": name, "change": change}))
    else:
        say(text)


def _status_data(seen: LabStatus) -> dict[str, Any]:
    hosts = [
        {
            "name": one.host.name,
            "kind": one.host.kind,
            "namespace": one.host.namespace,
            "addresses": [str(interface.ip) for interface in one.host.addresses],
            "present": one.present,
            "processes": [{"pid": p.pid, "part": p.part, "stopped": p.stopped} for p in one.processes],
            "links_down": list(one.links_down),
        }
        for one in seen.hosts
    ]
    return {"name": seen.plan.name, "hosts": hosts, "cuts": [list(pair) for pair in seen.cuts]}
