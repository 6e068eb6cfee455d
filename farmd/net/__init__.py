# SPDX-License-Identifier: Apache-2.0
"""This node's side of the network: interfaces, addresses, kernel settings, sockets, the gateway. Through netlink."""
