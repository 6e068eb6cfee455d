# SPDX-License-Identifier: Apache-2.0
"""Labs of any shape, each under a name of its own, gone after the test or module that asked for it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from farmd.lab.farm import Farm
from farmd.lab.lab import Lab
from farmd.lab.plan import LabPlan

MakeFarm = Callable[..., Farm]

_numbers = itertools.count()


def lab_name() -> str:
    """A name that no other lab on this machine has."""
    return f"t{os.getpid() % 10**5}x{next(_numbers) % 10}"


def _maker() -> Iterator[MakeFarm]:
    labs: list[Lab] = []

    def make(**shape: Any) -> Farm:
        lab = Lab(LabPlan(name=lab_name(), **shape))
        labs.append(lab)
        lab.up()
        farm = Farm(lab)
        farm.wait_serving([host.name for host in lab.plan.serving], seconds=60)
        return farm

    yield make
    for lab in labs:
        lab.down()


@pytest.fixture
def make_farm() -> Iterator[MakeFarm]:
    """Builds a farm that serves; gone after the test."""
    yield from _maker()


@pytest.fixture(scope="module")
def module_farm() -> Iterator[MakeFarm]:
    """The same for all tests of a module."""
    yield from _maker()


@pytest.fixture(scope="module")
def calm_farm() -> Iterator[Farm]:
    """Three nodes for tests that break nothing."""
    maker = _maker()
    yield next(maker)()
    next(maker, None)
