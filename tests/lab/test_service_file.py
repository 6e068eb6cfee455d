# SPDX-License-Identifier: Apache-2.0
"""What examples/farmd.service grants is enough for farmd, and without what BPF takes it says what is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from farmd.lab import netns
from farmd.lab.farm import Farm
from farmd.lab.netns import Part
from tests.lab.conftest import MakeFarm

pytestmark = [pytest.mark.root, pytest.mark.lab]

UNIT = Path(__file__).parents[2] / "examples" / "farmd.service"
NODE = "node3"


def granted() -> list[str]:
    line = next(line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet="))
    return [name.removeprefix("CAP_").lower() for name in line.partition("=")[2].split()]


def start(farm: Farm, capabilities: Sequence[str]) -> Path:
    """Start farmd on NODE as systemd would: root, these capabilities, nothing to be gained by exec. Its log."""
    plan = farm.lab.plan
    home = plan.home(plan.host(NODE))
    bounds = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    log = home / f"with-{len(capabilities)}.log"
    command = [sys.executable, "-m", "farmd.daemon", "--config", str(home / "farm.toml")]
    rights = ["setpriv", "--bounding-set", bounds, "--inh-caps=-all", "--no-new-privs"]
    netns.start_detached(plan.host(NODE).namespace, [*rights, *command], log=log)
    return log


def remove(farm: Farm) -> None:
    """No farmd, no filter, no VIP on NODE, so that the next start has everything to do."""
    plan = farm.lab.plan
    if runs(farm):
        farm.lab.kill(NODE)
    home = plan.home(plan.host(NODE))
    purge = [sys.executable, "-m", "farmd.daemon", "--config", str(home / "farm.toml"), "--purge"]
    subprocess.run(farm.lab.command(NODE, purge), check=True)


def test_the_service_file_grants_what_farmd_needs_and_no_less_will_do(make_farm: MakeFarm) -> None:
    farm = make_farm()
    remove(farm)
    log = start(farm, granted())
    farm.wait_serving(["node1", "node2", NODE], seconds=60)
    assert "engine.slow" not in log.read_text()
    assert "refused" not in log.read_text()

    for missing in ("net_admin", "bpf", "perfmon"):
        remove(farm)
        log = start(farm, [name for name in granted() if name != missing])
        farm.wait(f"farmd without {missing} gives up", lambda: not runs(farm))
        text = log.read_text()
        assert "Run it as root, or give it CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN" in text, (missing, text)
        log.unlink()


def runs(farm: Farm) -> bool:
    namespace = farm.lab.plan.host(NODE).namespace
    return any(process.part is Part.DAEMON for process in netns.processes(namespace))
