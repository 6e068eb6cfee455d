// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Look-ups in the table, the planes and the counters.
#ifndef FARM_TABLE_H
#define FARM_TABLE_H

#include "maps.h"
#include "parse.h"
#include "siphash.h"

enum table_constant {
	NETWORK_IPV4 = 0xffffff00, // /24; of IPv6 it is the first word, /64
};

// The generation in use.
static __always_inline const struct farm_table *active_table(void)
{
	const struct farm_table *t = &farm_generations[0];

	if (*(volatile __u32 *)&farm_in_use.generation)
		t = &farm_generations[1];
	asm volatile("" : "+r"(t)); // one decision, not one at every use
	return t;
}

// The number of the VIP with this address, 0 if it is none. Mirrored by ipv4_home() in farmd/dataplane/tables.py.
static __always_inline __u32 find_ipv4_vip(const struct farm_table *t, __be32 address)
{
	const struct farm_ipv4_slot *slot = &t->ipv4_vips[address * t->ipv4_seed >> FARM_VIP_SHIFT];

#pragma unroll
	for (int i = 0; i < FARM_PROBES; i++) {
		if (likely(slot[i].address == address))
			return slot[i].vip;
		if (!slot[i].vip)
			return 0;
	}
	return 0;
}

// The same for IPv6. Mirrored by ipv6_home().
static __always_inline __u32 find_ipv6_vip(const struct farm_table *t, struct farm_address address)
{
	__u64 mixed =
	    address.words[0] * 0x9e3779b97f4a7c15ULL ^ address.words[1]; // 2^64 / golden ratio: spreads the prefix
	const struct farm_ipv6_slot *slot = &t->ipv6_vips[mixed * t->ipv6_seed >> FARM_VIP_SHIFT];

#pragma unroll
	for (int i = 0; i < FARM_PROBES; i++) {
		// not same_address(): clang would copy the struct byte by byte
		if (likely(slot[i].address.words[0] == address.words[0] &&
			   slot[i].address.words[1] == address.words[1]))
			return slot[i].vip;
		if (!slot[i].vip)
			return 0;
	}
	return 0;
}

enum service_constant {
	SERVICES_MASK = FARM_SERVICES - 1,
};

// The service of a VIP and a protocol, which is TCP or UDP: they differ in bit 4. Mirrored by service_of() in
// farmd/dataplane/tables.py.
static __always_inline __u64 service_of(__u32 vip, __u32 protocol)
{
	__u64 service = (vip - 1) << 1 | (protocol >> 4 & 1);

	asm volatile("%0 &= %1" : "+r"(service) : "i"(SERVICES_MASK)); // in assembly, as in cursor_at()
	return service;
}

// The rule for a port, as it lies in the packet; if none names it, one with number 0. Two loads and one for the rule,
// whatever the rules look like.
static __always_inline const struct farm_rule *find_rule(const struct farm_table *t, __u32 vip, __u32 protocol,
							 __be16 port)
{
	__u32 host_port = bpf_ntohs(port);
	__u32 page = t->services[service_of(vip, protocol)].pages[host_port >> FARM_PAGE_SHIFT];
	__u32 number = t->pages[page & (FARM_PAGE_ROOM - 1)].rules[host_port & (FARM_PAGE_PORTS - 1)];

	return &t->rules[number & (FARM_RULE_ROOM - 1)];
}

// ... and for later fragments, which have no ports: there is one if all rules of the VIP and protocol steer alike.
static __always_inline const struct farm_rule *find_orphan_rule(const struct farm_table *t, __u32 vip, __u32 protocol)
{
	return &t->rules[t->orphans[service_of(vip, protocol)] & (FARM_RULE_ROOM - 1)];
}

// Which interface the frame came in on, by its place in the table; FARM_INTERFACES: none that we know.
static __always_inline __u32 interface_place(const struct farm_table *t, const struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex;

#pragma unroll
	for (int i = 0; i < FARM_INTERFACES; i++) {
		if (likely(t->interfaces[i].ifindex == ifindex))
			return i;
	}
	return FARM_INTERFACES;
}

// The hardware address of the interface that the frame came in on.
static __always_inline const __u8 *interface_mac(const struct farm_table *t, const struct xdp_md *ctx)
{
	__u32 place = interface_place(t, ctx);

	return place < FARM_INTERFACES ? t->interfaces[place].mac : NULL;
}

// Every MAC lies on an even address: three loads instead of six.
static __always_inline void copy_mac(void *to, const void *from)
{
	__u16 *target = to;
	const __u16 *source = from;

	target[0] = source[0];
	target[1] = source[1];
	target[2] = source[2];
}

// The bucket of a packet by an affinity.
static __always_inline __u32 bucket_of(const struct farm_table *t, const struct packet *p, __u8 affinity)
{
	__be32 ipv4 = ipv4_of_address(p->client);
	struct farm_address ipv6 = p->client;
	__be16 extra = 0;

	if (affinity == FARM_CLIENT_IP_PORT) {
		extra = p->client_port;
	} else if (affinity == FARM_CLIENT_NETWORK) {
		ipv4 &= bpf_htonl(NETWORK_IPV4);
		ipv6.words[1] = 0;
	} else if (affinity == FARM_PACKET_ID) {
		extra = p->fragment_id;
	}
	return p->ipv6 ? farm_bucket_ipv6(&t->hash, ipv6.words, extra) : farm_bucket_ipv4(&t->hash, ipv4, extra);
}

// Bits of enum farm_state.
static __always_inline __u8 bucket_state(__u32 group, __u32 bucket)
{
	const struct farm_planes *planes = &farm_groups[group & (FARM_GROUPS - 1)];

	return *(volatile const __u8 *)&planes->state[bucket & (FARM_BUCKETS - 1)];
}

static __always_inline void count(enum farm_reason reason, __u32 rule)
{
	struct farm_counts *counts = bpf_map_lookup_elem(&farm_counters, &rule);

	if (likely(counts))
		counts->packets[reason & (FARM_REASONS - 1)]++;
}

#endif
