# SPDX-License-Identifier: Apache-2.0
"""How `farmctl mirror` writes what a node said: a summary for people, a progress bar, a list of differences."""

from __future__ import annotations

import shlex
from typing import Any

from farmd.cli.output import duration
from farmd.model.mirrorfile import MirrorConfig

STOPPED = "stopped"
_WIDTH = 24
_ANY = ("", "*", "0.0.0.0", "::")


def summary(data: dict[str, Any]) -> str:
    """`farmctl mirror status`: the verdict first, then what explains it."""
    lines = [f"{data['name']}  node {data['node']}  {data['role'].upper()}  {data['why']}"]
    lines += _directories(data)
    if data["exclude"]:
        lines.append(f"  not here    {', '.join(data['exclude'])}: stays on its node")
    if data["role"] == STOPPED:
        return "\n".join(lines)
    peer = data["peer"]
    lines += [
        f"  generation  {data['generation']}",
        f"  peer        {peer['address']} {'connected' if peer['connected'] else 'not connected'}"
        + ("" if data["encrypted"] else ", not encrypted"),
        f"  ack         {data['ack']}, {_size(data['lag']['bytes'])} behind; arbiter {data['arbiter']}",
    ]
    return "\n".join(lines + _work(data))


def _directories(data: dict[str, Any]) -> list[str]:
    several = data.get("directories", ())[1:]
    if not several:
        return [f"  directory   {data['directory']}{_mode(data)}"]
    every = data["directories"]
    width = max(len(each["path"]) for each in every)
    shown = [f"{each['path']:<{width}}  as {each['name']}" for each in every]
    return [f"  directories {shown[0]}", *(f"{'':14}{each}" for each in shown[1:])]


def _mode(data: dict[str, Any]) -> str:
    return f" (an image of {_size(data['image_bytes'])})" if data["image_bytes"] else ""


def stopped(config: MirrorConfig) -> dict[str, Any]:
    """The status of a node that does not run."""
    return {
        **config.identity,
        "role": STOPPED,
        "in_sync": False,
        "why": "it does not run on this node",
    }


def for_the_other(config: MirrorConfig) -> str:
    """What to order on the other node after `create` on this one, in a shell's words."""
    words = ["farmctl", "mirror", "create", config.name, "--node", str(config.other)]
    for each in config.directories:
        words += ["--directory", f"{each.name}={each.path}" if config.several else each.path]
    host, _, port = config.listen.rpartition(":")
    words += ["--listen", config.peer, "--peer", f"HOST:{port}" if host.strip("[]") in _ANY else config.listen]
    words += ["--keys", f"KEYS/node-{config.other}"] if config.keys else ["--no-tls"]
    for option, value, usual in (("--arbiter", config.arbiter, "operator"), ("--ack", config.ack, "strict")):
        words += [option, value] if value != usual else []
    for pattern in config.identity["exclude"]:
        words += ["--exclude", pattern]
    words += ["--image", str(config.image_bytes)] if config.image_bytes else []
    return shlex.join([*words, "--id", config.mirror])


def _work(data: dict[str, Any]) -> list[str]:
    """What is to be done, what is being done, and what is wrong."""
    lines = []
    if data["dirty"]:
        changed = f"{_size(data['dirty']['bytes'])} in {data['dirty']['files']} files"
        if data["dirty"]["more"]:
            lines.append(f"  to send     what a comparison of everything finds, at least {changed}")
        else:
            lines.append(f"  to send     {changed} changed since the peer went, as far as this process saw")
    if data["resync"]:
        lines.append(f"  resync      {bar(data)}")
        if data["pace"]:
            rate = f"{_size(data['pace']['rate_bytes_s'])}/s at most" if data["pace"]["rate_bytes_s"] else "no limit"
            lines.append(f"  pace        {rate}: {data['pace']['why']}")
    elif data["last_resync"]:
        last = data["last_resync"]
        moved = f"{_size(last['bytes_moved'])} in {last['names']} names, {duration(last['seconds'])}"
        lines.append(f"  last resync {moved}")
    if data["trouble"]:
        lines.append(f"  trouble     {data['trouble']}")
    if data["split"]:
        lines += ["  this node's history:", *_history(data["history"])]
        lines += ["  the peer's history:", *_history(data["peer_history"])]
    return lines


def bar(data: dict[str, Any]) -> str:
    """One line of progress: what, phase, share, time to go."""
    work = data["resync"]
    if work is None:
        return data["why"] or ""
    share = work.get("share", 0.0)
    if "phase" not in work or not share:
        return f"{work['what']}: {work.get('phase', 'connecting')}, {work.get('names', 0):,} names"
    filled = "#" * round(_WIDTH * share)
    to_go = f"{duration(work['eta_s'])} to go" if work["eta_s"] is not None else "time unknown"
    return f"{work['what']} [{filled:<{_WIDTH}}] {share:4.0%} {_size(work['bytes_sent'])} sent, {to_go}"


def findings(what: str, result: dict[str, Any]) -> str:
    """The outcome of `verify` and `diff`."""
    counters = result["counters"]
    lines = [f"{one['kind']}: {one['path'] or '.'}" for one in result["findings"]]
    compared = f"{counters['files_seen']:,} names compared"
    if what == "verify":
        verdict = "both copies are equal" if result["equal"] else f"{result['differences']:,} differ"
        lines.append(f"{compared}: {verdict}" + (", and were made equal" if _mended(result) else ""))
    else:
        moved = f"{counters['files_differing']:,} names differ, {_size(counters['bytes_differing'])} would be sent"
        lines.append(f"{compared}: {moved}; about {duration(result['estimate_s'])}")
    return "\n".join(lines)


def _mended(result: dict[str, Any]) -> bool:
    return bool(result["repaired"] and result["differences"])


def _history(eras: list[dict[str, Any]]) -> list[str]:
    return [f"    {era['generation']}  {era['cause']} on node {era['node']} at {era['at']}" for era in eras[-6:]]


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"
