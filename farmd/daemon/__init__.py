# SPDX-License-Identifier: Apache-2.0
"""The only room that wires the others together: the engine process, the daemon process and the local API."""
