// SPDX-License-Identifier: Apache-2.0
// The probes of `farmctl trace`, compiled by bcc when it starts. Everything in capitals is defined by
// farmd/trace/program.py: offsets of the running kernel, this namespace, the filter of clients, the bounds.
// Kernel memory is read by explicit calls only, so that no header's idea of a struct matters.
#include <uapi/linux/bpf.h>

enum form {
	NONE,
	IP,
	TUPLE
};

struct address {
	u64 words[2];
};

struct tuple {
	struct address source;
	struct address target;
	u16 source_port; // host order
	u16 target_port;
};

struct record {
	u64 at_ns; // CLOCK_MONOTONIC
	u32 kind;
	u32 reason;
	u32 captured; // bytes of it in `head`
	u32 form;     // what `head` holds
	u8 head[HEAD];
};

struct allowance {
	u64 window;
	u64 used;
};

BPF_RINGBUF_OUTPUT(records, RING_PAGES);
BPF_HASH(vips, struct address, u8, MAX_VIPS);
BPF_ARRAY(allowances, struct allowance, 1);
BPF_ARRAY(suppressed, u64, 1);

static inline u64 read_u64(u64 at)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)at);
	return value;
}

static inline u32 read_u32(u64 at)
{
	u32 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)at);
	return value;
}

static inline u16 read_u16(u64 at)
{
	u16 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)at);
	return value;
}

static inline u16 swapped(u16 value)
{
	return value >> 8 | value << 8;
}

static inline struct address address_v4(u64 at)
{
	struct address result = {};

	result.words[1] = (u64)read_u32(at) << 32 | 0xffff0000ULL;
	return result;
}

static inline struct address address_v6(u64 at)
{
	struct address result = {};

	bpf_probe_read_kernel(&result, sizeof(result), (void *)at);
	return result;
}

static inline int is_wanted(struct address *client, struct address *vip)
{
	if (!vips.lookup(vip))
		return 0;
	return (client->words[0] & CLIENT_MASK_0) == CLIENT_0 && (client->words[1] & CLIENT_MASK_1) == CLIENT_1;
}

// Whether a packet between these two is one of ours, whichever way it goes.
static inline int is_ours(struct address *one, struct address *other)
{
	return is_wanted(one, other) || is_wanted(other, one);
}

// An IP packet at `at`; addresses that cannot be read are nobody's.
static inline int ip_is_ours(u64 at)
{
	struct address source, target;
	u8 version = 0;

	bpf_probe_read_kernel(&version, 1, (void *)at);
	if (version >> 4 == 4) {
		source = address_v4(at + 12);
		target = address_v4(at + 16);
	} else if (version >> 4 == 6) {
		source = address_v6(at + 8);
		target = address_v6(at + 24);
	} else {
		return 0;
	}
	return is_ours(&source, &target);
}

static inline int is_here(u64 net)
{
	return net && read_u32(net + NET_INUM) == NAMESPACE;
}

// Whether an skb is this namespace's. TCP takes the device off what it has received; then the route or the socket
// tells.
static inline int skb_is_here(u64 skb)
{
	u64 device = read_u64(skb + SKB_DEV), net = device ? read_u64(device + DEVICE_NET) : 0;

	if (!net) {
		device = read_u64((read_u64(skb + SKB_DST) & ~1ULL) + DST_DEV);
		net = device ? read_u64(device + DEVICE_NET) : 0;
	}
	if (!net)
		net = read_u64(read_u64(skb + SKB_SK) + SOCK_NET);
	return is_here(net);
}

// The bound on what user space gets: so many in each tenth of a second.
static inline int allowed(u64 now)
{
	u32 zero = 0;
	struct allowance *a = allowances.lookup(&zero);
	u64 *missed = suppressed.lookup(&zero);

	if (!a || !missed)
		return 0;
	if (a->window != now / 100000000) {
		a->window = now / 100000000;
		a->used = 0;
	}
	if (a->used >= EVENT_LIMIT) {
		__sync_fetch_and_add(missed, 1);
		return 0;
	}
	a->used++;
	return 1;
}

