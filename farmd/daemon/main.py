# SPDX-License-Identifier: Apache-2.0
"""`farmd`: reads farm.toml, sets the node up, and runs the daemon."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from farmd import __version__
from farmd.daemon.daemon import Daemon, Ending
from farmd.daemon.keyfile import read_key_file
from farmd.daemon.log import log
from farmd.dataplane.filter import Filter, purge
from farmd.membership.keys import KeyRing
from farmd.model import excerpt, farmfile
from farmd.model.config import FarmConfig
from farmd.model.errors import ConfigError, FarmError
from farmd.model.interfaces import InterfaceFacts
from farmd.model.nodes import Role
from farmd.net import interfaces, setup

EXIT_FAILED = 1
EXIT_CONFIG = 9
"""As farmctl's: the configuration is invalid and nothing was changed."""

_LAST_WORDS = {
    Ending.STOPPED: "stopped; the engine serves on for 30 s",
    Ending.LEFT: "this node has left the farm",
    Ending.RELOAD: "starting again with the configuration as it is now",
}
_DESCRIPTION = """The farm's daemon on this server.

SIGTERM ends this process only: the filter stays attached and the engine serves on for 30 seconds, so that farmd can be
restarted under traffic. SIGHUP (or `farmctl reload`) puts farm.toml in force as it is now. To take the server out of
the farm use `farmctl leave`."""


def main() -> None:
    """Entry point of the console script `farmd`."""
    arguments = _parse(sys.argv[1:])
    try:
        config = farmfile.load(arguments.config)
        ring = read_key_file(config.key_file)
        if arguments.check:
            sys.stdout.write(f"{arguments.config}: valid; this node is {config.me.name} of farm {config.farm}\n")
            return
        if arguments.purge:
            _purge(config)
            return
        filter_: Filter | None = None
        facts: tuple[InterfaceFacts, ...] = ()
        if config.me.role is Role.NODE:
            config = _with_interfaces(config)
            filter_, facts = _set_up(config, ring) if config.filters else _set_up_unfiltered(config)
        daemon = Daemon(config, arguments.config, ring, filter_, facts)
        if asyncio.run(_serve(daemon, config.me.name)) is Ending.RELOAD:
            os.execv(sys.executable, [sys.executable, "-m", "farmd.daemon", *sys.argv[1:]])
    except ConfigError as error:
        sys.stderr.write(excerpt.render(error) + "\n")
        sys.exit(EXIT_CONFIG)
    except FarmError as error:
        log("farmd", "farmd.failed", str(error))
        sys.exit(EXIT_FAILED)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="farmd", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("/etc/farmd/farm.toml"), help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="read the configuration and the keys, change nothing")
    parser.add_argument("--purge", action="store_true", help="detach the filter, remove VIPs and pins, and end")
    parser.add_argument("--version", action="version", version=f"farmd {__version__}")
    return parser.parse_args(argv)


async def _serve(daemon: Daemon, node: str) -> Ending:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    loop.add_signal_handler(signal.SIGHUP, _reload, daemon)
    ending = await daemon.run()
    log(node, "farmd.ended", _LAST_WORDS[ending])
    return ending


def _reload(daemon: Daemon) -> None:
    with suppress(ConfigError):  # Told as an event; a signal has nobody to answer to.
        daemon.reload()


def _with_interfaces(config: FarmConfig) -> FarmConfig:
    """The interfaces by name; without any in farm.toml it is the one that carries this member's first address."""
    if config.interfaces:
        return config
    found = interfaces.facts(config.me.addresses[:1])
    return replace(config, interfaces=tuple(facts.name for facts in found))


def _set_up(config: FarmConfig, ring: KeyRing) -> tuple[Filter, tuple[InterfaceFacts, ...]]:
    """Retired VIPs away, then the filter, then new VIPs.

    Until an engine renews its lease the filter drops everything for a VIP, so adding the VIPs to this host afterwards
    cannot make it answer beside the farm.
    """
    facts = interfaces.facts(config.interfaces)
    setup.retire(config)
    filter_ = Filter.attach(config, ring.hash_key, facts)
    setup.apply(config, facts)
    return filter_, facts


def _set_up_unfiltered(config: FarmConfig) -> tuple[None, tuple[InterfaceFacts, ...]]:
    """VIPs that are not ours to have away, then a filter that an earlier farm.toml wanted, then VIPs that are ours."""
    facts = interfaces.facts(config.interfaces)
    setup.retire(config)
    setup.apply(config, facts)
    purge(config.pin_dir)
    return None, facts


def _purge(config: FarmConfig) -> None:
    if config.me.role is not Role.NODE:
        return
    # VIPs first: without the filter this host would answer for them.
    config = _with_interfaces(config)
    setup.remove(config, interfaces.facts(config.interfaces))
    purge(config.pin_dir)
