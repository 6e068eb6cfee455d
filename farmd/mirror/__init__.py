# SPDX-License-Identifier: Apache-2.0
"""Mirrors: who may be primary, which zones may differ, and how a copy is brought up to date, as pure state machines.

Start reading in `core`. Nothing here opens a file or a socket, reads a clock or draws a random number: the shell
hands all that in, so that two nodes, their disks and their network run in one process under a virtual clock.
"""
