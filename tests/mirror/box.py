# SPDX-License-Identifier: Apache-2.0
"""A box for a run that makes mounts, network namespaces, ports and many processes: whatever becomes of it, all of that
ends with its first process, and runs beside each other do not meet.

    python -m tests.mirror.box .venv/bin/pytest tests/mirror

Mounts above all: a file system is gone only when no mount namespace has it any more, and each new namespace (a confined
receiver, `ip netns exec`) begins with a copy of all mounts that there are. A disk that just lost its power would come
back as the file system that is still alive there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_PREPARE = """
ip link set lo up
mkdir -p /run/netns
mount -t tmpfs none /run/netns
mount -t tmpfs -o mode=1777 none /dev/shm
exec "$@"
"""


def boxed(command: Sequence[str]) -> list[str]:
    """The command, to be run with mounts, network, shared memory and process numbers of its own. Needs root.

    It is killed when the thread that started it ends.
    """
    apart = ["--mount", "--net", "--ipc", "--pid", "--propagation", "private"]
    ends = ["--fork", "--kill-child", "--mount-proc"]
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *apart, *ends, "--", "sh", "-ec", _PREPARE, "sh", *command]


if __name__ == "__main__":
    words = boxed(sys.argv[1:])
    os.execvp(words[0], words)
