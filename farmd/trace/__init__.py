# SPDX-License-Identifier: Apache-2.0
"""`farmctl trace`: live samples of what the filter did and of what became of VIP connections, through bcc.

A process of its own (`python -m farmd.trace`), because it brings a compiler of some 190 MB with it and because its
probes end with it, whatever ends it.

Verdicts are told by the filter itself, from where they are made (`ebpf/trace.h`, `farmd/dataplane/tap.py`): in generic
mode and in a driver alike, with the exact reason and rule. Nobody looking costs it one load of a variable, and what it
was asked to tell ends by itself. What became of connections comes from tracepoints, through bcc.

Seen working: generic mode and veth's native mode; not tried on a physical NIC. Kernels before 6.10 tell of a reset only
where there was a socket; what they answer with a reset for want of one shows as the `stack-drop` of the segment.
"""
