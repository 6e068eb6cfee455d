# SPDX-License-Identifier: Apache-2.0
"""`python -m farmd.metrics`: the exporter as a process of its own, for those who let no daemon of root's speak HTTP.

It needs nothing but access to farmd's API socket, so an unprivileged user in the socket's group will do.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from ipaddress import ip_address
from pathlib import Path

from farmd.client import DEFAULT_SOCKET, Client
from farmd.metrics.exporter import facts_of, registry_of
from farmd.metrics.server import DEFAULT_LISTEN, MetricsServer
from farmd.metrics.source import ApiSource
from farmd.model.errors import FarmError
from farmd.model.nodes import Role


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    arguments = _parse()
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    try:
        client = Client(arguments.socket)
        status = client.status().data
        me = next(member for member in status["members"] if member["self"])
        facts = facts_of(status["farm"], me["name"], Role(me["role"]))
        server = MetricsServer(
            registry_of(ApiSource(client), facts, arguments.state_dir), str(arguments.host), arguments.port
        )
    except FarmError as error:
        sys.exit(str(error))
    sys.stderr.write(f"metrics of {facts.node} on {arguments.host} port {server.port}\n")
    signal.sigwait(stop)
    server.stop()


def _parse() -> argparse.Namespace:
    host, port = DEFAULT_LISTEN
    parser = argparse.ArgumentParser(prog="python -m farmd.metrics", description="Prometheus exporter of a farmd.")
    parser.add_argument("--socket", type=Path, default=DEFAULT_SOCKET, help="farmd's API (default: %(default)s)")
    parser.add_argument("--host", type=ip_address, default=host, help="IP address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=port, help="TCP port to listen on (default: %(default)s)")
    parser.add_argument(
        "--state-dir", type=Path, help="where totals outlive this process; without it they begin with the event log"
    )
    arguments = parser.parse_args()
    if arguments.state_dir is not None and not os.access(arguments.state_dir, os.W_OK | os.X_OK):
        parser.error(f"--state-dir {arguments.state_dir}: no such folder, or you may not write to it")
    return arguments


if __name__ == "__main__":
    main()
