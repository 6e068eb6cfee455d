# SPDX-License-Identifier: Apache-2.0
"""A whole farm in one process under a virtual clock: the real core, a bad network, an observer that sees everything."""
