# SPDX-License-Identifier: Apache-2.0
"""Who serves what: quorum leases over heartbeats, as a pure state machine, its messages and their encryption.

Start reading in `core`. Nothing here opens a socket, reads a clock or draws a random number on its own, except
`wire` and `keys`, which take the operating system's randomness for nonces and keys.
"""
