// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The eyes of `farmctl trace`: samples of verdicts, told from where they are made, so that drops show in a driver too.
// Whether anybody looks is one load of a variable; the rest is out of the way.
#ifndef FARM_TRACE_H
#define FARM_TRACE_H

#include "maps.h"
#include "parse.h"

enum trace_limit {
	WINDOW_NS = 100000000,
};

static __always_inline int same_client(struct farm_address client)
{
	return (client.words[0] & farm_watch.client_mask.words[0]) == farm_watch.client.words[0] &&
	       (client.words[1] & farm_watch.client_mask.words[1]) == farm_watch.client.words[1];
}

static __always_inline int is_wanted(struct farm_address client, struct farm_address vip)
{
	const struct farm_address any = {};

	return same_client(client) && (same_address(farm_watch.vip, any) || same_address(farm_watch.vip, vip));
}

// An answer's ends are swapped.
static __always_inline int is_wanted_either_way(struct farm_address from, struct farm_address to, int answer)
{
	return answer ? is_wanted(to, from) : is_wanted(from, to);
}

static __always_inline struct farm_address ipv4_at(const __u8 *at)
{
	__be32 address;

	__builtin_memcpy(&address, at, sizeof(address));
	return address_of_ipv4(address);
}

static __always_inline struct farm_address ipv6_at(const __u8 *at)
{
	struct farm_address address;

	__builtin_memcpy(&address, at, sizeof(address));
	return address;
}

// What is behind the tags of a head that was copied; what is missing of it is zero, and zero is nobody's address.
static __always_inline int packet_is_wanted(const __u8 *at, __u16 type, int answer)
{
	if (type == ETH_P_ARP)
		return is_wanted_either_way(ipv4_at(at + 14), ipv4_at(at + 24), answer);
	if (type == ETH_P_IP)
		return is_wanted_either_way(ipv4_at(at + 12), ipv4_at(at + 16), answer);
	if (type != ETH_P_IPV6)
		return 0;
	if (is_wanted_either_way(ipv6_at(at + 8), ipv6_at(at + 24), answer))
		return 1;
	// A solicitation goes to a group; the VIP is in its body, in an answer's too.
	return at[6] == IPPROTO_ICMPV6 && is_wanted(answer ? ipv6_at(at + 24) : ipv6_at(at + 8), ipv6_at(at + 48));
}

static __always_inline __u16 type_at(const __u8 *at)
{
	return at[0] << 8 | at[1];
}

static __always_inline int is_tag(__u16 type)
{
	return type == ETH_P_8021Q || type == ETH_P_8021AD;
}

static __always_inline int frame_is_wanted(const __u8 *head, int answer)
{
	if (!is_tag(type_at(head + 12)))
		return packet_is_wanted(head + 14, type_at(head + 12), answer);
	if (!is_tag(type_at(head + 16)))
		return packet_is_wanted(head + 18, type_at(head + 16), answer);
	return packet_is_wanted(head + 22, type_at(head + 20), answer);
}

// Not exact if CPUs meet here: a bound, not a count.
static __always_inline int is_allowed(__u64 now_ns)
{
	if (farm_watch.window != now_ns / WINDOW_NS) {
		farm_watch.window = now_ns / WINDOW_NS;
		farm_watch.used = 0;
	}
	if (farm_watch.used < farm_watch.frames_a_window)
		return 1;
	__sync_fetch_and_add(&farm_watch.suppressed, 1);
	return 0;
}

static __always_inline int fill_sample(struct xdp_md *ctx, struct farm_sample *sample)
{
	__u64 size = ctx->data_end - ctx->data;

	sample->length = size;
	if (size > FARM_SAMPLE_HEAD)
		size = FARM_SAMPLE_HEAD;
	asm volatile("" : "+r"(size)); // the compiler knows it by now, the verifier does not
	if (size < sizeof(struct ethernet) || size > FARM_SAMPLE_HEAD)
		return 0;
	sample->captured = size;
	sample->ifindex = ctx->ingress_ifindex;
	__builtin_memset(sample->head, 0, sizeof(sample->head));
	return !bpf_xdp_load_bytes(ctx, 0, sample->head, size);
}

// Tells user space of one frame as it leaves the filter, if it is wanted. A function of its own, so that nothing of it
// is in the way of a frame that nobody looks at.
__noinline int farm_tell(struct xdp_md *ctx, __u32 reason, __u32 rule, __u32 verdict)
{
	__u64 now_ns = bpf_ktime_get_ns();
	struct farm_sample *sample;

	if (now_ns > farm_watch.until_ns) {
		farm_watch.open = 0; // whoever looked died without saying so
		return 0;
	}
	if (!(farm_watch.verdicts & 1U << (verdict & 31)) || !is_allowed(now_ns))
		return 0;
	sample = bpf_ringbuf_reserve(&farm_samples, sizeof(*sample), 0);
	if (!sample)
		return 0;
	sample->at_ns = now_ns;
	sample->reason = reason;
	sample->rule = rule;
	sample->verdict = verdict;
	if (!fill_sample(ctx, sample) ||
	    !frame_is_wanted(sample->head, reason == FARM_ARP_ANSWERED || reason == FARM_ND_ANSWERED)) {
		bpf_ringbuf_discard(sample, 0);
		return 0;
	}
	farm_watch.used++;
	bpf_ringbuf_submit(sample, 0);
	return 0;
}

#endif
