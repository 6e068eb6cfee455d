// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// ARP and Neighbour Discovery for VIPs. Every node hears the question; the one that owns the asker's bucket (client-ip,
// group 0) turns the frame round. The answer names the farm's virtual MAC, but is sent from the interface's own
// address: a switch must never learn where the virtual MAC is, or it would stop flooding. (farm.bpf.c fills that
// address in.)
//
// In directed delivery the answer names the interface's own address. A question that was put to one node alone, as
// neighbours do to see whether what they know still holds, is sent on to the owner. Such a frame no longer comes from
// the asker, so the answer goes to the address that the question itself names.
#ifndef FARM_NEIGHBOUR_H
#define FARM_NEIGHBOUR_H

#include "forward.h"
#include "lease.h"
#include "table.h"

enum neighbour_constant {
	ARP_ETHERNET = 1,
	ARP_REQUEST = 1,
	ARP_REPLY = 2,
	ND_SOLICITED = 0x40,
	ND_OVERRIDE = 0x20,
	ND_SOURCE_LINK_ADDRESS = 1,
	ND_TARGET_LINK_ADDRESS = 2,
	ND_HOP_LIMIT = 255, // proves that the frame was not routed
};

// ARP for IPv4 over Ethernet.
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_bytes;
	__u8 protocol_bytes;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target[4];
} __attribute__((packed));

// A Neighbour Solicitation without its options.
struct nd_solicitation {
	struct icmp_header icmp;
	struct in6_addr target;
};

// The option that may follow: where the asker is.
struct nd_source {
	__u8 option;
	__u8 option_words; // its length in 8 bytes
	__u8 mac[ETH_ALEN];
};

// A Neighbour Advertisement with the one option that we send.
struct nd_advertisement {
	struct icmp_header icmp;
	struct in6_addr target;
	__u8 option;
	__u8 option_words; // its length in 8 bytes
	__u8 mac[ETH_ALEN];
};

// What an ICMPv6 checksum covers.
struct nd_checked {
	struct in6_addr source;
	struct in6_addr destination;
	__be32 bytes;
	__be32 next;
	struct nd_advertisement message;
};

static __always_inline __be32 load_ipv4(const __u8 *bytes)
{
	__be32 address;

	__builtin_memcpy(&address, bytes, sizeof(address));
	return address;
}

// FARM_UNDECIDED if we own the bucket of the one who asks; else what becomes of the question: `otherwise`, or it is
// sent on. `asker_mac`: where the question itself says that the asker is; NULL if it does not, then it stays here.
static __always_inline enum farm_reason refuse_asker(struct xdp_md *ctx, const struct farm_table *t,
						     const struct packet *asker, const __u8 *asker_mac,
						     enum farm_reason otherwise)
{
	const struct ethernet *eth = (void *)(long)ctx->data;
	__u32 bucket = bucket_of(t, asker, FARM_CLIENT_IP);
	__u8 state = bucket_state(0, bucket);

	if (lease_over())
		otherwise = FARM_DROP_LEASE_OVER;
	else if (state & FARM_OWN)
		return FARM_UNDECIDED;
	if (!(state & FARM_SEND_ON) || (void *)(eth + 1) > (void *)(long)ctx->data_end || eth->to[0] & 1 || !asker_mac)
		return otherwise;
	return forward(ctx, t, find_taker(ctx, t, 0, bucket, state, DATAGRAM, outcome(otherwise, 0))).reason;
}

// What our answer says where the VIP is; NULL on an interface that we do not know.
static __always_inline const __u8 *announced_mac(const struct farm_table *t, const struct xdp_md *ctx)
{
	__u32 place = interface_place(t, ctx);

	return place < FARM_INTERFACES ? t->interfaces[place & (FARM_INTERFACES - 1)].announced : NULL;
}

