# SPDX-License-Identifier: Apache-2.0
"""One node's part of a mirror, as `farmctl mirror create` writes it: `STATE/NAME/mirror.json`.

The folder also holds what the node must remember (record, arbiter's register, checksum record) and its API socket.
The file has a list of directories. Several are one mirror: one order of all writes, one state, one promotion. Each has
a name then, by which the nodes know it, and where it is may differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from farmd.model import exclusions
from farmd.model.errors import BadRequest, ConfigError, FarmError, NotFound, Problem, Refused
from farmd.model.jsonplace import Places

DEFAULT_STATE = Path("/var/lib/farmd/mirrors")
FILE = "mirror.json"
SOCKET = "api.sock"
ACKS = ("strict", "barrier", "async")
MIN_IMAGE_BYTES = 16 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_ID = re.compile(r"[0-9a-f]{32}")
_STEP = "Make it anew with `farmctl mirror create`"
_CORRECT = "Correct it and try again"
MAX_DIRECTORIES = 32
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Directory:
    """What is replicated, as applications see it while this node is primary."""

    path: str
    name: str = ""
    """The same on both nodes; empty if it is the mirror's only directory."""
    exclude: tuple[str, ...] = ()
    """What stays on its node (`farmd.model.exclusions`); the same on both nodes."""
    image_bytes: int = 0
    """Image mode: the directory holds one file of this size, mounted over it while primary. 0: file mode."""
    own_mount: bool = False
    """The directory is a mount point of its own. If nothing is mounted there, the node does not start."""


