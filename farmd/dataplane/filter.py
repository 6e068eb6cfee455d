# SPDX-License-Identifier: Apache-2.0
"""The daemon's hand on the filter: load, attach, configure, count, probe, remove."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from farmd.dataplane import bpffs, links, tables
from farmd.dataplane._libbpf import ffi, lib
from farmd.dataplane.kernel import Loaded, Map, declared_maps, load
from farmd.dataplane.links import Attachment
from farmd.dataplane.reasons import REASONS, VERDICTS, Reason, Verdict
from farmd.model.config import Delivery, FarmConfig
from farmd.model.errors import KernelError
from farmd.model.interfaces import InterfaceFacts

OBJECT = Path(__file__).with_name("farm.bpf.o")
"""The compiled filter, shipped with the package."""
_PROGRAMS = ("farm_filter", "farm_explain", "farm_renew")
_ACTIVE = struct.Struct("=II")  # struct farm_active: generation, abi
_SHORTEST_FRAME = 14


@dataclass(frozen=True, slots=True)
class Probe:
    """What the filter does with a frame: the verdict, the frame as it leaves, the reason (None: not for a VIP) and the
    index of the rule it is counted under (0: none)."""

    verdict: Verdict
    frame: bytes
    reason: Reason | None
    rule: int = 0


class Filter:
    """A loaded filter. It goes on filtering when this process ends, for as long as its lease is renewed."""

    def __init__(self, pin_dir: Path, loaded: Loaded, fresh_maps: bool) -> None:
        self._pin_dir = pin_dir
        self._loaded = loaded
        self._rules = 0
        self._cpus = int(lib.libbpf_num_possible_cpus())
        self.fresh_maps = fresh_maps
        """Planes, lease and counters began anew with this start: an engine that runs has to open them again."""
        self.attachments: tuple[Attachment, ...] = ()

    @classmethod
    def attach(
        cls,
        config: FarmConfig,
        hash_key: bytes,
        interfaces: Sequence[InterfaceFacts],
        *,
        object_path: Path | None = None,
    ) -> Self:
        """Load the filter, fill its table, and put it on `config.interfaces`.

        Whatever an earlier run pinned in `config.pin_dir` is used again: maps keep planes, lease and counters, and
        links get the new program without a gap. `interfaces` are facts of this namespace; those that `config` does not
        name are ignored; if it names none, all are taken. Raises KernelError.
        """
        chosen = choose(config, interfaces)
        bpffs.prepare(config.pin_dir)
        path = object_path or OBJECT
        pinned, why_fresh = _pinned_maps(config.pin_dir, path)
        loaded = load(path, pinned, _PROGRAMS)
        for entry in pinned.values():
            entry.close()
        made = cls(config.pin_dir, loaded, not pinned)
        made._configure(config, hash_key, chosen)
        made._pin()
        made._attach(config, chosen, why_fresh)
        return made

    def configure(self, config: FarmConfig, hash_key: bytes, interfaces: Sequence[InterfaceFacts]) -> None:
        """Put a changed configuration in force, for every packet at once. Attachments stay as they are."""
        self._configure(config, hash_key, choose(config, interfaces))

    def counters(self) -> dict[tuple[int, Reason], int]:
        """Packets by (rule index, reason), summed over CPUs; index 0 is VIP traffic without a rule. Without zeros."""
        found = {}
        size = int(lib.FARM_REASONS)
        for rule in range(self._rules + 1):
            raw = self._loaded.maps["farm_counters"].read(rule, 8 * size * self._cpus)
            values = struct.unpack(f"={size * self._cpus}Q", raw)
            for number, reason in enumerate(REASONS):
                if reason is not None and (packets := sum(values[number::size])):
                    found[rule, reason] = packets
        return found

    def probe(self, frame: bytes, interface: str | None = None) -> Probe:
        """Ask the loaded filter about a frame (14 bytes at least) as if it had come in on `interface`.

        The default is the first interface attached. Uses the attached program's twin, which is the same code on the
        same maps but counts nothing.
        """
        if len(frame) < _SHORTEST_FRAME:
            raise ValueError(f"an Ethernet frame has {_SHORTEST_FRAME} bytes at least, not {len(frame)}")
        known = {attachment.interface: attachment.ifindex for attachment in self.attachments}
        ifindex = known[interface] if interface is not None else next(iter(known.values()), 0)
        run = self._loaded.programs["farm_explain"].run_xdp(frame, ifindex)
        return Probe(VERDICTS[run.result & 0xFF], run.frame, REASONS[run.result >> 8 & 0xFF], run.result >> 16)

    def detach(self) -> None:
        """Remove everything: links, programs, maps, pins. VIP traffic then reaches the stack unfiltered."""
        self.close()
        purge(self._pin_dir)
        self.attachments = ()

    def close(self) -> None:
        """Let go of the filter, which goes on as it is."""
        self._loaded.close()

    def _configure(self, config: FarmConfig, hash_key: bytes, interfaces: Sequence[InterfaceFacts]) -> None:
        table = tables.encode(config, hash_key, interfaces)
        # Nobody may still be reading the generation that we are about to write: it may have been switched off just now.
        if lib.farm_rcu_barrier() < 0:
            time.sleep(0.1)  # kernels with nohz_full refuse; an XDP run takes microseconds
        maps = self._loaded.maps
        with maps["farm_active"].memory() as active, maps["farm_tables"].memory() as generations:
            other = 1 - _ACTIVE.unpack_from(active)[0]
            generations[other * len(table) : (other + 1) * len(table)] = table
            with ffi.from_buffer("uint32_t[]", active, require_writable=True) as generation:
                lib.farm_publish(generation, other)
        self._rules = max((rule.index for rule in config.rules), default=0)

    def _pin(self) -> None:
        for name, descriptor in (self._loaded.maps | self._loaded.programs).items():
            descriptor.pin(_pin_path(self._pin_dir, name))

    def _attach(self, config: FarmConfig, interfaces: Sequence[InterfaceFacts], why_fresh: str) -> None:
        program = self._loaded.programs["farm_filter"]
        found = []
        for facts in interfaces:
            directed = config.delivery is Delivery.DIRECTED
            made = links.attach(program, facts, config.attach_mode, self._pin_dir, directed=directed)
            if made.reattached and why_fresh:
                reason = f"{made.reason}; {why_fresh}"
                made = Attachment(made.interface, made.ifindex, made.mode, reason, made.reattached)
            found.append(made)
        links.prune(self._pin_dir, frozenset(facts.ifindex for facts in interfaces))
        self.attachments = tuple(found)


def choose(config: FarmConfig, interfaces: Sequence[InterfaceFacts]) -> tuple[InterfaceFacts, ...]:
    """The facts of `config.interfaces`, in that order; if farm.toml names none, all. Raises KernelError."""
    known = {facts.name: facts for facts in interfaces}
    names = config.interfaces or tuple(known)
    for name in names:
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            cause = f"there is no such interface (there are: {there})"
            raise KernelError(f"interface {name}", cause, "Correct `interfaces` in farm.toml; see `ip link`")
    if len(names) > tables.MAX_INTERFACES:
        cause = f"the filter takes {tables.MAX_INTERFACES} interfaces, not {len(names)}"
        raise KernelError("interfaces", cause, "Name only those that clients use")
    return tuple(known[name] for name in names)


def purge(pin_dir: Path) -> None:
    """Remove every filter, map and pin in `pin_dir`, whoever loaded them. No error if there is nothing."""
    if not pin_dir.is_dir():
        return
    for pin in pin_dir.glob("link-*"):
        links.end(pin)
    for pin in pin_dir.iterdir():
        pin.unlink()
    pin_dir.rmdir()


def _pin_path(pin_dir: Path, name: str) -> Path:
    return pin_dir / name.removeprefix("farm_")


def _pinned_maps(pin_dir: Path, path: Path) -> tuple[dict[str, Map], str]:
    """The maps of the last run if the filter in `path` can go on with them; else none, and why."""
    found: dict[str, Map] = {}
    for name, shape in declared_maps(path).items():
        try:
            found[name] = Map.get(_pin_path(pin_dir, name))
        except FileNotFoundError:
            why = f"began with fresh maps: {name} was not pinned"
            break
        if found[name].shape() != shape:
            why = f"began with fresh maps: {name} has another layout now"
            break
    else:
        abi = _ACTIVE.unpack(found["farm_active"].read(0, _ACTIVE.size))[1]
        if abi == int(lib.FARM_ABI_VERSION):
            return found, ""
        why = f"began with fresh maps: the last run had layout {abi}, this one has {int(lib.FARM_ABI_VERSION)}"
    for entry in found.values():
        entry.close()
    return {}, why
