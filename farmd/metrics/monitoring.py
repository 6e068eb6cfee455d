# SPDX-License-Identifier: Apache-2.0
"""The dashboard, rules and alerts that come with farmd, as files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from farmd.model.errors import NotPermitted

FILES = ("farm-overview.json", "farm-rules.yml", "farm-alerts.yml")
"""A Grafana dashboard (classic JSON), and recording and alerting rules for Prometheus."""


def export(folder: Path) -> tuple[Path, ...]:
    """Write the files to `folder`, over older ones, and return their paths.

    Raises:
        NotPermitted: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tuple(_copy(name, folder / name) for name in FILES)
    except OSError as error:
        raise NotPermitted(
            f"folder {folder}", error.strerror or str(error), "Name a folder you may write to"
        ) from error


def _copy(name: str, target: Path) -> Path:
    target.write_bytes(files("farmd.metrics").joinpath("files", name).read_bytes())
    return target
