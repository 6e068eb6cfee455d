# SPDX-License-Identifier: Apache-2.0
"""farmd: a farm of servers behind one virtual IP, without a load balancer box."""

__version__ = "0.1.0"
