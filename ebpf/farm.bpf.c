// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The farm's filter: every node sees every packet for a VIP, and exactly one of them lets it through.
#include <linux/bpf.h>
#include <linux/udp.h>
#include "maps.h"
#include "parse.h"
#include "table.h"
#include "lease.h"
#include "sockets.h"
#include "neighbour.h"

// The decision, for a packet whose bucket has this state:
//
//   packet            own       own + fresh                      held                             none
//   opening           accept    accept                           drop, unless a socket claims it  drop
//   following, report accept    accept if a socket claims it     accept if a socket claims it     drop
//   datagram          accept    accept                           drop                             drop
//   orphan            accept    drop                             drop                             drop
static __always_inline enum farm_reason decide(struct xdp_md *ctx, __u8 state, const struct packet *p)
{
	struct packet copy;
	enum claim claim;

	if (state == FARM_OWN)
		return FARM_ACCEPT_OWN;
	if (!state)
		return FARM_DROP_NOT_OWNER;
	if (p->segment == ORPHAN)
		return FARM_DROP_FRAGMENT_UNKNOWN;
	if (p->segment == DATAGRAM)
		return state & FARM_OWN ? FARM_ACCEPT_FRESH_NEW : FARM_DROP_HELD_NEW;
	if (p->segment == OPENING && state & FARM_OWN)
		return FARM_ACCEPT_FRESH_NEW;

	copy = *p; // so that the packet itself can stay in registers
	claim = farm_local_claim(ctx, &copy);
	if (claim == COOKIE_CLAIM)
		return FARM_ACCEPT_COOKIE;
	if (state & FARM_OWN)
		return claim == SOCKET_CLAIM ? FARM_ACCEPT_FRESH_SOCKET : FARM_DROP_FRESH_UNKNOWN;
	if (claim == SOCKET_CLAIM)
		return FARM_ACCEPT_HELD_SOCKET;
	return p->segment == OPENING ? FARM_DROP_HELD_NEW : FARM_DROP_HELD_UNKNOWN;
}

static __always_inline __u32 pack(struct farm_outcome result)
{
	return result.reason | result.rule << 16;
}

static __always_inline struct farm_outcome unpack(__u32 result)
{
	return outcome(result & 0xffff, result >> 16);
}

