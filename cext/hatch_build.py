# SPDX-License-Identifier: Apache-2.0
"""Hatchling's hook: a wheel or an editable install compiles the filter and the binding first."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class FarmBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs `cext/build.py` and marks the wheel as one for this machine, and for any Python from 3.11."""

    PLUGIN_NAME = "farmd"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        path = Path(self.root) / "cext" / "build.py"
        spec = importlib.util.spec_from_file_location("farmd_build", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            module.build(Path(self.root))
        except module.BuildError as error:
            raise SystemExit(f"farmd cannot be built: {error}") from None
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-linux_{platform.machine()}"
