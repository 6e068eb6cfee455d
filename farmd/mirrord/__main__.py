# SPDX-License-Identifier: Apache-2.0
"""`python -m farmd.mirrord FOLDER`: one node of one mirror, until it is stopped by an order or SIGTERM.

SIGTERM is the order to stop: a primary resigns first. Everything is logged to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

from farmd.daemon.httpd import serve
from farmd.mirror.orders import Stop
from farmd.mirrord.api import ORDER_S, Api
from farmd.mirrord.shell import Shell
from farmd.model.errors import FarmError
from farmd.model.mirrorfile import SOCKET, load


async def _run(folder: Path) -> None:
    shell = Shell(load(folder), folder)
    running = asyncio.create_task(shell.run())
    await asyncio.sleep(0)
    ended = asyncio.Event()
    running.add_done_callback(lambda _: ended.set())
    stopping: list[asyncio.Task[None]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(
            number, lambda: stopping.append(asyncio.create_task(shell.order(Stop(), ORDER_S)))
        )
    if not running.done():
        await serve(Api(shell).application(), folder / SOCKET, ended)
    await running


def main() -> int:
    """The exit status: 0 after a stop, 1 with the reason on standard error."""
    parser = argparse.ArgumentParser("farmd.mirrord", description="One node of one mirror.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--debug", action="store_true", help="log every command of the core")
    arguments = parser.parse_args()
    level = logging.DEBUG if arguments.debug else logging.INFO
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("farmd.mirrord").setLevel(level)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_run(arguments.folder.resolve()))
    except (FarmError, OSError) as error:
        sys.stderr.write(f"mirror: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
