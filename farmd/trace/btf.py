# SPDX-License-Identifier: Apache-2.0
"""Where the running kernel keeps a field, from the types that it publishes in /sys/kernel/btf/vmlinux.

bcc compiles against header files, and those need not be the running kernel's; offsets from BTF always are. Pure: works
on bytes. The format is in the kernel's Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct

from farmd.model.errors import KernelError

VMLINUX = "/sys/kernel/btf/vmlinux"
_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_ENUMERATOR = struct.Struct("<Ii")
_STRUCT, _UNION, _ENUM = 4, 5, 6
_TRANSPARENT = frozenset((8, 9, 10, 11, 18))
"""typedef, volatile, const, restrict, type_tag: they only refer to another type."""
_EXTRA = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0)}
_EXTRA |= {19: (0, 12)}
"""Kind -> bytes that follow its record: a fixed number, and a number for each member."""


class Types:
    """The types of one BTF blob. Raises KernelError for one that cannot be read, or for what is not in it."""

    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        try:
            magic, _version, _flags, header, types, types_size, strings, _size = _HEADER.unpack_from(blob)
            if magic != _MAGIC:
                raise ValueError("wrong magic number")
            self._strings = header + strings
            self._places = [0]
            self._scan(header + types, header + types + types_size)
        except (struct.error, ValueError, IndexError) as error:
            raise _unreadable(f"they cannot be read ({error})") from error

    def _scan(self, at: int, end: int) -> None:
        while at < end:
            self._places.append(at)
            _name, info, _size = _TYPE.unpack_from(self._blob, at)
            fixed, each = _EXTRA.get(info >> 24 & 0x1F, (0, 0))
            at += _TYPE.size + fixed + each * (info & 0xFFFF)

    def offset(self, structure: str, path: str) -> int:
        """Bytes from the start of `struct structure` to the field `path` ("nd_net.net" steps into a struct)."""
        at = self._find(structure, _STRUCT)
        total = 0
        for name in path.split("."):
            found = self._member(at, name)
            if found is None:
                raise _unreadable(f"struct {structure} has no field {path}")
            bits, at = found
            total += bits
        return total // 8

    def enumerators(self, name: str) -> dict[int, str]:
        """Value -> name of `enum name`."""
        at = self._find(name, _ENUM)
        count = _TYPE.unpack_from(self._blob, at)[1] & 0xFFFF
        pairs = (_ENUMERATOR.unpack_from(self._blob, at + _TYPE.size + 8 * index) for index in range(count))
        return {value: self._text(where) for where, value in pairs}

    def _find(self, name: str, kind: int) -> int:
        wanted = self._blob.find(b"\0" + name.encode() + b"\0", self._strings) + 1 - self._strings
        for at in self._places[1:]:
            where, info, _size = _TYPE.unpack_from(self._blob, at)
            # The same text may stand in the table as the tail of another, so a different place is compared by text.
            if info >> 24 & 0x1F == kind and info & 0xFFFF and (where == wanted or self._text(where) == name):
                return at
        raise _unreadable(f"{name} is not among them")

    def _member(self, at: int, name: str) -> tuple[int, int] | None:
        """Offset in bits and place of the type of a member, also inside members without a name."""
        at = self._solid(at)
        _name, info, _size = _TYPE.unpack_from(self._blob, at)
        if info >> 24 & 0x1F not in (_STRUCT, _UNION):
            return None
        for index in range(info & 0xFFFF):
            where, kind, offset = _MEMBER.unpack_from(self._blob, at + _TYPE.size + _MEMBER.size * index)
            offset = offset & 0xFFFFFF if info >> 31 else offset  # with the flag, the top byte is a bit field's size
            text = self._text(where)
            if text == name:
                return offset, self._places[kind]
            if not text and (inner := self._member(self._places[kind], name)):
                return offset + inner[0], inner[1]
        return None

    def _solid(self, at: int) -> int:
        while True:
            _name, info, target = _TYPE.unpack_from(self._blob, at)
            if info >> 24 & 0x1F not in _TRANSPARENT:
                return at
            at = self._places[target]

    def _text(self, where: int) -> str:
        begin = self._strings + where
        return self._blob[begin : self._blob.index(b"\0", begin)].decode(errors="replace")


def running_kernel() -> Types:
    """The running kernel's types. KernelError if it publishes none."""
    try:
        with open(VMLINUX, "rb") as file:
            return Types(file.read())
    except OSError as error:
        raise _unreadable(error.strerror or str(error)) from error


def _unreadable(cause: str) -> KernelError:
    return KernelError(
        f"kernel types in {VMLINUX}", cause, "Boot a kernel with CONFIG_DEBUG_INFO_BTF, such as Debian's"
    )
