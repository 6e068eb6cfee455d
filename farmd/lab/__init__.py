# SPDX-License-Identifier: Apache-2.0
"""A whole farm on one machine: network namespaces on a bridge, real farmd, real nginx, faults as verbs.

`plan` and `render` are pure: names, addresses and file texts. `netns` and `lab` do it. `observer` watches the wire,
`probe`, `connections` and `load` put traffic on it, `demo` is `farmctl demo`. The demo, the tests and the benches all
stand on `farmd.lab.lab.Lab`.
"""
