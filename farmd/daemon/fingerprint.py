# SPDX-License-Identifier: Apache-2.0
"""Does a running engine run with the configuration that the daemon has just read?"""

from __future__ import annotations

import hashlib

from farmd.membership.keys import KeyRing
from farmd.model.config import Delivery, FarmConfig


def fingerprint(config: FarmConfig, ring: KeyRing) -> str:
    """A hash over everything that an engine takes from farm.toml and the key file; equal if and only if those are."""
    parts: tuple[object, ...] = (
        config.farm,
        config.profile,
        config.delivery is Delivery.DIRECTED,
        config.timing,
        config.port,
        config.me,
        config.members,
        sorted(config.voters),
        config.groups,
        [sorted(weights.items()) for weights in config.weights],
        str(config.pin_dir),
        hashlib.sha256(ring.render().encode()).hexdigest(),
    )
    if config.delivery is Delivery.EXTERNAL:
        parts += ("no filter",)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
