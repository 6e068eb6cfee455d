# SPDX-License-Identifier: Apache-2.0
"""One line an event on standard error, in logfmt: where systemd, or the lab, puts it into a file."""

from __future__ import annotations

import sys

from farmd.daemon.clock import utc_text


def log(node: str, event: str, text: str) -> None:
    """Write `text` about `node`; `event` is a stable name that a search can rely on."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    sys.stderr.write(f'{utc_text()} node={node} event={event} "{quoted}"\n')
    sys.stderr.flush()
