// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Look-ups in the table, the planes and the counters.
#ifndef FARM_TABLE_H
#define FARM_TABLE_H

#include "maps.h"
#include "parse.h"
#include "siphash.h"

// The generation in use.
static __always_inline const struct farm_table *active_table(void)
{
	return &farm_generations[*(volatile __u32 *)&farm_in_use.generation & (FARM_GENERATIONS - 1)];
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
		if (likely(same_address(slot[i].address, address)))
			return slot[i].vip;
		if (!slot[i].vip)
			return 0;
	}
	return 0;
}

// One number for what a rule names. `protocol` is TCP or UDP, which differ in bit 4; `port` is as it lies in the
// packet. Mirrored by rule_key() in farmd/dataplane/tables.py.
static __always_inline __u32 farm_rule_key(__u32 vip, __u32 protocol, __be16 port)
{
	return vip << 17 | (protocol & 16) << 12 | port;
}

// ... and for later fragments, which have no ports: there is a rule if all rules of the VIP and protocol steer alike.
static __always_inline __u32 farm_orphan_key(__u32 vip, __u32 protocol)
{
	return 1U << 31 | farm_rule_key(vip, protocol, 0);
}

static __always_inline const struct farm_rule_slot *find_rule(const struct farm_table *t, __u32 key)
{
	const struct farm_rule_slot *slot = &t->rules[key * t->rule_seed >> FARM_RULE_SHIFT];

#pragma unroll
	for (int i = 0; i < FARM_PROBES; i++) {
		if (likely(slot[i].key == key))
			return &slot[i];
		if (!slot[i].rule)
			return NULL;
	}
	return NULL;
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
	__u32 ifindex = ctx->ingress_ifindex;

#pragma unroll
	for (int i = 0; i < FARM_INTERFACES; i++) {
		if (likely(t->interfaces[i].ifindex == ifindex))
			return t->interfaces[i].mac;
	}
	return NULL;
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

// The bucket of a client; `port` 0 for the affinity client-ip.
static __always_inline __u32 bucket_of(const struct farm_table *t, const struct packet *p, __be16 port)
{
	if (p->ipv6)
		return farm_bucket_ipv6(&t->hash, p->client.words, port);
	return farm_bucket_ipv4(&t->hash, ipv4_of_address(p->client), port);
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
