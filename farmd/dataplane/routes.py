# SPDX-License-Identifier: Apache-2.0
"""The engine's hand on what delivery `directed` needs beside the planes: who takes a bucket, and at which address."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self

from farmd.dataplane._libbpf import lib
from farmd.dataplane.kernel import Map
from farmd.model.buckets import BUCKETS
from farmd.model.errors import KernelError
from farmd.model.nodes import MAX_NODES, NodeId

_INTERFACES = int(lib.FARM_INTERFACES)
_GROUP_BYTES = 2 * BUCKETS


class RouteControl(Protocol):
    """What the engine of a directed farm tells the filter."""

    def write(self, group: int, owners: bytes, following: bytes) -> None:
        """Owner maps of `group` (see `farmd.model.buckets`): who takes a bucket, and whom to ask after us."""

    def write_mac(self, place: int, node: NodeId, mac: bytes) -> None:
        """Where `node` is on our interface number `place`; six zeros: unknown."""


class KernelRoutes:
    """The filter that is loaded in the kernel."""

    def __init__(self, routes: Map, macs: Map) -> None:
        self._routes, self._macs = routes.memory(), macs.memory()
        routes.close()
        macs.close()

    @classmethod
    def open(cls, pin_dir: Path) -> Self:
        """Open the filter that `Filter.attach` pinned. Raises KernelError if there is none."""
        try:
            return cls(Map.get(pin_dir / "routes"), Map.get(pin_dir / "macs"))
        except FileNotFoundError as error:
            raise KernelError(
                str(pin_dir), "no filter is pinned here", "Start farmd first: it loads the filter"
            ) from error

    def write(self, group: int, owners: bytes, following: bytes) -> None:
        """See `RouteControl`."""
        if not 0 <= group < int(lib.FARM_GROUPS) or len(owners) != BUCKETS or len(following) != BUCKETS:
            raise ValueError(f"no routes of a group: number {group}, {len(owners)} and {len(following)} buckets")
        self._routes[group * _GROUP_BYTES : (group + 1) * _GROUP_BYTES] = owners + following

    def write_mac(self, place: int, node: NodeId, mac: bytes) -> None:
        """See `RouteControl`. One store of a whole word, so that the filter never sees half of an address."""
        if not 0 <= place < _INTERFACES or not 0 <= node < MAX_NODES or len(mac) != 6:
            raise ValueError(f"no MAC address of a node: interface {place}, node {node}, {len(mac)} bytes")
        word = memoryview(self._macs).cast("Q")
        try:
            word[place * MAX_NODES + node] = int.from_bytes(mac, "little")
        finally:
            word.release()

    def close(self) -> None:
        """Let go of the filter, which goes on as it is."""
        self._routes.close()
        self._macs.close()
