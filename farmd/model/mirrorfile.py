# SPDX-License-Identifier: Apache-2.0
"""One node's part of a mirror, as `farmctl mirror create` writes it: `STATE/NAME/mirror.json`.

The folder also holds what the node must remember (record, arbiter's register, checksum record) and its API socket.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from farmd.model.errors import BadRequest, NotFound, Refused

DEFAULT_STATE = Path("/var/lib/farmd/mirrors")
FILE = "mirror.json"
SOCKET = "api.sock"
ACKS = ("strict", "barrier", "async")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_ID = re.compile(r"[0-9a-f]{32}")
_STEP = "Make it anew with `farmctl mirror create`"


@dataclass(frozen=True, slots=True)
class MirrorConfig:
    """What one node knows of its mirror before it starts. Addresses are `HOST:PORT`, times in seconds."""

    name: str
    mirror: str
    """32 hexadecimal digits, the same on both nodes: a node of another mirror is refused."""
    node: int
    """1 or 2; the other number is the peer's."""
    directory: str
    """What is replicated, as applications see it while this node is primary."""
    listen: str
    peer: str
    arbiter: str = "operator"
    """`operator`, `file:PATH` on a disk that both nodes see, or `witness:HOST:PORT`."""
    ack: str = "strict"
    keys: str | None = None
    """Folder with `ca.pem`, `node.pem` and `node.key`; None: nothing is encrypted or authenticated."""
    peer_timeout_s: float = 5.0
    """Silence after which the peer is lost."""
    hold_s: float = 30.0
    """How long operations wait when neither the peer nor the arbiter answers; then they fail."""
    freeze_s: float = 5.0
    """The last round of a resync holds writes back for this long at most."""
    rate_bytes_s: int = 0
    """Limit of a resync; 0: none."""

    @property
    def other(self) -> int:
        """The peer's number."""
        return 3 - self.node


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`. Raises BadRequest."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadRequest(text, "this is not HOST:PORT", "Write for example 192.0.2.1:7800")
    return host.strip("[]"), int(port)


def check(config: MirrorConfig) -> MirrorConfig:
    """`config` if everything in it means something. Raises BadRequest."""
    wrong = {
        config.name: not _NAME.fullmatch(config.name) and "a name has small letters, digits and '-', 32 at most",
        f"node {config.node}": config.node not in (1, 2) and "a mirror's nodes are 1 and 2",
        config.mirror: not _ID.fullmatch(config.mirror) and "an identity has 32 hexadecimal digits",
        config.ack: config.ack not in ACKS and f"the ways to acknowledge are {', '.join(ACKS)}",
        config.directory: not Path(config.directory).is_absolute() and "the path must begin with /",
    }
    for subject, cause in wrong.items():
        if cause:
            raise BadRequest(subject, cause, "Correct it and try again")
    address(config.listen)
    address(config.peer)
    kind, _, where = config.arbiter.partition(":")
    if kind == "witness":
        address(where)
    elif not (config.arbiter == "operator" or (kind == "file" and where.startswith("/"))):
        raise BadRequest(config.arbiter, "there is no such arbiter", "Use operator, file:/PATH or witness:HOST:PORT")
    return config


def load(folder: Path) -> MirrorConfig:
    """The mirror whose folder this is. Raises NotFound, or BadRequest for a file that means nothing."""
    path = folder / FILE
    try:
        values: Any = json.loads(path.read_text())
    except FileNotFoundError as error:
        step = "See `farmctl mirror create`, and --state"
        raise NotFound(f"mirror {folder.name}", f"{path} does not exist", step) from error
    except (OSError, ValueError) as error:
        raise BadRequest(str(path), f"it cannot be read ({error})", _STEP) from error
    known = {field.name for field in fields(MirrorConfig)}
    if not isinstance(values, dict) or not set(values) <= known:
        raise BadRequest(str(path), "it has fields that are not known", _STEP)
    try:
        return check(MirrorConfig(**values))
    except TypeError as error:
        raise BadRequest(str(path), f"a field is missing or wrong ({error})", _STEP) from error


def save(folder: Path, config: MirrorConfig) -> None:
    """Write it; the folder is made. Raises Refused if there is one already: it may hold the only good copy's record."""
    path = folder / FILE
    if path.exists():
        raise Refused(f"mirror {config.name}", f"{path} exists", "Choose another name, or another --state")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w") as file:
        json.dump(asdict(check(config)), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
