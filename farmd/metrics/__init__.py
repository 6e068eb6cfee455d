# SPDX-License-Identifier: Apache-2.0
"""Prometheus: what a node's API says, as metrics; and the dashboard, rules and alerts that read them.

`catalogue` names every metric, `families` maps answers to them without any side effect, `source` fetches the answers,
`exporter` does both on every scrape, and `server` answers HTTP. README.md is the reference for people.
"""
