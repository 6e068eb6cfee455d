// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// What bench/live.py loads: a program that sends a frame from client after client, and the receiver that all others are
// measured against.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define CLIENTS 65536 // as in bench/live.py; a power of two

struct frame {
	__u8 ethernet[14];
	__u8 ip_head[10];
	__u16 ip_checksum;
	__u32 client;
	__u32 vip;
	__u8 tcp_head[16];
	__u16 tcp_checksum;
	__u16 urgent;
} __attribute__((packed));

// Written by user space before a run. Sums are those of RFC 1071 over all that does not change, the fields themselves
// and the client left out.
struct load {
	__u32 interface;
	__u32 next;
	__u32 ip_sum;
	__u32 tcp_sum;
	__u32 clients[CLIENTS]; // as they lie in a packet
} farm_load SEC(".data.farm_load");

static __always_inline __u16 checksum(__u32 sum, __u32 client)
{
	sum += (client & 0xffff) + (client >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

SEC("xdp") int farm_send(struct xdp_md *ctx)
{
	struct frame *frame = (void *)(long)ctx->data;
	__u32 client = farm_load.clients[farm_load.next++ % CLIENTS];

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	frame->client = client;
	frame->ip_checksum = checksum(farm_load.ip_sum, client);
	frame->tcp_checksum = checksum(farm_load.tcp_sum, client);
	return bpf_redirect(farm_load.interface, 0);
}

SEC("xdp.frags") int farm_bare_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

char licence[] SEC("license") = "Dual BSD/GPL";
