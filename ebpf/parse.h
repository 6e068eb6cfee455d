// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Cursor parsers. Each takes one header off the front of the cursor after checking that it is whole.
#ifndef FARM_PARSE_H
#define FARM_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "farm_abi.h"

#define NULL		    ((void *)0)
#define likely(condition)   __builtin_expect(!!(condition), 1) // lays the usual way out in one line, without a jump
#define unlikely(condition) __builtin_expect(!!(condition), 0)

enum parse_limit {
	PLAIN_IPV4 = 0x45,	 // first byte of an IPv4 header without options
	PLAIN_KIND = 0x3fff00ff, // of the word that begins with IPv4's fragment field: "more", the offset, the protocol
	VLAN_TAGS = 2,		 // 802.1Q, or 802.1ad around 802.1Q
	IPV6_CHAIN = 6,		 // extension headers that we follow; real traffic has two at most
	HEADERS_MASK = 1023,	 // no header begins further in than this
};

// Where we are in the frame's first buffer. An offset, not a pointer: the verifier copes with it after any detour.
struct cursor {
	void *begin;
	void *end;
	__u64 offset; // 64 bits: a narrower one would be widened again at every step
};

// Like struct ethhdr, but not packed: clang reads packed fields byte by byte.
struct ethernet {
	__u8 to[ETH_ALEN];
	__u8 from[ETH_ALEN];
	__be16 type;
};

struct vlan_tag {
	__be16 tci;
	__be16 type;
};

struct ipv6_fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset; // in units of 8 bytes << 3, and the flag "more" in bit 0
	__be32 id;
};

// <linux/icmp.h> and <linux/if_arp.h> drag in libc headers, which have no place here.
enum icmp_type {
	ICMP4_UNREACHABLE = 3,
	ICMP4_TIME_EXCEEDED = 11,
	ICMP4_PARAMETER_PROBLEM = 12,
	ICMP6_UNREACHABLE = 1, // errors are 1..4
	ICMP6_PARAMETER_PROBLEM = 4,
	ICMP6_SOLICITATION = 135,
	ICMP6_ADVERTISEMENT = 136,
};

// How ICMP and ICMPv6 both begin.
struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__u8 rest[4];
};

enum fragment {
	WHOLE,
	FIRST_FRAGMENT,
	LATER_FRAGMENT, // has no ports
};

// What a packet means to connections.
enum segment {
	DATAGRAM,  // belongs to none: UDP, ICMP echo and the like
	OPENING,   // TCP SYN
	FOLLOWING, // any other TCP segment
	REPORT,	   // an ICMP error about a TCP segment of ours
	ORPHAN,	   // a later fragment whose first one we have not seen
};

// What the headers say, seen from the VIP's side: of an ICMP error, the packet of ours that it is about. Without
// pointers, so that it can be handed to functions that the verifier checks on their own.
struct packet {
	struct farm_address client;
	struct farm_address vip_address;
	__u32 vip; // its number in the table
	__u32 fragment_id;
	__u32 bytes;	    // of the transport header and its payload, as IP counts them
	__u32 ip_at;	    // where the IP header begins
	__u32 transport_at; // where the transport header begins
	__be16 client_port; // as they lie in the packet
	__be16 vip_port;
	__u8 fragment; // enum fragment
	__u8 segment;  // enum segment
	__u8 protocol;
	__u8 ipv6;
	__u8 closed; // the lease is over: the packet can only be sent on
};

static __always_inline struct cursor cursor_at(struct xdp_md *ctx, __u64 offset)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end, offset};

	// The bound that the verifier asks for. In assembly, because clang would prove it away.
	asm volatile("%0 &= %1" : "+r"(c.offset) : "i"(HEADERS_MASK));
	return c;
}

// The next `bytes` of the frame, or NULL if it ends before.
static __always_inline void *take(struct cursor *c, __u32 bytes)
{
	void *header = c->begin + c->offset;

	asm volatile(""
		     : "+r"(header)); // else clang may add up a second time, and the check does not hold for that sum
	if (header + bytes > c->end)
		return NULL;
	c->offset += bytes;
	return header;
}

// Moves the cursor on by a length that the packet tells; 0 if that is further in than we look.
static __always_inline int skip(struct cursor *c, __u32 bytes)
{
	c->offset += bytes;
	if (c->offset > HEADERS_MASK)
		return 0;
	asm volatile("%0 &= %1" : "+r"(c->offset) : "i"(HEADERS_MASK));
	return 1;
}

// Where the Ethernet header and its tags end; NULL if the frame ends before.
static __always_inline void *after_ethernet(void *at, const void *end, __be16 *type)
{
	struct ethernet *eth = at;
	struct vlan_tag *tag = (void *)(eth + 1);

	if ((void *)tag > end)
		return NULL;
	*type = eth->type;
#pragma unroll
	for (int i = 0; i < VLAN_TAGS; i++) {
		if (likely(*type != bpf_htons(ETH_P_8021Q) && *type != bpf_htons(ETH_P_8021AD)))
			break;
		if ((void *)(tag + 1) > end)
			return NULL;
		*type = tag++->type;
	}
	return tag;
}

