# SPDX-License-Identifier: Apache-2.0
"""Filters with one mistake each, and how many generated packets it takes to find it: `python -m tests.native.mutants`.

A campaign that finds no difference says something only if it would have found these.
"""

from __future__ import annotations

import argparse
import sys

from tests.native.build import Kind, Mutant, build
from tests.native.campaign import BATCH, run_batch
from tests.native.judge import SanitizerError

MUTANTS = (
    Mutant("a SYN cookie or handshake is off by one", "sockets.h", "request->snt_isn + 1", "request->snt_isn"),
    Mutant("a reset does not reach TIME_WAIT", "sockets.h", "& (TCP_FIN | TCP_RST) ||", "& TCP_FIN ||"),
    Mutant("a quoted packet's ports stay unswapped", "farm.bpf.c", "p->vip_port = ports[0]", "p->vip_port = ports[1]"),
    Mutant(
        "a listener is taken for a connection",
        "sockets.h",
        "? COOKIE_CLAIM : NO_CLAIM",
        "? COOKIE_CLAIM : SOCKET_CLAIM",
    ),
    Mutant("a fragment header may end anywhere", "parse.h", "next < 0 || c.offset > HEADERS_MASK", "next < 0"),
    Mutant(
        "the quoted packet's fragment flag is used", "farm.bpf.c", "if (fragment == FIRST_", "if (p.fragment == FIRST_"
    ),
    Mutant("IPv6 datagrams are told apart by protocol", "farm.bpf.c", "p.ipv6 ? 0 : p.protocol", "p.protocol"),
    Mutant(
        "a later fragment's ports are looked up",
        "farm.bpf.c",
        "p->segment == ORPHAN ? find_orphan_rule",
        "0 ? find_orphan_rule",
    ),
    Mutant("both protocols have the same rules", "table.h", "(protocol >> 4 & 1)", "(protocol >> 5 & 1)"),
    Mutant(
        "a page's first port is its second",
        "table.h",
        "host_port & (FARM_PAGE_PORTS - 1)",
        "(host_port + !(host_port & 127)) & 127",
    ),
    Mutant("the families are not told apart", "siphash.h", "7ULL << 56 | 6ULL << 48", "6ULL << 56"),
    Mutant("half of an IPv6 address counts", "siphash.h", "hash->factors[2] + (__u32)address[1]", "hash->factors[2]"),
    Mutant("a network of IPv4 has 16 bits", "table.h", "NETWORK_IPV4 = 0xffffff00", "NETWORK_IPV4 = 0xffff0000"),
    Mutant("the long way takes a network of IPv6 for a client", "table.h", "ipv6.words[1] = 0;", ";"),
    Mutant("an error goes by our own packet's id", "farm.bpf.c", "p->fragment_id = 0;", ";"),
    Mutant("the packet id is the port", "farm.bpf.c", "extra = ip->id", "extra = tcp->source"),
    Mutant("solicitations may be routed", "neighbour.h", "ip->hop_limit != ND_HOP_LIMIT || ", ""),
    Mutant("one tag only", "parse.h", "VLAN_TAGS = 2", "VLAN_TAGS = 1"),
    Mutant("one extension header more", "parse.h", "IPV6_CHAIN = 6", "IPV6_CHAIN = 7"),
    Mutant("the lease lasts a tick longer", "lease.h", "bpf_jiffies64() >= ", "bpf_jiffies64() > "),
    Mutant(
        "hops are not counted", "forward.h", "trail = (trail & TRAIL_HOPS) + 1;", "trail = (trail & TRAIL_HOPS) | 1;"
    ),
    Mutant("one hop more", "forward.h", "(trail & TRAIL_HOPS) >= FARM_HOPS", "(trail & TRAIL_HOPS) > FARM_HOPS"),
    Mutant("a search begins anew at every node", "forward.h", " || trail_of(t, eth) & TRAIL_SEARCH", ""),
    Mutant(
        "a new connection is looked for", "forward.h", "!belongs_to_connection(segment) || ", "segment == ORPHAN || "
    ),
    Mutant("a question to all is sent on", "neighbour.h", "eth->to[0] & 1 || !asker_mac", "!asker_mac"),
    Mutant(
        "the answer goes to who sent the question on",
        "neighbour.h",
        "t->directed && trail_of(t, eth) ? arp->target_mac : eth->from",
        "eth->from",
    ),
    Mutant(
        "fresh buckets take what follows",
        "farm.bpf.c",
        "state & FARM_OWN && (protocol == IPPROTO_UDP || is_opening(tcp))",
        "state & FARM_OWN && (protocol != IPPROTO_ICMP || is_opening(tcp))",
    ),
)
FIRST_SEED = 7


def packets_to_find(mutant: Mutant, most: int) -> int | None:
    """How many packets were compared until the mistake showed, in batches; None: `most` did not show it."""
    program = build(Kind.JUDGE, mutant)
    for batch in range(most // BATCH):
        try:
            if run_batch(program, FIRST_SEED, batch).differences:
                return (batch + 1) * BATCH
        except SanitizerError:
            return (batch + 1) * BATCH
    return None


def main() -> int:
    """Print the table; 1 if a mutant was not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=500_000, help="give a mutant up after so many")
    most = parser.parse_args().packets
    missed = 0
    for mutant in MUTANTS:
        found = packets_to_find(mutant, most)
        missed += found is None
        print(f"{'not found' if found is None else f'{found:,}':>10}  {mutant.name}", flush=True)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
