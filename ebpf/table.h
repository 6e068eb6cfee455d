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
	__u32 zero = 0;
	struct farm_active *active = bpf_map_lookup_elem(&farm_active, &zero);

	return active ? bpf_map_lookup_elem(&farm_tables, &active->generation) : NULL;
}

// The number of the VIP with this address, 0 if it is none. Mirrored by vip_home() in farmd/dataplane/tables.py.
static __always_inline __u32 find_vip(const struct farm_table *t, struct farm_address address)
{
	__u64 mixed =
	    address.words[0] * 0x9e3779b97f4a7c15ULL ^ address.words[1]; // 2^64 / golden ratio: spreads the prefix
	__u32 home = mixed * t->vip_seed >> FARM_VIP_SHIFT;

#pragma unroll
	for (int i = 0; i < FARM_PROBES; i++) {
		const struct farm_vip_slot *slot = &t->vips[home + i];

		if (!slot->vip)
			return 0;
		if (slot->address.words[0] == address.words[0] && slot->address.words[1] == address.words[1])
			return slot->vip;
	}
	return 0;
}

// One number for what a rule names. `port` in host order; port 0 stands for later fragments, if all rules of the VIP
// and protocol steer them alike. Mirrored by rule_key() in farmd/dataplane/tables.py.
static __always_inline __u32 farm_rule_key(__u32 vip, __u8 protocol, __u16 port)
{
	return vip << 17 | (protocol == IPPROTO_UDP) << 16 | port;
}

static __always_inline const struct farm_rule_slot *find_rule(const struct farm_table *t, __u32 key)
{
	__u32 home = key * t->rule_seed >> FARM_RULE_SHIFT;

#pragma unroll
	for (int i = 0; i < FARM_PROBES; i++) {
		const struct farm_rule_slot *slot = &t->rules[home + i];

		if (!slot->rule)
			return NULL;
		if (slot->key == key)
			return slot;
	}
	return NULL;
}

// The hardware address of the interface that the frame came in on.
static __always_inline const __u8 *interface_mac(const struct farm_table *t, const struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex;

#pragma unroll
	for (int i = 0; i < FARM_INTERFACES; i++) {
		if (t->interfaces[i].ifindex == ifindex)
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
static __always_inline __u32 bucket_of(const struct farm_table *t, const struct packet *p, __u16 port)
{
	if (p->ipv6)
		return farm_bucket_ipv6(t->hash_key, p->client.words, port);
	return farm_bucket_ipv4(t->hash_key, ipv4_of_address(p->client), port);
}

// Bits of enum farm_state.
static __always_inline __u8 bucket_state(__u32 group, __u32 bucket)
{
	struct farm_planes *planes = bpf_map_lookup_elem(&farm_planes, &group);

	return planes ? planes->state[bucket & (FARM_BUCKETS - 1)] : 0;
}

static __always_inline void count(struct farm_outcome outcome)
{
	__u32 rule = outcome.rule;
	struct farm_counts *counts = bpf_map_lookup_elem(&farm_counters, &rule);

	if (counts)
		counts->packets[outcome.reason & (FARM_REASONS - 1)]++;
}

#endif