// Frames may be read at any address.
static __always_inline __u32 load_32(const void *at)
{
	return *(const __u32 *)at;
}

static __always_inline struct farm_address address_of_ipv4(__be32 address)
{
	struct farm_address mapped = {{0, (__u64)address << 32 | 0xffff0000}};

	return mapped;
}

static __always_inline __u32 ipv4_of_address(struct farm_address address)
{
	return address.words[1] >> 32;
}

static __always_inline struct farm_address address_of_ipv6(const struct in6_addr *address)
{
	const __u64 *words = (const void *)address; // frames may be read at any address; memcpy() would do it in halves
	struct farm_address copy = {{words[0], words[1]}};

	return copy;
}

static __always_inline int same_address(struct farm_address a, struct farm_address b)
{
	return a.words[0] == b.words[0] && a.words[1] == b.words[1];
}

// Reads an IPv4 header, but for its addresses, and moves the cursor past its options.
static __always_inline enum farm_reason parse_ipv4(struct cursor *c, const struct iphdr *ip, struct packet *p)
{
	__u32 header = ip->ihl * 4;
	__u32 total = bpf_ntohs(ip->tot_len);
	__u16 offset = bpf_ntohs(ip->frag_off) & 0x3fff; // the flag "more" and the offset, without "do not"

	if (ip->version != 4 || header < sizeof(*ip) || total < header)
		return FARM_DROP_MALFORMED;
	if (header > sizeof(*ip))
		skip(c, header - sizeof(*ip));
	p->transport_at = c->offset;
	p->protocol = ip->protocol;
	p->bytes = total - header;
	p->fragment = !offset ? WHOLE : offset & 0x1fff ? LATER_FRAGMENT : FIRST_FRAGMENT;
	p->fragment_id = ip->id;
	return FARM_UNDECIDED;
}

static __always_inline int is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_AH || protocol == IPPROTO_FRAGMENT;
}

// Takes a fragment header; a datagram that is its own only fragment counts as whole.
static __always_inline int parse_ipv6_fragment(struct cursor *c, struct packet *p)
{
	struct ipv6_fragment *fragment = take(c, sizeof(*fragment));

	if (!fragment)
		return -1;
	if (fragment->offset & bpf_htons(0xfff8))
		p->fragment = LATER_FRAGMENT;
	else if (fragment->offset & bpf_htons(1))
		p->fragment = FIRST_FRAGMENT;
	p->fragment_id = fragment->id;
	return fragment->next;
}

// Takes an extension header that tells its own length, in units of 8 bytes without the first (AH: 4, without two).
static __always_inline int parse_ipv6_extension(struct cursor *c, __u8 type)
{
	struct ipv6_opt_hdr *extension = take(c, sizeof(*extension));
	__u32 bytes;

	if (!extension)
		return -1;
	bytes = type == IPPROTO_AH ? (extension->hdrlen + 2) * 4 : (extension->hdrlen + 1) * 8;
	return skip(c, bytes - sizeof(*extension)) ? extension->nexthdr : -1;
}

// Follows the extension headers that begin at p->transport_at.
__noinline int farm_follow_extensions(struct xdp_md *ctx, struct packet *p)
{
	struct cursor c;
	__u32 start;
	int next;

	if (!p || p->transport_at > HEADERS_MASK)
		return FARM_DROP_MALFORMED;
	start = p->transport_at;
	c = cursor_at(ctx, start);
	next = p->protocol;
	for (int i = 0; i < IPV6_CHAIN && is_extension(next) && p->fragment != LATER_FRAGMENT; i++) {
		next = next == IPPROTO_FRAGMENT ? parse_ipv6_fragment(&c, p) : parse_ipv6_extension(&c, next);
		if (next < 0 || c.offset > HEADERS_MASK)
			return FARM_DROP_MALFORMED;
	}
	if (is_extension(next) && p->fragment != LATER_FRAGMENT)
		return FARM_DROP_HEADER_CHAIN;
	if (c.offset - start > p->bytes)
		return FARM_DROP_MALFORMED;
	p->protocol = next;
	p->bytes -= c.offset - start;
	p->transport_at = c.offset;
	return FARM_UNDECIDED;
}

// Reads an IPv6 header, but for its addresses, and moves the cursor past its extensions.
static __always_inline enum farm_reason parse_ipv6(struct xdp_md *ctx, struct cursor *c, const struct ipv6hdr *ip,
						   struct packet *p)
{
	struct packet extended;
	int fault;

	if (ip->version != 6)
		return FARM_DROP_MALFORMED;
	p->transport_at = c->offset;
	p->protocol = ip->nexthdr;
	p->bytes = bpf_ntohs(ip->payload_len);
	p->fragment = WHOLE;
	if (!is_extension(p->protocol))
		return FARM_UNDECIDED;
	extended = *p; // a copy, so that the packet itself can stay in registers
	fault = farm_follow_extensions(ctx, &extended);
	*p = extended;
	*c = cursor_at(ctx, p->transport_at);
	return fault;
}

#endif