// An ARP frame; its ARP header begins at `offset`. An enum farm_reason.
__noinline int farm_judge_arp(struct xdp_md *ctx, __u32 offset)
{
	const struct farm_table *t = active_table();
	struct cursor c = cursor_at(ctx, offset);
	struct ethernet *eth = (void *)(long)ctx->data;
	struct arp *arp = take(&c, sizeof(*arp));
	struct packet asker = {};
	enum farm_reason refused;
	const __u8 *mac;
	__be32 sender, target;

	if (!arp || (void *)(eth + 1) > c.end)
		return FARM_NOT_VIP;
	if (arp->hardware != bpf_htons(ARP_ETHERNET) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_bytes != ETH_ALEN || arp->protocol_bytes != sizeof(sender))
		return FARM_NOT_VIP;
	sender = load_ipv4(arp->sender);
	target = load_ipv4(arp->target);
	if (!find_ipv4_vip(t, target))
		return FARM_NOT_VIP;
	if (lease_over() && !t->directed)
		return FARM_DROP_LEASE_OVER;
	if (sender == target)
		return t->directed && is_node_mac(t, ctx, arp->sender_mac) ? FARM_ARP_ANNOUNCED : FARM_ARP_CLAIM;
	if (arp->operation != bpf_htons(ARP_REQUEST) || eth->from[0] & 1 || (t->directed && arp->sender_mac[0] & 1))
		return FARM_DROP_MALFORMED;
	// A probe (RFC 5227) has sender 0.0.0.0. It hashes like any other, so one node defends the VIP.
	asker.client = address_of_ipv4(sender);
	refused = refuse_asker(ctx, t, &asker, arp->sender_mac, FARM_ARP_NOT_OWNER);
	if (refused != FARM_UNDECIDED)
		return refused;
	mac = announced_mac(t, ctx);
	if (!mac)
		return FARM_DROP_NO_INTERFACE;
	arp->operation = bpf_htons(ARP_REPLY);
	copy_mac(arp->target_mac, arp->sender_mac);
	__builtin_memcpy(arp->target, &sender, sizeof(sender));
	copy_mac(arp->sender_mac, mac);
	__builtin_memcpy(arp->sender, &target, sizeof(target));
	copy_mac(eth->to, t->directed && trail_of(t, eth) ? arp->target_mac : eth->from);
	return FARM_ARP_ANSWERED;
}

// Is this the multicast address to which neighbours of some IPv6 address are asked for it, ff02::1:ffXX:XXXX?
static __always_inline int is_solicited_node(struct farm_address address)
{
	return address.words[0] == bpf_cpu_to_be64(0xff02000000000000ULL) &&
	       (address.words[1] & bpf_cpu_to_be64(0xffffffffff000000ULL)) == bpf_cpu_to_be64(0x00000001ff000000ULL);
}

