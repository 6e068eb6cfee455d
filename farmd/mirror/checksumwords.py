# SPDX-License-Identifier: Apache-2.0
"""The command line of `python -m farmd.mirror.checksum`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from farmd.model.errors import BadRequest


def arguments_parser() -> argparse.ArgumentParser:
    """Its verbs and options."""
    parser = argparse.ArgumentParser("farmd.mirror.checksum", description="Make a directory equal to another.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("sync", "verify", "diff"):
        one = verbs.add_parser(verb)
        one.add_argument("source", help="a directory, or tcp://ADDRESS:PORT of a `serve` (not encrypted)")
        one.add_argument("target", type=Path)
        one.add_argument("--quick", action="store_true", help="believe the record of the last sync")
        one.add_argument("--resume", action="store_true", help="skip what an interrupted sync has verified")
        one.add_argument("--probe", type=int, default=16 << 20, help="bytes that diff sends to measure the link")
        one.add_argument("--json", action="store_true")
    serve = verbs.add_parser("serve")
    serve.add_argument("source", type=Path)
    serve.add_argument("--listen", default="127.0.0.1:7800")
    for one in verbs.choices.values():
        one.add_argument("--record", help="path prefix of the records; .source and .target are added")
        one.add_argument("--exclude", action="append", default=[], help="a path or pattern; alike on both ends")
        one.add_argument("--threads", type=int, default=os.cpu_count() or 2)
        one.add_argument("--timeout", type=float, default=30.0)
        one.add_argument("--rate", type=int, default=0, help="bytes a second that the source sends at most")
    return parser


def address(text: str) -> tuple[str, int]:
    """`ADDRESS:PORT`. Raises BadRequest."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise BadRequest(text, "this is not ADDRESS:PORT", "Write for example 127.0.0.1:7800")
    return host.strip("[]"), int(port)
