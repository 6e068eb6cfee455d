# SPDX-License-Identifier: Apache-2.0
"""libbpf, as objects that own file descriptors and raise `KernelError` with the cause that libbpf only prints."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from farmd.dataplane._libbpf import ffi, lib
from farmd.model.errors import KernelError

_VARIABLE = ".data."
"""How the name of a map begins that is a variable of the filter's: it lies in a section of its own."""
_CAPABILITIES = (12, 38, 39)
"""CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF, from linux/capability.h."""
_AS_ROOT = "Run it as root, or give it CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"


def kernel_error(subject: str, number: int, what: str, next_step: str = "See `dmesg` and report it") -> KernelError:
    """A KernelError for `-errno` (or errno) `number`, with the last lines that libbpf printed."""
    number = abs(number)
    if number in (errno.EPERM, errno.EACCES) and not _may_use_bpf():
        next_step = _AS_ROOT
    log = [line for line in ffi.string(lib.farm_log()).decode(errors="replace").splitlines() if line.strip()]
    detail = "; ".join(log[-3:])
    cause = f"{what}: {os.strerror(number)}" + (f" ({detail})" if detail else "")
    return KernelError(subject, cause, next_step)


class Descriptor:
    """A kernel object that lives while this, a pin or an attachment refers to it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def get(cls, path: Path) -> Self:
        """Open what is pinned at `path`. Raises FileNotFoundError or KernelError."""
        lib.farm_log_start()
        fd = lib.bpf_obj_get(os.fsencode(path))
        if fd < 0:
            number = ffi.errno
            if number == errno.ENOENT:
                raise FileNotFoundError(number, os.strerror(number), str(path))
            raise kernel_error(str(path), number, "cannot be opened")
        return cls(fd)

    def pin(self, path: Path) -> None:
        """Make `path` refer to this, at once instead of whatever it referred to. `path` is on a bpffs."""
        new = path.with_name(f"{path.name}-new")
        new.unlink(missing_ok=True)
        lib.farm_log_start()
        if lib.bpf_obj_pin(self.fd, os.fsencode(new)) < 0:
            raise kernel_error(str(path), ffi.errno, "cannot be pinned")
        new.replace(path)

    def close(self) -> None:
        """Give the descriptor back; safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class MapShape:
    """What makes two maps interchangeable, as far as the kernel knows."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int


class Map(Descriptor):
    """An array map: keys are indices. A variable is an array of one."""

    def shape(self) -> MapShape:
        """Type and sizes."""
        info = ffi.new("struct bpf_map_info *")
        if (error := lib.farm_map_info(self.fd, info)) < 0:
            raise kernel_error("BPF map", error, "cannot be described")
        return MapShape(info.type, info.key_size, info.value_size, info.max_entries)

    def number(self) -> int:
        """Its number in this kernel."""
        info = ffi.new("struct bpf_map_info *")
        if (error := lib.farm_map_info(self.fd, info)) < 0:
            raise kernel_error("BPF map", error, "cannot be described")
        return int(info.id)

    def memory(self) -> mmap.mmap:
        """The value itself of a variable, shared with the filter: what is stored there takes effect at once."""
        try:
            return mmap.mmap(self.fd, self.shape().value_size)
        except OSError as error:
            raise kernel_error("BPF map", error.errno or 0, "cannot be mapped") from error

    def write(self, index: int, value: bytes) -> None:
        """Replace one value."""
        if lib.bpf_map_update_elem(self.fd, ffi.new("uint32_t *", index), ffi.from_buffer(value), 0) < 0:
            raise kernel_error("BPF map", ffi.errno, f"entry {index} cannot be written")

    def read(self, index: int, size: int) -> bytes:
        """One value of `size` bytes; of a per-CPU map, the values of all CPUs one after another."""
        buffer = ffi.new("char[]", size)
        if lib.bpf_map_lookup_elem(self.fd, ffi.new("uint32_t *", index), buffer) < 0:
            raise kernel_error("BPF map", ffi.errno, f"entry {index} cannot be read")
        return bytes(ffi.buffer(buffer, size))


@dataclass(frozen=True, slots=True)
class Run:
    """What PROG_TEST_RUN gave: the program's result, the frame as it left, the mean time of one run."""

    result: int
    frame: bytes
    duration_ns: int


