# SPDX-License-Identifier: Apache-2.0
"""Files replicated between two nodes: comparing them, making them equal, keeping them so."""
