# SPDX-License-Identifier: Apache-2.0
"""`farmctl doctor`: is this server, its interface and its switch fit for the farm? Works with farmd down.

Findings are values from pure functions (`host`, `link`, `farm`, `flood`) over facts; gathering those (`ask_*`) is thin
and changes nothing on the machine.
"""