class Program(Descriptor):
    """A loaded program."""

    def identity(self) -> tuple[int, str]:
        """Its number in this kernel, and its name."""
        info = ffi.new("struct bpf_prog_info *")
        if (error := lib.farm_program_info(self.fd, info)) < 0:
            raise kernel_error("BPF program", error, "cannot be described")
        return int(info.id), ffi.string(info.name).decode(errors="replace")

    def run_xdp(self, frame: bytes, ifindex: int = 0, repeat: int = 1) -> Run:
        """Run it on `frame` (14 bytes at least) as if that had come in on `ifindex` (0: lo)."""
        out = ffi.new("char[]", len(frame) + 256)
        size = ffi.new("uint32_t *", len(frame) + 256)
        result, duration = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        error = lib.farm_run_xdp(self.fd, ifindex, frame, len(frame), out, size, repeat, result, duration)
        if error < 0:
            raise kernel_error("BPF program", error, f"cannot be run on a frame of {len(frame)} bytes")
        return Run(int(result[0]), bytes(ffi.buffer(out, size[0])), int(duration[0]))

    def run_syscall(self, context: Any) -> None:
        """Run a `syscall` program on a C struct, which it may change. Raises KernelError if it does not return 0."""
        result = ffi.new("uint32_t *")
        error = lib.farm_run_syscall(self.fd, context, ffi.sizeof(context[0]), result)
        if error < 0 or result[0]:
            raise kernel_error("BPF program", error or errno.EINVAL, "cannot be run")


class Link(Descriptor):
    """An attachment of a program to an interface. It ends when nothing refers to it any more."""

    @classmethod
    def create(cls, program: Program, ifindex: int, flags: int) -> Self:
        """Attach. Raises OSError, for the caller to explain."""
        lib.farm_log_start()
        fd = lib.farm_link_create(program.fd, ifindex, flags)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd))
        return cls(fd)

    def target(self) -> tuple[int, int]:
        """The program's number and the interface's index; the index is 0 once the interface is gone."""
        program, ifindex = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        if (error := lib.farm_link_info(self.fd, program, ifindex)) < 0:
            raise kernel_error("XDP link", error, "cannot be described")
        return int(program[0]), int(ifindex[0])

    def update(self, program: Program) -> None:
        """Put `program` in place of the present one; no frame passes between them unfiltered."""
        lib.farm_log_start()
        if lib.bpf_link_update(self.fd, program.fd, ffi.NULL) < 0:
            raise kernel_error("XDP link", ffi.errno, "cannot be updated")

    def detach(self) -> None:
        """End the attachment now."""
        if lib.bpf_link_detach(self.fd) < 0 and ffi.errno != errno.ENOLINK:
            raise kernel_error("XDP link", ffi.errno, "cannot be detached")


@dataclass(frozen=True, slots=True)
class XdpPresence:
    """Numbers of the XDP programs on an interface, by mode; 0 = none."""

    native: int
    generic: int
    offloaded: int

    @property
    def any(self) -> int:
        """The number of the one that is there, or 0."""
        return self.native or self.generic or self.offloaded

    def word(self, number: int) -> str:
        """What `ip link` calls the mode of one of them."""
        words = {self.native: "xdpdrv", self.generic: "xdpgeneric", self.offloaded: "xdpoffload"}
        return words.get(number, "xdp")


def xdp_presence(ifindex: int) -> XdpPresence:
    """Which XDP programs an interface of this namespace carries."""
    ids = [ffi.new("uint32_t *") for _ in range(3)]
    if (error := lib.farm_xdp_query(ifindex, *ids)) < 0:
        raise kernel_error(f"interface {ifindex}", error, "cannot be asked for its XDP program")
    return XdpPresence(*(int(number[0]) for number in ids))


