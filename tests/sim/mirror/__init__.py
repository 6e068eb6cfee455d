# SPDX-License-Identifier: Apache-2.0
"""Two real mirror nodes in one process, with disks that forget, a network that breaks, and a ledger that does not."""
