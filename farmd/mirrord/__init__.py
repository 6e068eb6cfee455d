# SPDX-License-Identifier: Apache-2.0
"""The process of one mirror's node: it carries out what `farmd.mirror.core` commands and tells it what happened.

Start reading in `shell`. Rules stand in the core and bytes move in C; what is here connects them: files, sockets,
processes, and the order in which things are done.
"""
