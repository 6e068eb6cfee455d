// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The farm's filter: every node sees every packet for a VIP, and exactly one of them lets it through.
#include <linux/bpf.h>
#include <linux/udp.h>
#include "maps.h"
#include "parse.h"
#include "table.h"
#include "lease.h"
#include "sockets.h"
#include "forward.h"
#include "neighbour.h"
#include "trace.h"

// The decision, for a packet whose bucket has this state:
//
//   packet            own       own + fresh                      held                             none
//   opening           accept    accept                           drop, unless a socket claims it  drop
//   following, report accept    accept if a socket claims it     accept if a socket claims it     drop
//   datagram          accept    accept                           drop                             drop
//   orphan            accept    drop                             drop                             drop
//
// In directed delivery what is dropped for being another node's is sent on to that node instead.
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
	return result.reason | (__u32)result.rule << 16;
}

static __always_inline int is_icmp(const struct packet *p)
{
	return p->protocol == (p->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

static __always_inline int is_opening(const struct tcphdr *tcp)
{
	return (tcp_flags(tcp) & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

// Decides by the state of the bucket. In directed delivery, what is not ours goes to whom it belongs, also when our
// lease is over: that makes nobody serve who may not, and neighbours may still send everything to us.
static __always_inline struct farm_outcome place_packet(struct xdp_md *ctx, const struct farm_table *t,
							const struct packet *p, __u32 group, __u32 bucket, __u32 rule)
{
	__u8 state = bucket_state(group, bucket);
	struct farm_outcome result = outcome(FARM_DROP_LEASE_OVER, 0);

	if (!p->closed)
		result = outcome(decide(ctx, state & ~FARM_SEND_ON, p), rule);
	if (!(state & FARM_SEND_ON) || result.reason < FARM_FIRST_DROP || result.reason == FARM_DROP_FRAGMENT_UNKNOWN)
		return result;
	result = find_taker(ctx, t, group, bucket, state, p->segment, result);
	if (result.reason < FARM_FIRST_DROP)
		result.rule = rule;
	return result;
}

// Finds the rule and the bucket, and decides.
static __always_inline struct farm_outcome judge_packet(struct xdp_md *ctx, const struct farm_table *t,
							const struct packet *p)
{
	const struct farm_rule *rule = &t->rules[0]; // none: by client-ip, in group 0

	if (p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP)
		rule = p->segment == ORPHAN ? find_orphan_rule(t, p->vip, p->protocol)
					    : find_rule(t, p->vip, p->protocol, p->vip_port);
	if (!rule->number && !is_icmp(p)) {
		if (p->segment == ORPHAN)
			return outcome(FARM_DROP_FRAGMENT_UNKNOWN, 0);
		if (!t->accept_without_rule)
			return outcome(FARM_DROP_NO_RULE, 0);
	}
	return place_packet(ctx, t, p, rule->group, bucket_of(t, p, rule->affinity), rule->number);
}

static __always_inline enum farm_reason read_tcp(struct cursor *c, struct packet *p)
{
	struct tcphdr *tcp = take(c, sizeof(*tcp));

	if (!tcp || p->bytes < sizeof(*tcp))
		return FARM_DROP_MALFORMED;
	p->client_port = tcp->source;
	p->vip_port = tcp->dest;
	p->segment = is_opening(tcp) ? OPENING : FOLLOWING;
	return FARM_UNDECIDED;
}

static __always_inline enum farm_reason read_udp(struct cursor *c, struct packet *p)
{
	struct udphdr *udp = take(c, sizeof(*udp));

	if (!udp || p->bytes < sizeof(*udp))
		return FARM_DROP_MALFORMED;
	p->client_port = udp->source;
	p->vip_port = udp->dest;
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
	p->fragment_id = 0;  // ours, which says nothing about the client's packets: an error goes by address
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return FARM_UNDECIDED;
	ports = take(&c, 2 * sizeof(*ports));
	if (!ports)
		return FARM_DROP_ICMP_UNKNOWN;
	p->vip_port = ports[0];
	p->client_port = ports[1];
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
	p->vip = find_ipv4_vip(t, ip->daddr);
	if (!p->vip)
		return FARM_NOT_VIP;
	p->closed = lease_over();
	if (p->closed && !t->directed)
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
	p->vip = find_ipv6_vip(t, p->vip_address);
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
	p->closed = lease_over();
	if (p->closed && !t->directed)
		return FARM_DROP_LEASE_OVER;
	p->client = address_of_ipv6(&ip->saddr);
	return parse_ipv6(ctx, c, ip, p);
}

// The long way: judges any IP packet. All fragments of a datagram go where its first one went, and are counted with it.
// Returns the outcome in one number, as functions that the verifier checks on their own must.
__noinline __u32 farm_judge_ip(struct xdp_md *ctx)
{
	const struct farm_table *t = active_table();
	struct packet p = {};
	struct farm_outcome *first, result;
	struct farm_fragment datagram;
	enum farm_reason fault;
	enum fragment fragment;
	struct cursor c;
	__be16 type;
	void *at = after_ethernet((void *)(long)ctx->data, (void *)(long)ctx->data_end, &type);

	if (!at)
		return pack(outcome(FARM_NOT_VIP, 0));
	p.ip_at = at - (void *)(long)ctx->data;
	c = cursor_at(ctx, p.ip_at);
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
		if (first && p.closed && first->reason < FARM_FIRST_ANSWER)
			return pack(outcome(FARM_DROP_LEASE_OVER, 0));
		if (first)
			return pack(forward(ctx, t, *first));
	}
	fault = read_transport(ctx, &c, &p);
	result = fault == FARM_UNDECIDED ? judge_packet(ctx, t, &p) : outcome(fault, 0);
	if (fragment == FIRST_FRAGMENT)
		bpf_map_update_elem(&farm_fragments, &datagram, &result, BPF_ANY);
	return pack(forward(ctx, t, result));
}

static __always_inline enum xdp_action verdict_of(enum farm_reason reason)
{
	if (reason < FARM_FIRST_ANSWER)
		return XDP_PASS;
	return reason < FARM_FIRST_DROP ? XDP_TX : XDP_DROP;
}

// Puts the interface's own MAC into a frame that is not dropped: as destination of an accepted one, because the stack
// takes no other; as source of an answer, so that no switch ever learns the virtual MAC. 0 if we do not know it.
static __always_inline int address_frame(struct xdp_md *ctx, enum farm_reason reason)
{
	struct ethernet *eth = (void *)(long)ctx->data;
	const __u8 *mac = interface_mac(active_table(), ctx);

	if (!mac || (void *)(eth + 1) > (void *)(long)ctx->data_end)
		return 0;
	copy_mac(reason < FARM_FIRST_ANSWER ? eth->to : eth->from, mac);
	return 1;
}

// What the two programs differ in: one acts and counts, its twin tells why.
enum entry {
	ACT,
	EXPLAIN,
};

// Ends a run. Inlined wherever the reason is known, so that nothing of it has to be carried around.
static __always_inline int end(struct xdp_md *ctx, enum entry entry, enum farm_reason reason, __u32 rule)
{
	if (reason >= FARM_FIRST_ACCEPT && reason < FARM_FIRST_SENT && !address_frame(ctx, reason)) {
		reason = FARM_DROP_NO_INTERFACE;
		rule = 0;
	}
	if (entry == EXPLAIN)
		return verdict_of(reason) | reason << 8 | rule << 16;
	if (reason != FARM_NOT_VIP) {
		count(reason, rule);
		if (unlikely(farm_watch.open))
			farm_tell(ctx, reason, rule, verdict_of(reason));
	}
	return verdict_of(reason);
}

// The fast lane: what farm_judge_ip() would say of a whole TCP or UDP packet with nothing between IP header and ports,
// as long as no socket has to be asked. That is nearly all traffic. LONG_WAY: it is not such a packet.
enum lane {
	LONG_WAY = -1,
	REASONS_MASK = FARM_REASONS - 1,
};

static __always_inline int end_sent(struct xdp_md *ctx, enum entry entry, const struct farm_rule *rule, __u32 bucket,
				    enum segment segment)
{
	const struct farm_table *t = active_table();
	struct farm_outcome result = outcome(FARM_DROP_NOT_OWNER, rule->number);

	result = find_taker(ctx, t, rule->group, bucket, FARM_SEND_ON, segment, result);
	result = forward(ctx, t, result);
	return end(ctx, entry, result.reason, result.rule);
}

static __always_inline int end_plain(struct xdp_md *ctx, enum entry entry, const struct farm_rule *rule, __u32 bucket,
				     const struct tcphdr *tcp, __u8 protocol)
{
	__u8 state = bucket_state(rule->group, bucket);

	if (!state)
		return end(ctx, entry, FARM_DROP_NOT_OWNER, rule->number);
	if (state == FARM_OWN)
		return end(ctx, entry, FARM_ACCEPT_OWN, rule->number);
	if (likely(state == FARM_SEND_ON))
		return end_sent(ctx, entry, rule, bucket,
				protocol == IPPROTO_UDP || is_opening(tcp) ? OPENING : FOLLOWING);
	if (state & FARM_OWN && (protocol == IPPROTO_UDP || is_opening(tcp)))
		return end(ctx, entry, FARM_ACCEPT_FRESH_NEW, rule->number);
	return LONG_WAY;
}

static __always_inline int end_without_rule(struct xdp_md *ctx, enum entry entry, const struct farm_table *t)
{
	return t->accept_without_rule ? LONG_WAY : end(ctx, entry, FARM_DROP_NO_RULE, 0);
}

// The frame must have room for a TCP header even if it is UDP: one from a real wire is long enough, and it saves a
// comparison.
static __always_inline int judge_plain_ipv4(struct xdp_md *ctx, enum entry entry, const struct iphdr *ip,
					    const void *frame_end)
{
	const struct farm_table *t = active_table();
	const struct tcphdr *tcp = (const void *)(ip + 1);
	const struct farm_rule *rule;
	__u32 vip, least, kind;
	__be16 extra = 0;
	__be32 client;

	if (unlikely((const void *)(tcp + 1) > frame_end))
		return LONG_WAY;
	vip = find_ipv4_vip(t, ip->daddr);
	if (!vip)
		return end(ctx, entry, FARM_NOT_VIP, 0);
	if (unlikely(lease_over()))
		return t->directed ? LONG_WAY : end(ctx, entry, FARM_DROP_LEASE_OVER, 0);
	kind = load_32(&ip->frag_off) & bpf_htonl(PLAIN_KIND);
	if (likely(kind == bpf_htonl(IPPROTO_TCP)))
		least = sizeof(*ip) + sizeof(*tcp);
	else if (likely(kind == bpf_htonl(IPPROTO_UDP)))
		least = sizeof(*ip) + sizeof(struct udphdr);
	else
		return LONG_WAY;
	if (unlikely(*(const __u8 *)ip != PLAIN_IPV4 || bpf_ntohs(ip->tot_len) < least || ip->saddr == ip->daddr))
		return LONG_WAY;
	rule = find_rule(t, vip, ip->protocol, tcp->dest);
	if (unlikely(!rule->number))
		return end_without_rule(ctx, entry, t);
	client = ip->saddr;
	if (rule->affinity == FARM_CLIENT_IP_PORT)
		extra = tcp->source;
	else if (rule->affinity == FARM_CLIENT_NETWORK)
		client &= bpf_htonl(NETWORK_IPV4);
	else if (rule->affinity == FARM_PACKET_ID)
		extra = ip->id;
	return end_plain(ctx, entry, rule, farm_bucket_ipv4(&t->hash, client, extra), tcp, ip->protocol);
}

static __always_inline int judge_plain_ipv6(struct xdp_md *ctx, enum entry entry, const struct ipv6hdr *ip,
					    const void *frame_end)
{
	const struct farm_table *t = active_table();
	const struct tcphdr *tcp = (const void *)(ip + 1);
	const struct farm_rule *rule;
	struct farm_address client, vip_address;
	__be16 extra = 0;
	__u32 vip, least;

	// ICMPv6 may be a question to a VIP's neighbours.
	if (unlikely((const void *)(tcp + 1) > frame_end || ip->nexthdr == IPPROTO_ICMPV6))
		return LONG_WAY;
	vip_address = address_of_ipv6(&ip->daddr);
	vip = find_ipv6_vip(t, vip_address);
	if (!vip)
		return end(ctx, entry, FARM_NOT_VIP, 0);
	if (unlikely(lease_over()))
		return t->directed ? LONG_WAY : end(ctx, entry, FARM_DROP_LEASE_OVER, 0);
	if (likely(ip->nexthdr == IPPROTO_TCP))
		least = sizeof(*tcp);
	else if (likely(ip->nexthdr == IPPROTO_UDP))
		least = sizeof(struct udphdr);
	else
		return LONG_WAY;
	client = address_of_ipv6(&ip->saddr);
	if (unlikely(ip->version != 6 || bpf_ntohs(ip->payload_len) < least || same_address(client, vip_address)))
		return LONG_WAY;
	rule = find_rule(t, vip, ip->nexthdr, tcp->dest);
	if (unlikely(!rule->number))
		return end_without_rule(ctx, entry, t);
	if (rule->affinity == FARM_CLIENT_IP_PORT)
		extra = tcp->source;
	else if (rule->affinity == FARM_CLIENT_NETWORK)
		client.words[1] = 0;
	return end_plain(ctx, entry, rule, farm_bucket_ipv6(&t->hash, client.words, extra), tcp, ip->nexthdr);
}

// A reason that a function told which the verifier checks on its own, so that it knows nothing of what that returns.
static __always_inline enum farm_reason told_reason(__u64 reason)
{
	asm volatile("%0 &= %1" : "+r"(reason) : "i"(REASONS_MASK)); // in assembly, as in cursor_at()
	return reason;
}

static __always_inline int judge(struct xdp_md *ctx, enum entry entry)
{
	void *data = (void *)(long)ctx->data, *frame_end = (void *)(long)ctx->data_end;
	__u32 result;
	__be16 type;
	void *at = after_ethernet(data, frame_end, &type);
	int verdict = LONG_WAY;

	if (unlikely(!at))
		return XDP_PASS;
	if (likely(type == bpf_htons(ETH_P_IP)))
		verdict = judge_plain_ipv4(ctx, entry, at, frame_end);
	else if (likely(type == bpf_htons(ETH_P_IPV6)))
		verdict = judge_plain_ipv6(ctx, entry, at, frame_end);
	else if (type == bpf_htons(ETH_P_ARP))
		return end(ctx, entry, told_reason(farm_judge_arp(ctx, at - data)), 0);
	else
		return XDP_PASS;
	if (likely(verdict != LONG_WAY))
		return verdict;
	result = farm_judge_ip(ctx);
	return end(ctx, entry, told_reason(result & 0xffff), result >> 16);
}

// The program that is attached.
SEC("xdp.frags")
int farm_filter(struct xdp_md *ctx)
{
	return judge(ctx, ACT);
}

// Its twin for BPF_PROG_TEST_RUN, never attached: counts nothing, and tells the reason (bits 8..15) and the rule
// (from bit 16) beside the verdict.
SEC("xdp.frags")
int farm_explain(struct xdp_md *ctx)
{
	return judge(ctx, EXPLAIN);
}

char farm_license[] SEC("license") = "Dual BSD/GPL";
