# SPDX-License-Identifier: Apache-2.0
"""The TLS settings of everything that nodes of a mirror say to each other from Python: mutual, and 1.3 at least.

`cext/mirror/tls.c` has the same for the stream of changes.
"""

from __future__ import annotations

import ssl
from pathlib import Path


def client(certificate: str | Path, key: str | Path, authority: str | Path) -> ssl.SSLContext:
    """For the side that calls; give it the other side's name as `server_hostname`. Raises OSError."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, certificate, key, authority)


def server(certificate: str | Path, key: str | Path, authority: str | Path) -> ssl.SSLContext:
    """For the side that is called: the caller must have a certificate of our authority. Raises OSError."""
    return _context(ssl.PROTOCOL_TLS_SERVER, certificate, key, authority)


def _context(side: int, certificate: str | Path, key: str | Path, authority: str | Path) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    return context
