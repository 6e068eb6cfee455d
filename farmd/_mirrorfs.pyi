# SPDX-License-Identifier: Apache-2.0
"""The mirror's data path, compiled: made by `cext/build.py` from `cext/mirror/`; `api.h` there declares it."""

from typing import Any

ffi: Any
lib: Any