static __always_inline int is_icmp(const struct packet *p)
{
	return p->protocol == (p->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

// Finds the rule, the bucket and its state, and decides.
static __always_inline struct farm_outcome judge_packet(struct xdp_md *ctx, const struct farm_table *t,
							const struct packet *p)
{
	const struct farm_rule_slot *rule = NULL;
	__u32 group = 0, index = 0;
	__u16 port = 0;

	if ((p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP) && (p->vip_port || p->segment == ORPHAN))
		rule = find_rule(t, farm_rule_key(p->vip, p->protocol, p->vip_port));
	if (rule) {
		group = rule->group;
		index = rule->rule;
		port = rule->affinity == FARM_CLIENT_IP_PORT ? p->client_port : 0;
	} else if (!is_icmp(p)) {
		if (p->segment == ORPHAN)
			return outcome(FARM_DROP_FRAGMENT_UNKNOWN, 0);
		if (!t->accept_without_rule)
			return outcome(FARM_DROP_NO_RULE, 0);
	}
	return outcome(decide(ctx, bucket_state(group, bucket_of(t, p, port)), p), index);
}

static __always_inline enum farm_reason read_tcp(struct cursor *c, struct packet *p)
{
	struct tcphdr *tcp = take(c, sizeof(*tcp));

	if (!tcp || p->bytes < sizeof(*tcp))
		return FARM_DROP_MALFORMED;
	p->client_port = bpf_ntohs(tcp->source);
	p->vip_port = bpf_ntohs(tcp->dest);
	p->segment = (tcp_flags(tcp) & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN ? OPENING : FOLLOWING;
	return FARM_UNDECIDED;
}

static __always_inline enum farm_reason read_udp(struct cursor *c, struct packet *p)
{
	struct udphdr *udp = take(c, sizeof(*udp));

	if (!udp || p->bytes < sizeof(*udp))
		return FARM_DROP_MALFORMED;
	p->client_port = bpf_ntohs(udp->source);
	p->vip_port = bpf_ntohs(udp->dest);
	return FARM_UNDECIDED;
}

// Puts the packet that an ICMP error is about in the error's place, with its ends swapped: the VIP sent it. It begins
// at p->transport_at.
__noinline int farm_read_reported(struct xdp_md *ctx, struct packet *p)
{
	struct farm_address sender;
	enum farm_reason fault;
	struct iphdr *ipv4;
	struct ipv6hdr *ipv6;
	struct cursor c;
	__be16 *ports;

	if (!p || p->transport_at > HEADERS_MASK)
		return FARM_DROP_ICMP_UNKNOWN;
	p->ip_at = p->transport_at;
	c = cursor_at(ctx, p->ip_at);
	if (p->ipv6) {
		ipv6 = take(&c, sizeof(*ipv6));
		if (!ipv6)
			return FARM_DROP_MALFORMED;
		sender = address_of_ipv6(&ipv6->saddr);
		p->client = address_of_ipv6(&ipv6->daddr);
		fault = parse_ipv6(ctx, &c, ipv6, p);
	} else {
		ipv4 = take(&c, sizeof(*ipv4));
		if (!ipv4)
			return FARM_DROP_MALFORMED;
		sender = address_of_ipv4(ipv4->saddr);
		p->client = address_of_ipv4(ipv4->daddr);
		fault = parse_ipv4(&c, ipv4, p);
	}
	if (fault != FARM_UNDECIDED || p->fragment == LATER_FRAGMENT || !same_address(sender, p->vip_address))
		return FARM_DROP_ICMP_UNKNOWN;
	p->fragment = WHOLE; // what comes in now is
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return FARM_UNDECIDED;
	ports = take(&c, 2 * sizeof(*ports));
	if (!ports)
		return FARM_DROP_ICMP_UNKNOWN;
	p->vip_port = bpf_ntohs(ports[0]);
	p->client_port = bpf_ntohs(ports[1]);
	p->segment = p->protocol == IPPROTO_TCP ? REPORT : DATAGRAM;
	return FARM_UNDECIDED;
}

static __always_inline enum farm_reason read_icmp(struct xdp_md *ctx, struct cursor *c, struct packet *p)
{
	struct packet reported;
	int fault;
	struct icmp_header *icmp = take(c, sizeof(*icmp));
	int report;

	if (!icmp || p->bytes < sizeof(*icmp))
		return FARM_DROP_MALFORMED;
	if (p->ipv6)
		report = icmp->type >= ICMP6_UNREACHABLE && icmp->type <= ICMP6_PARAMETER_PROBLEM;
	else
		report = icmp->type == ICMP4_UNREACHABLE || icmp->type == ICMP4_TIME_EXCEEDED ||
			 icmp->type == ICMP4_PARAMETER_PROBLEM;
	if (!report)
		return FARM_UNDECIDED;
	reported = *p;
	reported.transport_at = c->offset;
	fault = farm_read_reported(ctx, &reported);
	*p = reported;
	return fault;
}

static __always_inline enum farm_reason read_transport(struct xdp_md *ctx, struct cursor *c, struct packet *p)
{
	if (p->fragment == LATER_FRAGMENT) {
		p->segment = ORPHAN;
		return FARM_UNDECIDED;
	}
	if (p->protocol == IPPROTO_TCP)
		return read_tcp(c, p);
	if (p->protocol == IPPROTO_UDP)
		return read_udp(c, p);
	return is_icmp(p) ? read_icmp(ctx, c, p) : FARM_UNDECIDED;
}

// Reads an IPv4 header up to where the transport header begins.
static __always_inline enum farm_reason read_ipv4(const struct farm_table *t, struct cursor *c, struct packet *p)
{
	struct iphdr *ip = take(c, sizeof(*ip));

	if (!ip)
		return FARM_NOT_VIP;
	p->vip_address = address_of_ipv4(ip->daddr);
	p->vip = find_vip(t, p->vip_address);
	if (!p->vip)
		return FARM_NOT_VIP;
	if (lease_over())
		return FARM_DROP_LEASE_OVER;
	p->client = address_of_ipv4(ip->saddr);
	return parse_ipv4(c, ip, p);
}

// Reads an IPv6 header up to where the transport header begins, or answers a Neighbour Solicitation.
static __always_inline enum farm_reason read_ipv6(struct xdp_md *ctx, const struct farm_table *t, struct cursor *c,
						  struct packet *p)
{
	struct ipv6hdr *ip = take(c, sizeof(*ip));
	int answer;

	if (!ip)
		return FARM_NOT_VIP;
	p->ipv6 = 1;
	p->vip_address = address_of_ipv6(&ip->daddr);
	p->vip = find_vip(t, p->vip_address);
	if (ip->nexthdr == IPPROTO_ICMPV6 && (p->vip || is_solicited_node(p->vip_address))) {
		answer = farm_judge_nd(ctx, p->ip_at);
		if (answer != FARM_UNDECIDED)
			return answer;
		*c = cursor_at(ctx, p->ip_at); // the call may have moved the frame, for all that the verifier knows
		ip = take(c, sizeof(*ip));
		if (!ip)
			return FARM_NOT_VIP;
	}
	if (!p->vip)
		return FARM_NOT_VIP;
	if (lease_over())
		return FARM_DROP_LEASE_OVER;
	p->client = address_of_ipv6(&ip->saddr);
	return parse_ipv6(ctx, c, ip, p);
}

// Judges any IP packet; its header begins at `offset`. All fragments of a datagram go where its first one went, and are
// counted with it. Returns the outcome in one number, as functions that the verifier checks on their own must.
__noinline __u32 farm_judge_ip(struct xdp_md *ctx, __u32 offset, __u32 type)
{
	const struct farm_table *t = active_table();
	struct cursor c = cursor_at(ctx, offset);
	struct packet p = {.ip_at = c.offset};
	struct farm_outcome *first, result;
	struct farm_fragment datagram;
	enum farm_reason fault;
	enum fragment fragment;

	if (!t)
		return pack(outcome(FARM_NOT_VIP, 0));
	fault = type == bpf_htons(ETH_P_IP) ? read_ipv4(t, &c, &p) : read_ipv6(ctx, t, &c, &p);
	if (fault != FARM_UNDECIDED)
		return pack(outcome(fault, 0));
	if (same_address(p.client, p.vip_address)) // a VIP talks to itself over lo only: this is forged
		return pack(outcome(FARM_DROP_MALFORMED, 0));

	fragment = p.fragment; // an ICMP error will put what it is about in its own place
	if (fragment != WHOLE) {
		// RFC 8200, 4.5: later fragments of IPv6 may tell another protocol than the first.
		datagram = (struct farm_fragment){p.client, p.fragment_id, p.vip, p.ipv6 ? 0 : p.protocol};
		first = fragment == LATER_FRAGMENT ? bpf_map_lookup_elem(&farm_fragments, &datagram) : NULL;
		if (first)
			return pack(*first);
	}
	fault = read_transport(ctx, &c, &p);
	result = fault == FARM_UNDECIDED ? judge_packet(ctx, t, &p) : outcome(fault, 0);
	if (fragment == FIRST_FRAGMENT)
		bpf_map_update_elem(&farm_fragments, &datagram, &result, BPF_ANY);
	return pack(result);
}

// The fast lane: what farm_judge_ip() would say of a whole TCP or UDP packet with nothing between IP header and ports,
// if its bucket is not in transition. That is nearly all traffic. FARM_UNDECIDED: take the long way.
static __always_inline struct farm_outcome judge_plain(const struct farm_table *t, struct cursor *c, __u32 vip,
						       __u8 protocol, __u32 bytes, int ipv6, struct farm_address client)
{
	const __u32 least = protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : sizeof(struct udphdr);
	const struct farm_rule_slot *rule;
	const struct udphdr *ports = take(c, sizeof(*ports)); // TCP begins alike
	__u16 port;
	__u8 state;

	if (!ports || (void *)ports + least > c->end || bytes < least)
		return outcome(FARM_UNDECIDED, 0);
	rule = find_rule(t, farm_rule_key(vip, protocol, bpf_ntohs(ports->dest)));
	if (!rule || !ports->dest) // port 0 of the table stands for later fragments
		return outcome(FARM_UNDECIDED, 0);
	port = rule->affinity == FARM_CLIENT_IP_PORT ? bpf_ntohs(ports->source) : 0;
	state = bucket_state(rule->group, ipv6 ? farm_bucket_ipv6(t->hash_key, client.words, port)
					       : farm_bucket_ipv4(t->hash_key, ipv4_of_address(client), port));
	if (state == FARM_OWN)
		return outcome(FARM_ACCEPT_OWN, rule->rule);
	return outcome(state ? FARM_UNDECIDED : FARM_DROP_NOT_OWNER, rule->rule);
}

static __always_inline struct farm_outcome judge_plain_ipv4(const struct farm_table *t, struct cursor c)
{
	const struct iphdr *ip = take(&c, sizeof(*ip));
	__u32 vip, total;

	if (!ip)
		return outcome(FARM_NOT_VIP, 0);
	vip = find_vip(t, address_of_ipv4(ip->daddr));
	if (!vip)
		return outcome(FARM_NOT_VIP, 0);
	if (lease_over())
		return outcome(FARM_DROP_LEASE_OVER, 0);
	total = bpf_ntohs(ip->tot_len);
	if (*(const __u8 *)ip != PLAIN_IPV4 || ip->frag_off & bpf_htons(0x3fff) || ip->saddr == ip->daddr ||
	    total < sizeof(*ip) || (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP))
		return outcome(FARM_UNDECIDED, 0);
	return judge_plain(t, &c, vip, ip->protocol, total - sizeof(*ip), 0, address_of_ipv4(ip->saddr));
}

static __always_inline struct farm_outcome judge_plain_ipv6(const struct farm_table *t, struct cursor c)
{
	const struct ipv6hdr *ip = take(&c, sizeof(*ip));
	struct farm_address client, vip_address;
	__u32 vip;

	if (!ip)
		return outcome(FARM_NOT_VIP, 0);
	if (ip->nexthdr == IPPROTO_ICMPV6) // may be a question to a VIP's neighbours
		return outcome(FARM_UNDECIDED, 0);
	vip_address = address_of_ipv6(&ip->daddr);
	vip = find_vip(t, vip_address);
	if (!vip)
		return outcome(FARM_NOT_VIP, 0);
	if (lease_over())
		return outcome(FARM_DROP_LEASE_OVER, 0);
	client = address_of_ipv6(&ip->saddr);
	if (ip->version != 6 || same_address(client, vip_address) ||
	    (ip->nexthdr != IPPROTO_TCP && ip->nexthdr != IPPROTO_UDP))
		return outcome(FARM_UNDECIDED, 0);
	return judge_plain(t, &c, vip, ip->nexthdr, bpf_ntohs(ip->payload_len), 1, client);
}

// Puts the interface's own MAC into a frame that is not dropped: as destination of an accepted one, because the stack
// takes no other; as source of an answer, so that no switch ever learns the virtual MAC.
static __always_inline struct farm_outcome address_frame(struct xdp_md *ctx, const struct farm_table *t,
							 struct farm_outcome result)
{
	struct ethernet *eth = (void *)(long)ctx->data;
	const __u8 *mac = interface_mac(t, ctx);

	if (!mac || (void *)(eth + 1) > (void *)(long)ctx->data_end)
		return outcome(FARM_DROP_NO_INTERFACE, 0);
	copy_mac(result.reason < FARM_FIRST_ANSWER ? eth->to : eth->from, mac);
	return result;
}

static __always_inline struct farm_outcome judge(struct xdp_md *ctx)
{
	struct cursor c = cursor_at(ctx, 0);
	const struct farm_table *t = active_table();
	__be16 type = parse_ethernet(&c);
	struct farm_outcome result = {};

	if (!t)
		return result;
	if (type == bpf_htons(ETH_P_IP))
		result = judge_plain_ipv4(t, c);
	else if (type == bpf_htons(ETH_P_IPV6))
		result = judge_plain_ipv6(t, c);
	else if (type == bpf_htons(ETH_P_ARP))
		result.reason = farm_judge_arp(ctx, c.offset);
	if (result.reason == FARM_UNDECIDED)
		result = unpack(farm_judge_ip(ctx, c.offset, type));
	if (result.reason >= FARM_FIRST_ACCEPT && result.reason < FARM_FIRST_DROP)
		return address_frame(ctx, t, result);
	return result;
}

static __always_inline enum xdp_action verdict_of(enum farm_reason reason)
{
	if (reason < FARM_FIRST_ANSWER)
		return XDP_PASS;
	return reason < FARM_FIRST_DROP ? XDP_TX : XDP_DROP;
}

// The program that is attached.
SEC("xdp.frags")
int farm_filter(struct xdp_md *ctx)
{
	struct farm_outcome result = judge(ctx);

	if (result.reason == FARM_NOT_VIP)
		return XDP_PASS;
	count(result);
	return verdict_of(result.reason);
}

// Its twin for BPF_PROG_TEST_RUN, never attached: counts nothing, and tells the reason (bits 8..15) and the rule
// (from bit 16) beside the verdict.
SEC("xdp.frags")
int farm_explain(struct xdp_md *ctx)
{
	struct farm_outcome result = judge(ctx);

	return verdict_of(result.reason) | result.reason << 8 | result.rule << 16;
}

char farm_license[] SEC("license") = "Dual BSD/GPL";