static inline struct record *begin(u32 kind)
{
	u64 now = bpf_ktime_get_ns();
	struct record *r;

	if (!allowed(now))
		return NULL;
	r = records.ringbuf_reserve(sizeof(*r));
	if (!r)
		return NULL;
	r->at_ns = now;
	r->kind = kind;
	r->reason = 0;
	r->captured = 0;
	r->form = NONE;
	return r;
}

static inline void copy_head(struct record *r, u64 at, u32 available, u32 form)
{
	u32 size = available < HEAD ? available : HEAD;

	r->form = form;
	r->captured = size;
	bpf_probe_read_kernel(r->head, HEAD, (void *)at);
}

// Where the kernel runs XDP programs on an skb, and frees what they drop.
static inline int is_filter(u64 where)
{
	return FILTER_CODE;
}

RAW_TRACEPOINT_PROBE(kfree_skb)
{
	u64 skb = ctx->args[0], packet;
	struct record *r;

	if (is_filter(ctx->args[1]))
		return 0; // a verdict, which is seen at its source
	packet = read_u64(skb + SKB_HEAD) + read_u16(skb + SKB_NETWORK);
	if (!ip_is_ours(packet) || !skb_is_here(skb))
		return 0;
	r = begin(KIND_STACK_DROP);
	if (!r)
		return 0;
	r->reason = ctx->args[2];
	copy_head(r, packet, HEAD, IP);
	records.ringbuf_submit(r, 0);
	return 0;
}

// A connection by its socket: the local side is the source.
static inline int read_socket(u64 sk, struct tuple *t)
{
	if (!is_here(read_u64(sk + SOCK_NET)))
		return 0;
	if (read_u16(sk + SOCK_FAMILY) == 2) {
		t->source = address_v4(sk + SOCK_LOCAL);
		t->target = address_v4(sk + SOCK_REMOTE);
	} else {
		t->source = address_v6(sk + SOCK_LOCAL6);
		t->target = address_v6(sk + SOCK_REMOTE6);
	}
	t->source_port = read_u16(sk + SOCK_LOCAL_PORT);
	t->target_port = swapped(read_u16(sk + SOCK_REMOTE_PORT));
	return is_ours(&t->source, &t->target);
}

static inline int tell_socket(u64 sk, u32 kind, u32 reason)
{
	struct tuple t = {};
	struct record *r;

	if (!sk || !read_socket(sk, &t))
		return 0;
	r = begin(kind);
	if (!r)
		return 0;
	r->reason = reason;
	r->form = TUPLE;
	r->captured = sizeof(t);
	__builtin_memcpy(r->head, &t, sizeof(t));
	records.ringbuf_submit(r, 0);
	return 0;
}

RAW_TRACEPOINT_PROBE(tcp_receive_reset)
{
	return tell_socket(ctx->args[0], KIND_RESET_RECEIVED, 0);
}

RAW_TRACEPOINT_PROBE(tcp_retransmit_skb)
{
	return tell_socket(ctx->args[0], KIND_RETRANSMIT, 0);
}

// The segment that is answered with a reset, if there is one; else the connection that the kernel gives up.
RAW_TRACEPOINT_PROBE(tcp_send_reset)
{
	u64 skb = ctx->args[1], packet;
	struct record *r;

	if (!skb)
		return tell_socket(ctx->args[0], KIND_RESET_SENT, 0);
	packet = read_u64(skb + SKB_HEAD) + read_u16(skb + SKB_NETWORK);
	if (!ip_is_ours(packet) || !skb_is_here(skb))
		return 0;
	r = begin(KIND_RESET_SENT);
	if (!r)
		return 0;
	copy_head(r, packet, HEAD, IP);
	records.ringbuf_submit(r, 0);
	return 0;
}
