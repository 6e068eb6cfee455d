# SPDX-License-Identifier: Apache-2.0
"""`farmctl demo` as a user runs it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from farmd.lab.demo import EXIT_BROKEN, EXIT_KEPT, EXIT_STOPPED, NAME, remains
from farmd.lab.lab import Lab
from farmd.lab.plan import LabPlan

pytestmark = [pytest.mark.root, pytest.mark.lab]

DEMO = [sys.executable, "-m", "farmd.cli", "demo"]


def test_every_promise_holds() -> None:
    done = subprocess.run([*DEMO, "--json"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode in (EXIT_KEPT, EXIT_BROKEN), done.stdout + done.stderr
    report = json.loads(done.stdout)
    broken = {promise["promise"]: promise["seen"] for promise in report["promises"] if not promise["kept"]}
    assert done.returncode == (EXIT_BROKEN if broken else EXIT_KEPT), done.stdout + done.stderr
    assert report["kept"] is not bool(broken)
    # How fast it is says as much about the machine that the tests run on; that it happens is tested.
    slow = {name for name, seen in broken.items() if " takeover within " in name and re.match(r"\d+ ms", seen)}
    assert set(broken) <= slow, done.stdout
    assert report["figures"]["wire"]["doubles"] == 0
    assert report["figures"]["seconds"] - report["figures"]["setup_seconds"] < 90
    assert remains(Lab(LabPlan(NAME))) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.5, 8.0])
def test_it_leaves_nothing_when_stopped(number: signal.Signals, after_s: float) -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        assert "Set-up" in demo.stdout.readline()
        time.sleep(after_s)
        demo.send_signal(number)
        demo.send_signal(number)  # an impatient user
        rest = demo.stdout.read()
        assert demo.wait(30) == EXIT_STOPPED, rest
    assert remains(Lab(LabPlan(NAME))) == []
