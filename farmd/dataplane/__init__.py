# SPDX-License-Identifier: Apache-2.0
"""Loads, attaches, fills and reads the kernel filter (`ebpf/`). Needs what `python cext/build.py` compiles."""
