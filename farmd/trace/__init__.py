# SPDX-License-Identifier: Apache-2.0
"""`farmctl trace`: live samples of what the filter did and of what became of VIP connections, through bcc.

A process of its own (`python -m farmd.trace`), because it brings a compiler of some 190 MB with it and because its
probes end with it, whatever ends it.

What is seen where:

- generic mode: every frame passes the tracepoint `netif_receive_skb` before the filter, and `kfree_skb` tells which of
  them the filter dropped. Verdicts are therefore observed, not guessed.
- native mode: the filter runs before the kernel makes an skb, and no tracepoint tells what it drops. Accepted frames
  are sampled one by one; drops are only counted, by rule and reason, in the summary. (veth is the exception: there the
  filter has an skb in native mode too.)

Seen working: generic mode on Linux 6.1 and 6.18, native mode of veth on 6.18; not tried on a physical NIC. Kernels
before 6.10 tell of a reset only where there was a socket; what they answer with a reset for want of one shows as the
`stack-drop` of the segment.

The reason is the answer of the attached program's twin (`farm_explain`: same code, same maps) to the sampled frame. If
twin and observation differ, because buckets moved in between, the sample has no reason.
"""
