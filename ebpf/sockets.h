// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Is this connection ours? Asked only for buckets in transition, because a look-up costs more than all the rest.
#ifndef FARM_SOCKETS_H
#define FARM_SOCKETS_H

#include "parse.h"

enum tcp_flag {
	TCP_FIN = 1,
	TCP_SYN = 2,
	TCP_RST = 4,
	TCP_ACK = 16,
};

enum claim {
	NO_CLAIM,
	SOCKET_CLAIM,
	COOKIE_CLAIM,
};

// The kernel's view of a half-open connection; libbpf finds the field's place in the running kernel.
struct tcp_request_sock {
	__u32 snt_isn;
} __attribute__((preserve_access_index));

static __always_inline __u8 tcp_flags(const struct tcphdr *tcp)
{
	return ((const __u8 *)tcp)[13];
}

static __always_inline int has_payload(const struct packet *p, const struct tcphdr *tcp)
{
	return p->bytes > tcp->doff * 4u;
}

// A half-open connection takes only the answer to its own SYN-ACK. Two nodes may have one for the same client, if the
// SYN was sent again while the bucket moved; the stack of the one that the client did not choose would send a reset.
static __always_inline int request_takes(struct bpf_sock *sk, const struct packet *p, const struct tcphdr *tcp)
{
	struct tcp_request_sock *request;

	if (p->segment == REPORT)
		return 1;
	if (p->segment == OPENING) // the owner answers; two SYN-ACKs help nobody
		return 0;
	if (!tcp || !(tcp_flags(tcp) & TCP_ACK))
		return 1;
	request = bpf_skc_to_tcp_request_sock(sk);
	return request && bpf_ntohl(tcp->ack_seq) == request->snt_isn + 1;
}

// TIME_WAIT answers a client that sends its FIN or data again, and has nothing to say to a bare ACK. A SYN that uses
// the ports again is a new connection and goes to the owner; so does its bare ACK.
static __always_inline int time_wait_takes(const struct packet *p, const struct tcphdr *tcp)
{
	if (p->segment != FOLLOWING)
		return p->segment == REPORT;
	return tcp && (tcp_flags(tcp) & (TCP_FIN | TCP_RST) || has_payload(p, tcp));
}

// During a SYN flood there are no half-open sockets; only the node that made a cookie can check it.
static __always_inline int cookie_takes(struct bpf_sock *listener, struct xdp_md *ctx, const struct packet *p,
					struct tcphdr *tcp)
{
	struct cursor c = cursor_at(ctx, p->ip_at);
	struct ipv6hdr *ipv6;
	struct iphdr *ipv4;

	if (p->segment != FOLLOWING || !tcp || (tcp_flags(tcp) & (TCP_SYN | TCP_RST | TCP_ACK)) != TCP_ACK)
		return 0;
	if (p->ipv6) {
		ipv6 = take(&c, sizeof(*ipv6));
		return ipv6 && !bpf_tcp_check_syncookie(listener, ipv6, sizeof(*ipv6), tcp, sizeof(*tcp));
	}
	ipv4 = take(&c, sizeof(*ipv4));
	return ipv4 && !bpf_tcp_check_syncookie(listener, ipv4, sizeof(*ipv4), tcp, sizeof(*tcp));
}

static __always_inline enum claim socket_claims(struct bpf_sock *sk, struct xdp_md *ctx, const struct packet *p)
{
	struct cursor c = cursor_at(ctx, p->transport_at);
	struct tcphdr *tcp = take(&c, sizeof(*tcp)); // a reported segment may be cut short: then it stays unused

	switch (sk->state) {
	case BPF_TCP_LISTEN:
		return cookie_takes(sk, ctx, p, tcp) ? COOKIE_CLAIM : NO_CLAIM;
	case BPF_TCP_NEW_SYN_RECV:
		return request_takes(sk, p, tcp) ? SOCKET_CLAIM : NO_CLAIM;
	case BPF_TCP_TIME_WAIT:
		return time_wait_takes(p, tcp) ? SOCKET_CLAIM : NO_CLAIM;
	default:
		// Also a SYN: the stack answers it with a challenge, so that a stale connection of the same ports ends.
		return SOCKET_CLAIM;
	}
}

// Does a socket of this network namespace claim the packet? An enum claim. skc: it must see half-open and TIME_WAIT
// sockets too.
__noinline int farm_local_claim(struct xdp_md *ctx, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	enum claim claim;

	if (!p)
		return NO_CLAIM;
	if (p->ipv6) {
		__builtin_memcpy(tuple.ipv6.saddr, p->client.words, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, p->vip_address.words, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = p->client_port;
		tuple.ipv6.dport = p->vip_port;
		sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	} else {
		tuple.ipv4.saddr = ipv4_of_address(p->client);
		tuple.ipv4.daddr = ipv4_of_address(p->vip_address);
		tuple.ipv4.sport = p->client_port;
		tuple.ipv4.dport = p->vip_port;
		sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return NO_CLAIM;
	claim = socket_claims(sk, ctx, p);
	bpf_sk_release(sk);
	return claim;
}

#endif