def program_name(number: int) -> str:
    """The name of the loaded program with this number, or "unknown"."""
    fd = lib.farm_program_by_id(number)
    if fd < 0:
        return "unknown"
    with Program(fd) as program:
        return program.identity()[1] or "unnamed"


class Loaded:
    """The maps and programs of a loaded object file; what is not pinned ends with `close`."""

    def __init__(self, maps: dict[str, Map], programs: dict[str, Program]) -> None:
        self.maps = maps
        self.programs = programs

    def close(self) -> None:
        """Close every descriptor."""
        for descriptor in (*self.maps.values(), *self.programs.values()):
            descriptor.close()


def load(path: Path, reuse: Mapping[str, Map], programs: tuple[str, ...]) -> Loaded:
    """Load an object file with the maps in `reuse` in place of new ones. Names are those of the C source."""
    handle = _open(path)
    try:
        _reuse(handle, reuse)
        if (error := lib.bpf_object__load(handle)) < 0:
            raise kernel_error(str(path), error, "the kernel refused the filter", _load_advice(-error))
        return Loaded(
            {name: Map(os.dup(lib.bpf_map__fd(entry))) for name, entry in _maps(handle)},
            {name: Program(os.dup(_program_fd(handle, name))) for name in programs},
        )
    finally:
        lib.bpf_object__close(handle)


def declared_maps(path: Path) -> dict[str, MapShape]:
    """The maps that an object file declares; loads nothing."""
    handle = _open(path)
    try:
        return {
            name: MapShape(
                int(lib.bpf_map__type(entry)),
                int(lib.bpf_map__key_size(entry)),
                int(lib.bpf_map__value_size(entry)),
                int(lib.bpf_map__max_entries(entry)),
            )
            for name, entry in _maps(handle)
        }
    finally:
        lib.bpf_object__close(handle)


def _open(path: Path) -> Any:
    advice = "Build it: `python cext/build.py`"
    try:
        image = path.read_bytes()
    except OSError as refused:
        cause = f"the compiled filter cannot be read: {refused.strerror}"
        raise KernelError(str(path), cause, advice) from refused
    lib.farm_log_start()
    handle = lib.bpf_object__open_mem(ffi.from_buffer(image), len(image), ffi.NULL)
    if handle == ffi.NULL:
        raise kernel_error(str(path), ffi.errno, "this is no compiled filter", advice)
    return handle


def _may_use_bpf() -> bool:
    """Whether this process has what attaching the filter takes; root may lack it, in a container or under systemd."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return all(effective >> number & 1 for number in _CAPABILITIES)


def _load_advice(number: int) -> str:
    if number in (errno.EPERM, errno.EACCES) and not _may_use_bpf():
        return _AS_ROOT
    if number == errno.EPERM:
        return "The kernel forbids BPF here (container without CAP_BPF, lockdown?); run farmd on the host itself"
    return "The filter needs Linux 6.1 or newer with CONFIG_DEBUG_INFO_BTF; see `uname -r`"


def _reuse(handle: Any, reuse: Mapping[str, Map]) -> None:
    for name, entry in _maps(handle):
        if name in reuse and (error := lib.bpf_map__reuse_fd(entry, reuse[name].fd)) < 0:
            raise kernel_error(name, error, "the pinned map cannot be used again")


def _maps(handle: Any) -> list[tuple[str, Any]]:
    found = []
    entry = lib.bpf_object__next_map(handle, ffi.NULL)
    while entry != ffi.NULL:
        name = ffi.string(lib.bpf_map__name(entry)).decode()
        name = name.removeprefix(_VARIABLE)
        if name.startswith("farm_"):  # not .rodata and the like
            found.append((name, entry))
        entry = lib.bpf_object__next_map(handle, entry)
    return found


def _program_fd(handle: Any, name: str) -> int:
    return int(lib.bpf_program__fd(lib.bpf_object__find_program_by_name(handle, name.encode())))
