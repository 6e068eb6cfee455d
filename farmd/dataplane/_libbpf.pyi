# SPDX-License-Identifier: Apache-2.0
"""The compiled binding: made by `cext/build.py` from `cext/libbpf.cdef`, `cext/libbpf.c` and `ebpf/farm_abi.h`."""

from typing import Any

ffi: Any
lib: Any
