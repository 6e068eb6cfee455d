# SPDX-License-Identifier: Apache-2.0
"""Asks this node's health URL as a load balancer would."""

from __future__ import annotations

import errno
import http.client
from ipaddress import ip_address

from farmd.doctor.facts import HealthFacts
from farmd.model.config import Listen

_TIMEOUT_S = 4.0
_LONGEST = 200


def ask(place: Listen) -> HealthFacts:
    """What it says now."""
    loopback = ip_address("127.0.0.1" if place.address.version == 4 else "::1")
    address = loopback if place.address.is_unspecified else place.address
    host = f"[{address}]" if address.version == 6 else str(address)
    url = f"http://{host}:{place.port}/health"
    connection = http.client.HTTPConnection(str(address), place.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        text = answer.read(_LONGEST).decode(errors="replace").strip()
    except TimeoutError:
        return HealthFacts(url, None, "", errno.ETIMEDOUT)
    except (OSError, http.client.HTTPException) as error:
        return HealthFacts(url, None, "", getattr(error, "errno", None) or errno.EPROTO)
    finally:
        connection.close()
    return HealthFacts(url, answer.status, text, 0)
