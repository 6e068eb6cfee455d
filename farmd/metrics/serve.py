# SPDX-License-Identifier: Apache-2.0
"""The exporter inside the daemon."""

from __future__ import annotations

import asyncio

from farmd.metrics.exporter import facts_of, registry_of
from farmd.metrics.server import MetricsServer
from farmd.metrics.source import Backend, LoopSource
from farmd.model.config import FarmConfig


def serve(backend: Backend, config: FarmConfig) -> MetricsServer | None:
    """Serve /metrics as `[metrics]` says, None if it says nothing. To be called on the daemon's running loop.

    Raises:
        KernelError: the address cannot be listened on.
    """
    if config.metrics is None:
        return None
    facts = facts_of(config.farm, config.me.name, config.me.role)
    registry = registry_of(LoopSource(backend, asyncio.get_running_loop()), facts, config.state_dir)
    return MetricsServer(registry, str(config.metrics.address), config.metrics.port)