static __always_inline __u16 checksum(struct nd_checked *checked)
{
	__u32 sum = bpf_csum_diff(NULL, 0, (__be32 *)checked, sizeof(*checked), 0);

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// Our answer to `asker`, with everything that its checksum covers.
static __always_inline void write_nd(struct nd_checked *checked, const __u8 *mac, struct in6_addr asker,
				     struct in6_addr target, int duplicate_check)
{
	struct nd_advertisement *message = &checked->message;

	checked->source = target;
	checked->destination = asker;
	checked->bytes = bpf_htonl(sizeof(*message));
	checked->next = bpf_htonl(IPPROTO_ICMPV6);
	message->icmp.type = ICMP6_ADVERTISEMENT;
	message->icmp.rest[0] = ND_OVERRIDE | ND_SOLICITED;
	message->target = target;
	message->option = ND_TARGET_LINK_ADDRESS;
	message->option_words = 1;
	copy_mac(message->mac, mac);
	if (duplicate_check) { // the asker has no address yet: tell all nodes, ff02::1 (RFC 4861, 7.2.4)
		checked->destination.s6_addr32[0] = bpf_htonl(0xff020000);
		checked->destination.s6_addr32[3] = bpf_htonl(1);
		message->icmp.rest[0] = ND_OVERRIDE;
	}
	message->icmp.checksum = checksum(checked);
}

// Turns a solicitation into our advertisement. The tags stay; the frame gets exactly the length that it needs.
static __always_inline enum farm_reason answer_nd(struct xdp_md *ctx, const __u8 *mac, const struct ipv6hdr *question,
						  const void *end, struct in6_addr target, __u64 asker_mac)
{
	const __u16 all_nodes_mac[] = {bpf_htons(0x3333), 0, bpf_htons(1)};
	const __u32 *asker = question->saddr.s6_addr32;
	const int duplicate_check = !(asker[0] | asker[1] | asker[2] | asker[3]);
	__s64 growth = sizeof(*question) + sizeof(struct nd_advertisement) - (end - (const void *)question);
	struct nd_checked checked = {};
	struct ethernet *eth;
	struct ipv6hdr *ip;
	__be16 type;

	write_nd(&checked, mac, question->saddr, target, duplicate_check);
	if (growth && bpf_xdp_adjust_tail(ctx, growth))
		return FARM_DROP_NO_ROOM;

	// The call has made all pointers stale.
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	ip = after_ethernet(eth, end, &type);
	if (!ip || (void *)(ip + 1) + sizeof(checked.message) > end)
		return FARM_DROP_NO_ROOM;
	copy_mac(eth->to, duplicate_check ? (const void *)all_nodes_mac : &asker_mac);
	ip->payload_len = bpf_htons(sizeof(checked.message));
	ip->saddr = checked.source;
	ip->daddr = checked.destination;
	__builtin_memcpy(ip + 1, &checked.message, sizeof(checked.message));
	return FARM_ND_ANSWERED;
}

// An ICMPv6 message to a VIP or to a solicited-node address; its IPv6 header begins at `offset`, and no extension
// follows. An enum farm_reason, FARM_UNDECIDED if it does not ask for a VIP. Its checksum is not verified: an answer to
// a damaged question harms nobody.
__noinline int farm_judge_nd(struct xdp_md *ctx, __u32 offset)
{
	const struct farm_table *t = active_table();
	struct cursor c = cursor_at(ctx, offset);
	struct ipv6hdr *ip = take(&c, sizeof(*ip));
	struct nd_solicitation *question = take(&c, sizeof(*question));
	struct nd_source *source = take(&c, sizeof(*source));
	struct ethernet *eth = (void *)(long)ctx->data;
	struct packet asker = {};
	enum farm_reason refused;
	const __u8 *mac;
	__u64 asker_mac = 0;

	if (!ip || ip->version != 6 || !question || question->icmp.type != ICMP6_SOLICITATION ||
	    !find_ipv6_vip(t, address_of_ipv6(&question->target)))
		return FARM_UNDECIDED;
	if (lease_over() && !t->directed)
		return FARM_DROP_LEASE_OVER;
	if (ip->hop_limit != ND_HOP_LIMIT || question->icmp.code || (void *)(eth + 1) > c.end || eth->from[0] & 1)
		return FARM_DROP_MALFORMED;
	if (source && (source->option != ND_SOURCE_LINK_ADDRESS || source->option_words != 1 || source->mac[0] & 1))
		source = NULL;
	asker.ipv6 = 1;
	asker.client = address_of_ipv6(&ip->saddr); // all zeros in a check for duplicates: one node defends the VIP
	refused = refuse_asker(ctx, t, &asker, source ? source->mac : NULL, FARM_ND_NOT_OWNER);
	if (refused != FARM_UNDECIDED)
		return refused;
	mac = announced_mac(t, ctx);
	if (!mac)
		return FARM_DROP_NO_INTERFACE;
	copy_mac(&asker_mac, t->directed && source && trail_of(t, eth) ? source->mac : eth->from);
	return answer_nd(ctx, mac, ip, c.end, question->target, asker_mac);
}

#endif
