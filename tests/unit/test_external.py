# SPDX-License-Identifier: Apache-2.0
"""Delivery external in farm.toml, in the doctor and in explanations."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from farmd.daemon.explain import explain
from farmd.daemon.fingerprint import fingerprint
from farmd.doctor import outside
from farmd.doctor.facts import HealthFacts, VipFacts
from farmd.doctor.finding import Level
from farmd.membership.keys import KeyRing
from farmd.model import farmfile
from farmd.model.config import Delivery, FarmConfig, Listen
from farmd.model.question import Question
from tests.unit import farms
from tests.unit.test_farmfile_problems import GOOD, problems

EXTERNAL = GOOD.replace('name = "web"\n', 'name = "web"\ndelivery = "external"\n', 1)


def read(text: str) -> FarmConfig:
    return farmfile.parse(text, Path("farm.toml"), host_name="node1")


def test_external_serves_health_urls_and_leaves_vips_to_the_balancer() -> None:
    config = read(EXTERNAL)
    assert config.delivery is Delivery.EXTERNAL
    assert not config.filters
    assert config.health == Listen(IPv4Address(0), 4806)
    assert config.vips == (ip_address("10.77.0.100"),)
    assert config.host_vips == ()


def test_a_vip_that_packets_keep_is_put_on_the_host() -> None:
    config = read(EXTERNAL.replace('"10.77.0.100"\n', '"10.77.0.100"\non_host = true\n', 1))
    assert config.host_vips == config.vips


def test_other_deliveries_have_filter_and_vips_and_health_urls_on_request() -> None:
    config = read(GOOD)
    assert config.filters
    assert config.host_vips == config.vips
    assert config.health is None
    assert read(GOOD + "[health]\n").health == Listen(IPv4Address(0), 4806)
    assert read(GOOD + '[health]\nlisten = "[::1]:8001"\n').health == Listen(ip_address("::1"), 8001)


def test_a_vip_may_be_a_nodes_own_address_only_where_nothing_filters() -> None:
    own = EXTERNAL.replace("10.77.0.100", "10.77.0.11")
    assert read(own).vips == (ip_address("10.77.0.11"),)
    assert "is an address of member" in problems(own.replace('delivery = "external"\n', ""))[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            GOOD.replace('"10.77.0.100"\n', '"10.77.0.100"\non_host = false\n', 1),
            '14:1: "on_host" is for delivery "external"; with "flood" a VIP is on every node.',
        ),
        (EXTERNAL + '[health]\nlisten = "0.0.0.0:80"\n', '29:10: port 80 is that of rule "web".'),
        (
            EXTERNAL + '[metrics]\nlisten = "127.0.0.1:4806"\n[health]\n',
            "30:2: port 4806 is that of [metrics] already.",
        ),
        (
            EXTERNAL + '[health]\nlisten = "here"\n',
            '29:10: "listen" in [health] is "here", not an IP address and a port.',
        ),
        (EXTERNAL + '[health]\nlistn = "0.0.0.0:1"\n', '29:1: unknown key "listn" in [health]. Did you mean "listen"?'),
        (
            EXTERNAL.replace('"external"', '"externl"'),
            '3:12: "delivery" in [farm] is "externl". Did you mean "external"?',
        ),
    ],
)
def test_mistakes_have_their_place(text: str, problem: str) -> None:
    assert any(problem in found for found in problems(text)), problems(text)


def test_an_engine_with_a_filter_does_not_go_on_without_one() -> None:
    ring = KeyRing.new()
    flood = farms.config()
    assert fingerprint(flood, ring) != fingerprint(replace(flood, delivery=Delivery.EXTERNAL), ring)


def test_an_explanation_says_who_decides() -> None:
    config = replace(farms.config(), delivery=Delivery.EXTERNAL)
    question = Question(ip_address("203.0.113.7"))
    told = explain(config, bytes(16), farms.report(farms.view()), question, None, 0)
    assert (told["owner"], told["proof"]) == (None, None)
    assert told["why"].startswith("no filter: a load balancer outside decides")


@pytest.mark.parametrize(
    ("facts", "running", "level", "words"),
    [
        (HealthFacts("u", 200, "node1 takes new clients", 0), True, Level.OK, "says 200"),
        (HealthFacts("u", 503, "node1 is drained", 0), True, Level.WARN, "says 503: node1 is drained"),
        (HealthFacts("u", None, "", errno.ECONNREFUSED), False, Level.OK, "comes with farmd"),
        (HealthFacts("u", None, "", errno.ECONNREFUSED), True, Level.FAIL, "does not answer"),
        (HealthFacts("u", None, "", errno.ETIMEDOUT), False, Level.FAIL, "does not answer"),
    ],
)
def test_the_doctor_asks_the_health_url(facts: HealthFacts, running: bool, level: Level, words: str) -> None:
    found = outside.health(facts, running)
    assert found.level is level
    assert words in found.text


def test_the_doctor_knows_where_a_vip_belongs() -> None:
    vip = ip_address("10.77.0.100")
    here, absent = VipFacts(vip, ("lo",), ()), VipFacts(vip, (), ())
    assert outside.vip(here, on_host=True, running=True).level is Level.OK
    assert outside.vip(absent, on_host=False, running=True).level is Level.OK
    assert outside.vip(absent, on_host=True, running=True).level is Level.FAIL
    assert outside.vip(absent, on_host=True, running=False).level is Level.OK
