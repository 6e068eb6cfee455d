# SPDX-License-Identifier: Apache-2.0
"""Mirrors: who may be primary, which zones may differ, and how a copy is brought up to date, as pure state machines.

Start reading in `core`. Nothing there opens a file or a socket, reads a clock or draws a random number: the shell
(`farmd.mirrord`) hands all that in, so that two nodes, their disks and their network run in one process under a virtual
clock. Three modules are the thin sides of the engines in C instead: `datapath`, `engine` and `checksum`.
"""