@dataclass(frozen=True, slots=True)
class MirrorConfig:
    """What one node knows of its mirror before it starts. Addresses are `HOST:PORT`, times in seconds."""

    name: str
    mirror: str
    """32 hexadecimal digits, the same on both nodes: a node of another mirror is refused."""
    node: int
    """1 or 2; the other number is the peer's."""
    directories: tuple[Directory, ...]
    """One, or several with a name each."""
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
    slowdown: float = 2.0
    """A resync, failback or verify gives way when writes take this many times as long as without it; 0: it does not."""

    @property
    def other(self) -> int:
        """The peer's number."""
        return 3 - self.node

    @property
    def shape(self) -> dict[str, Any]:
        """What both nodes must have alike, or one would delete what the other keeps."""
        alike: dict[str, Any] = {"exclude": sorted(self.exclude) if self.several else list(self.exclude)}
        names = {"directories": sorted(each.name for each in self.directories)} if self.several else {}
        return alike | {"image": self.image_bytes > 0} | names

    @property
    def identity(self) -> dict[str, Any]:
        """Which mirror this is, for people and for `--json`: the beginning of every status."""
        named = [{"path": each.path, "name": each.name, "exclude": list(each.exclude)} for each in self.directories]
        shown = [f"{each.name}:{pattern}" for each in self.directories for pattern in each.exclude]
        return {
            "name": self.name,
            "mirror": self.mirror,
            "node": self.node,
            "directory": self.directory,
            "directories": named,
            "exclude": shown if self.several else list(self.exclude),
            "image_bytes": self.image_bytes,
        }

    @property
    def several(self) -> bool:
        """More than one directory."""
        return len(self.directories) > 1

    @property
    def directory(self) -> str:
        """Where it is; of several, where the first one is."""
        return self.directories[0].path

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where all of them are."""
        return tuple(Path(each.path) for each in self.directories)

    @property
    def image_bytes(self) -> int:
        """Image mode: the size. 0: file mode."""
        return self.directories[0].image_bytes

    @property
    def exclude(self) -> tuple[str, ...]:
        """Patterns as the engines take them (`cext/exclude.h`), for the tree that holds all directories."""
        if not self.several:
            return self.directories[0].exclude
        return tuple(f"//{each.name}/{pattern}" for each in self.directories for pattern in each.exclude)

    def place(self, path: bytes) -> bytes:
        """What people are told of a path in the replicated tree: below the directory; of several, the whole path."""
        name, _, rest = path.partition(b"/")
        for each in self.directories if self.several else ():
            if os.fsencode(each.name) == name:
                return os.path.join(os.fsencode(each.path), rest) if rest else os.fsencode(each.path)
        return path


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`. Raises BadRequest."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadRequest(text, "this is not HOST:PORT", "Write for example 192.0.2.1:7800")
    return host.strip("[]"), int(port)


def size(text: str) -> int:
    """Bytes of `512M`, `20G`, `2T` or a plain number. Raises BadRequest."""
    found = re.fullmatch(r"([0-9]+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise BadRequest(text, "this is not a size", "Write for example 512M, 20G or 2T")
    return int(found[1]) << 10 * "_KMGT".index(found[2].upper() or "_")


def check(config: MirrorConfig) -> MirrorConfig:
    """`config` if everything in it means something. Raises BadRequest."""
    for _, error in _faults(config):
        raise error
    return config


def _faults(config: MirrorConfig) -> Iterator[tuple[tuple[str | int, ...], BadRequest]]:
    """Everything that means nothing, with the place in the file."""
    top: dict[str, tuple[bool, str]] = {
        "name": (bool(_NAME.fullmatch(config.name)), "a name has small letters, digits and '-', 32 at most"),
        "node": (config.node in (1, 2), "a mirror's nodes are 1 and 2"),
        "mirror": (bool(_ID.fullmatch(config.mirror)), "an identity has 32 hexadecimal digits"),
        "slowdown": (config.slowdown == 0 or 1 < config.slowdown <= 100, "give 0 (off), or more than 1, 100 at most"),
        "ack": (config.ack in ACKS, f"the ways to acknowledge are {', '.join(ACKS)}"),
    }
    for key, (right, cause) in top.items():
        if not right:
            yield (key,), BadRequest(f"{key} {getattr(config, key)}", cause, _CORRECT)
    yield from _directory_faults(config)
    for key in ("listen", "peer", "arbiter"):
        try:
            _arbiter(config.arbiter) if key == "arbiter" else address(getattr(config, key))
        except BadRequest as error:
            yield (key,), error


def _directory_faults(config: MirrorConfig) -> Iterator[tuple[tuple[str | int, ...], BadRequest]]:
    for number, each in enumerate(config.directories):
        place, path = ("directories", number), PurePosixPath(each.path)
        if not path.is_absolute() or path == PurePosixPath("/") or ".." in path.parts:
            cause = "the path must begin with / and name a directory"
            yield (*place, "path"), BadRequest(each.path, cause, _CORRECT)
        for at, error in _exclude_faults(each):
            yield (*place, *at), error
        if each.image_bytes and each.image_bytes < MIN_IMAGE_BYTES:
            cause = f"an image has at least {MIN_IMAGE_BYTES >> 20} MiB"
            yield (*place, "image_bytes"), BadRequest(f"image of {each.image_bytes} bytes", cause, _CORRECT)
        if each.image_bytes and config.several:
            cause = "an image is the only directory of its mirror"
            yield (*place, "image_bytes"), BadRequest("image", cause, "Make directories in the image, or leave it out")
        for before in config.directories[:number]:
            if (fault := _pair_fault(before, each)) is not None:
                yield (*place, fault[0]), BadRequest(*fault[1:])
        if config.several and not _PART.fullmatch(each.name):
            cause = "the name of one of several directories has letters, digits, '.', '_' and '-', 64 at most"
            yield (*place, "name"), BadRequest(f"directory {each.path}", cause, "Give it one: NAME=PATH")


def _exclude_faults(each: Directory) -> Iterator[tuple[tuple[str | int, ...], BadRequest]]:
    for number, pattern in enumerate(each.exclude):
        cause = exclusions.fault(pattern)
        if cause is None and number >= exclusions.MAX_PATTERNS:
            cause = f"more than {exclusions.MAX_PATTERNS} patterns"
        if cause is not None:
            yield ("exclude", number), BadRequest(f"exclude {pattern!r}", cause, _CORRECT)
    if each.image_bytes and each.exclude:
        cause = "in image mode the image is all there is: nothing can be excluded"
        yield ("exclude",), BadRequest("exclude", cause, "Leave out the patterns, or the image")


def _pair_fault(one: Directory, other: Directory) -> tuple[str, str, str, str] | None:
    """Why these two cannot be in one mirror: field, subject, cause, next step."""
    if (how := overlap(one.path, other.path)) is not None:
        return "path", other.path, f"it {how} {one.path}", "Name each directory once, and none below another"
    if one.name == other.name:
        step = "Give one of them another name: NAME=PATH"
        return "name", f"directory {other.path}", f"its name {other.name!r} is that of {one.path}", step
    return None


def overlap(path: str, other: str) -> str | None:
    """How the directory `other` and `path` are the same files, "is" or "is below" or "holds"; None: they are not."""
    one, two = PurePosixPath(path), PurePosixPath(other)
    if one == two:
        return "is the same as"
    return "is below" if one in two.parents else "holds" if two in one.parents else None


def _arbiter(text: str) -> None:
    kind, _, where = text.partition(":")
    if kind == "witness":
        address(where)
    elif not (text == "operator" or (kind == "file" and where.startswith("/"))):
        raise BadRequest(text, "there is no such arbiter", "Use operator, file:/PATH or witness:HOST:PORT")


def load(folder: Path) -> MirrorConfig:
    """The mirror whose folder this is. Raises NotFound, or ConfigError that names line and column."""
    path = folder / FILE
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        step = "See `farmctl mirror create`, and --state"
        raise NotFound(f"mirror {folder.name}", f"{path} does not exist", step) from error
    except (OSError, ValueError) as error:
        raise BadRequest(str(path), f"it cannot be read ({error})", _STEP) from error
    return parse(str(path), text)


def parse(file: str, text: str) -> MirrorConfig:
    """What `text`, the contents of `file`, says. Raises ConfigError with every problem's line and column."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            (Problem(file, error.lineno, error.colno, f"this is not JSON ({error.msg})", _STEP),)
        ) from None
    places = Places(text)

    def problem(place: tuple[str | int, ...], cause: str, step: str) -> Problem:
        return Problem(file, *places.of(place), cause, step)

    wrong = [problem(place, cause, _STEP) for place, cause in _shape(values)]
    if wrong:
        raise ConfigError(tuple(wrong))
    config = _flat(values)
    wrong = [problem(place, f"{error.subject}: {error.cause}", error.next_step) for place, error in _faults(config)]
    if wrong:
        raise ConfigError(tuple(wrong))
    return config


