# SPDX-License-Identifier: Apache-2.0
"""`python -m farmd.trace`: the process behind `farmctl trace`. One JSON object a line on stdout.

An error is the last line, of type "error", with the parts of a FarmError; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from farmd.dataplane.reasons import Verdict
from farmd.model import farmfile
from farmd.model.errors import FarmError
from farmd.trace import tracer


def main(argv: Sequence[str]) -> int:
    """Trace as `argv` says; 0 if the trace ran to one of its bounds."""
    arguments = _parse(argv)
    wishes = tracer.Wishes(
        client=arguments.client,
        vip=arguments.vip,
        verdicts=frozenset(arguments.verdict or Verdict),
        rate=arguments.rate,
        seconds=arguments.seconds,
        limit=arguments.limit,
        pcap=arguments.pcap,
    )
    try:
        tracer.run(farmfile.load(arguments.config), wishes, _tell)
    except FarmError as error:
        parts = {"code": error.code, "subject": error.subject, "cause": error.cause, "next_step": error.next_step}
        _tell({"type": "error", **parts})
        return 1
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="farmd.trace", description="The process behind `farmctl trace`.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--client", type=lambda text: ip_network(text, strict=False))
    parser.add_argument("--vip", type=ip_address)
    parser.add_argument("--verdict", type=Verdict, action="append")
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--pcap", type=Path)
    return parser.parse_args(argv)


def _tell(event: dict[str, Any]) -> None:
    at_ns = event.pop("at_ns", None)
    if at_ns is not None:
        moment = datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="microseconds")
        event = {"at": moment.replace("+00:00", "Z"), **event}
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the probes end with the process; there is nothing to put in order
    sys.exit(main(sys.argv[1:]))