def _shape(values: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is missing, unknown or of the wrong type."""
    if not isinstance(values, dict):
        yield (), "a mirror's file is one object"
        return
    types = {field.name: str(field.type) for field in fields(MirrorConfig)}
    yield from _types(values, types | {"directories": "list"}, _REQUIRED, ())
    directories = values.get("directories", [])
    if not isinstance(directories, list):
        return
    if not 1 <= len(directories) <= MAX_DIRECTORIES and "directories" in values:
        yield ("directories",), f"{len(directories)} directories: a mirror has 1 to {MAX_DIRECTORIES}"
    inner = {field.name: str(field.type) for field in fields(Directory)}
    for number, each in enumerate(directories):
        if isinstance(each, dict):
            yield from _types(each, inner, {"path"}, ("directories", number))
        else:
            yield ("directories", number), "a directory is an object with a path"


_REQUIRED = {"name", "mirror", "node", "listen", "peer", "directories"}
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "str | None": ((str, type(None)), "text or null"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "list": ((list,), "a list"),
    "tuple[str, ...]": ((list,), "a list of patterns"),
}


def _types(
    values: dict[str, Any], known: dict[str, str], required: set[str], place: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for name, value in values.items():
        if name not in known:
            yield (*place, name), f'"{name}" is not known here'
            continue
        if not _fits(value, known[name]):
            yield (*place, name), f'"{name}" must be {_KINDS[known[name]][1]}'
    for name in sorted(required - values.keys()):
        yield place, f'"{name}" is missing'


def _fits(value: Any, kind: str) -> bool:
    kinds, _ = _KINDS[kind]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return False
    return not isinstance(value, list) or kind == "list" or all(isinstance(each, str) for each in value)


def _flat(values: dict[str, Any]) -> MirrorConfig:
    found = values["directories"]
    directories = (Directory(**each | {"exclude": tuple(each.get("exclude", ()))}) for each in found)
    return MirrorConfig(**values | {"directories": named(tuple(directories))})


def named(directories: tuple[Directory, ...]) -> tuple[Directory, ...]:
    """With the names that they have if none is told: an only one has none, one of several the last part of its path."""
    if len(directories) == 1:
        return (replace(directories[0], name=""),)
    return tuple(replace(each, name=each.name or PurePosixPath(each.path).name) for each in directories)


def as_file(config: MirrorConfig) -> dict[str, Any]:
    """The file's contents, JSON-ready."""
    values = asdict(config)
    if not config.several:
        del values["directories"][0]["name"]
    return values | {"directories": list(values["directories"])}


def clash(config: MirrorConfig, state: Path) -> Refused | None:
    """Another mirror of this node, below `state`, that has one of these directories, or one in or around it."""
    for path in sorted(state.glob(f"*/{FILE}")):
        if path.parent.name == config.name:
            continue
        with contextlib.suppress(FarmError):  # a file that cannot be read names no directory
            for theirs in load(path.parent).paths:
                for mine in config.paths:
                    if (how := overlap(str(theirs), str(mine))) is not None:
                        cause = f"it {how} {theirs} of mirror {path.parent.name}: both would write there"
                        return Refused(str(mine), cause, "A directory is in one mirror; choose another")
    return None


def save(folder: Path, config: MirrorConfig) -> None:
    """Write it; the folder is made. Raises Refused if there is one already: it may hold the only good copy's record."""
    path = folder / FILE
    if path.exists():
        raise Refused(f"mirror {config.name}", f"{path} exists", "Choose another name, or another --state")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w") as file:
        json.dump(as_file(check(config)), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
