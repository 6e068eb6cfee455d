// SPDX-License-Identifier: Apache-2.0
// The filter, compiled for this machine, between helpers that keep the kernel's promises and no more.
#include "maps.h"
#include "harness.h"

// What the program that runs now has in its hands.
static struct {
	struct node *node;
	const struct request *request;
	struct bpf_sock *socket;    // looked up and not yet released
	struct farm_counts *counts; // of the rule below
	__u32 counted_rule;
	__u32 countings; // how often it asked for a counter
	__u32 group;	 // whose planes it asked last,
	__u32 bucket;	 // and for which bucket
	struct farm_sample *reserved;
	struct farm_sample told; // to whoever traces, as we do all the time
	__u32 tellings;
} running;

// The filter's variables are those of the node that it runs on.
#define farm_in_use	 (*running.node->active)
#define farm_generations running.node->tables
#define farm_groups	 running.node->planes
#define farm_targets	 running.node->routes
#define farm_neighbours	 (*running.node->macs)
#define farm_deadline	 (*running.node->lease)

#include "table.h"

// Which bucket a packet fell into is what the oracle wants to know. All who ask for a bucket's state come by here.
static inline __u8 seen_bucket_state(__u32 group, __u32 bucket)
{
	running.group = group;
	running.bucket = bucket;
	return bucket_state(group, bucket);
}

#define bucket_state seen_bucket_state
#include "farm.bpf.c"
#undef bucket_state

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define REQUIRE_INITIALIZED(memory, bytes) __msan_check_mem_is_initialized(memory, bytes)
#else
#define REQUIRE_INITIALIZED(memory, bytes) (void)0
#endif

void require(int condition, const char *rule)
{
	if (condition)
		return;
	fprintf(stderr, "the filter broke a rule: %s\n", rule);
	abort();
}

static void *new_block(size_t bytes)
{
	void *block = calloc(1, bytes);

	require(block != NULL, "there is memory");
	return block;
}

struct node *node_new(void)
{
	struct node *node = new_block(sizeof(*node));

	node->active = new_block(sizeof(*node->active));
	node->tables = new_block(sizeof(*node->tables) * FARM_GENERATIONS);
	node->planes = new_block(sizeof(*node->planes) * FARM_GROUPS);
	node->routes = new_block(sizeof(*node->routes) * FARM_GROUPS);
	node->macs = new_block(sizeof(*node->macs));
	node->lease = new_block(sizeof(*node->lease));
	node->fragments = new_block(sizeof(*node->fragments) * FRAGMENT_SLOTS);
	node->age = 1;
	return node;
}

void node_configure(struct node *node, const struct farm_table *table)
{
	node->active->generation = 1 - node->active->generation;
	node->tables[node->active->generation] = *table;
	node_forget_fragments(node);
}

void node_forget_fragments(struct node *node)
{
	node->age++;
}

// The slot of a datagram: the one that it has, else a free one, else that of another.
static struct fragment_slot *fragment_slot(const struct farm_fragment *key)
{
	struct node *node = running.node;
	__u64 mixed =
	    key->client.words[0] ^ key->client.words[1] ^ (__u64)key->id << 32 ^ key->vip << 8 ^ key->protocol;
	__u32 home = mixed * 0x9e3779b97f4a7c15ULL >> 50;
	struct fragment_slot *slot = NULL;

	REQUIRE_INITIALIZED(key, sizeof(*key));
	for (int i = 0; i < FRAGMENT_PROBES; i++) {
		slot = &node->fragments[(home + i) % FRAGMENT_SLOTS];
		if (slot->age != node->age || !memcmp(&slot->key, key, sizeof(*key)))
			break;
	}
	return slot;
}

static void *counts_of(__u32 rule)
{
	if (rule >= FARM_COUNTERS)
		return NULL;
	running.countings++;
	running.counted_rule = rule;
	return running.counts;
}

void *bpf_map_lookup_elem(const void *map, const void *key)
{
	struct fragment_slot *slot;
	__u32 index;

	if (map == &farm_fragments) {
		slot = fragment_slot(key);
		return slot->age == running.node->age && !memcmp(&slot->key, key, sizeof(slot->key)) ? &slot->value
												     : NULL;
	}
	require(map == &farm_counters, "only maps of its own are looked up");
	REQUIRE_INITIALIZED(key, sizeof(index));
	memcpy(&index, key, sizeof(index));
	return counts_of(index);
}

long bpf_map_update_elem(const void *map, const void *key, const void *value, __u64 flags)
{
	struct fragment_slot *slot;

	require(map == &farm_fragments && flags == BPF_ANY, "only fragments are remembered");
	REQUIRE_INITIALIZED(value, sizeof(slot->value));
	slot = fragment_slot(key);
	memcpy(&slot->key, key, sizeof(slot->key));
	memcpy(&slot->value, value, sizeof(slot->value));
	slot->age = running.node->age;
	return 0;
}

__u64 bpf_jiffies64(void)
{
	return running.node->jiffies;
}

__u64 bpf_ktime_get_boot_ns(void)
{
	return running.node->boot_ns;
}

__u64 bpf_ktime_get_ns(void)
{
	return running.node->boot_ns;
}

void *bpf_ringbuf_reserve(void *map, __u64 bytes, __u64 flags)
{
	require(map == &farm_samples && bytes == sizeof(struct farm_sample) && !flags, "samples go to their ring");
	require(!running.reserved, "every sample is told or discarded");
	running.reserved = new_block(bytes);
	return running.reserved;
}

void bpf_ringbuf_submit(void *record, __u64 flags)
{
	require(record == running.reserved && !flags, "what is told was reserved");
	REQUIRE_INITIALIZED(record, sizeof(running.told));
	running.told = *running.reserved;
	running.tellings++;
	bpf_ringbuf_discard(record, 0);
}

void bpf_ringbuf_discard(void *record, __u64 flags)
{
	require(record == running.reserved && !flags, "what is discarded was reserved");
	free(running.reserved);
	running.reserved = NULL;
}

static size_t frame_bytes(const struct xdp_md *ctx)
{
	return ctx->data_end - ctx->data;
}

long bpf_xdp_load_bytes(struct xdp_md *ctx, __u32 offset, void *to, __u32 bytes)
{
	if (offset > frame_bytes(ctx) || bytes > frame_bytes(ctx) - offset)
		return -1;
	memcpy(to, (void *)(ctx->data + offset), bytes);
	return 0;
}

// Puts a frame into a block of its own. What points into the old one is stale from here on, as it is in the kernel.
static void replace_frame(struct xdp_md *ctx, const void *bytes, size_t size, size_t kept)
{
	__u8 *block = new_block(size ? size : 1);

	memcpy(block, bytes, kept);
	free((void *)ctx->data);
	ctx->data = (__u64)block;
	ctx->data_end = (__u64)(block + size);
}

long bpf_xdp_adjust_tail(struct xdp_md *ctx, int delta)
{
	size_t before = frame_bytes(ctx);
	long after = (long)before + delta;

	if (after < ETH_HLEN || (delta > 0 && (delta > TAILROOM || running.request->no_room)))
		return -1;
	replace_frame(ctx, (void *)ctx->data, after, (size_t)after < before ? (size_t)after : before);
	return 0;
}

__s64 bpf_csum_diff(__be32 *from, __u32 from_bytes, __be32 *to, __u32 to_bytes, __u32 seed)
{
	__u64 sum = seed;

	require(!from && !from_bytes && to_bytes % 4 == 0 && to_bytes <= 512, "checksums are taken of whole words");
	for (__u32 i = 0; i < to_bytes / 4; i++)
		sum += to[i];
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__u32)((sum & 0xffffffff) + (sum >> 32));
}

struct bpf_sock *bpf_skc_lookup_tcp(void *ctx, struct bpf_sock_tuple *tuple, __u32 bytes, __u64 netns, __u64 flags)
{
	const struct socket_script *script = &running.request->socket;

	require(ctx && netns == (__u64)BPF_F_CURRENT_NETNS && !flags, "sockets are looked for in this namespace");
	require(bytes == sizeof(tuple->ipv4) || bytes == sizeof(tuple->ipv6), "a tuple is of IPv4 or of IPv6");
	require(!running.socket, "a socket is released before the next is looked up");
	REQUIRE_INITIALIZED(tuple, bytes);
	if (!script->state)
		return NULL;
	if (script->tuple_bytes != ANY_TUPLE && (script->tuple_bytes != bytes || memcmp(script->tuple, tuple, bytes)))
		return NULL;
	running.socket = new_block(sizeof(*running.socket));
	running.socket->state = script->state;
	return running.socket;
}

long bpf_sk_release(void *sk)
{
	require(sk && sk == running.socket, "only a socket that was looked up is released");
	free(sk);
	running.socket = NULL;
	return 0;
}

struct tcp_request_sock *bpf_skc_to_tcp_request_sock(void *sk)
{
	static struct tcp_request_sock half_open;

	require(sk && sk == running.socket, "only a socket in hand is looked into");
	if (running.socket->state != BPF_TCP_NEW_SYN_RECV)
		return NULL;
	half_open.snt_isn = running.request->socket.snt_isn;
	return &half_open;
}

long bpf_tcp_check_syncookie(void *sk, void *ip, __u32 ip_bytes, struct tcphdr *tcp, __u32 tcp_bytes)
{
	struct iphdr ipv4;
	struct tcphdr copy;

	require(sk && sk == running.socket && running.socket->state == BPF_TCP_LISTEN, "a listener checks cookies");
	require(ip_bytes == sizeof(struct iphdr) || ip_bytes == sizeof(struct ipv6hdr), "cookies come by IP");
	require(tcp_bytes >= sizeof(copy), "cookies come by TCP");
	memcpy(&ipv4, ip, sizeof(ipv4));
	memcpy(&copy, (__u8 *)ip + ip_bytes - sizeof(copy), sizeof(copy)); // to be sure that it can be read to its end
	memcpy(&copy, tcp, sizeof(copy));
	require(ipv4.version == (ip_bytes == sizeof(struct iphdr) ? 4 : 6), "an IP header is handed over");
	if (copy.syn || copy.rst || !copy.ack)
		return -1;
	return bpf_ntohl(copy.ack_seq) == running.request->socket.cookie + 1 ? 0 : -1;
}

// Runs one of the two programs on a copy of the frame, and leaves what became of it in *ctx.
static __u32 run(int (*program)(struct xdp_md *), struct node *node, const struct request *request, const __u8 *frame,
		 struct xdp_md *ctx)
{
	static struct farm_counts counts;
	int result;

	memset(&counts, 0, sizeof(counts));
	memset(&running, 0, sizeof(running));
	memset(ctx, 0, sizeof(*ctx));
	running.node = node;
	running.request = request;
	running.counts = &counts;
	replace_frame(ctx, frame, request->bytes, request->bytes);
	ctx->ingress_ifindex = request->ifindex;
	running.group = running.bucket = NO_BUCKET;
	farm_watch = (struct farm_watch){.open = 1, .verdicts = ~0U, .until_ns = ~0ULL, .frames_a_window = ~0ULL};
	result = program(ctx);
	require(!running.socket, "every socket is released");
	require(!running.reserved, "every sample is told or discarded");
	return result;
}

// Whoever traces is told what was done, and shown the frame as it left.
static void check_sample(const struct xdp_md *ctx, const struct reply *reply)
{
	const struct farm_sample *told = &running.told;
	size_t bytes = frame_bytes(ctx);

	require(running.tellings == 1, "a packet is told once");
	require(told->reason == reply->reason && told->rule == reply->rule && told->verdict == reply->verdict,
		"what is told is what was done");
	require(told->length == bytes && told->captured == (bytes < FARM_SAMPLE_HEAD ? bytes : FARM_SAMPLE_HEAD),
		"a sample has the frame's length");
	require(!memcmp(told->head, (void *)ctx->data, told->captured), "a sample shows the frame");
}

static void check_twin(struct node *node, const struct request *request, const __u8 *frame, const struct xdp_md *out,
		       const struct reply *reply)
{
	struct xdp_md ctx;
	__u32 verdict = run(farm_filter, node, request, frame, &ctx);

	require(verdict == reply->verdict, "the twin tells the verdict");
	require(frame_bytes(&ctx) == frame_bytes(out) && !memcmp((void *)ctx.data, (void *)out->data, frame_bytes(out)),
		"the twin changes the frame alike");
	if (reply->reason == FARM_NOT_VIP) {
		require(!running.countings && !running.tellings, "what is not for a VIP is not counted");
	} else {
		require(running.countings == 1 && running.counted_rule == reply->rule, "a packet is counted once");
		require(running.counts->packets[reply->reason] == 1, "a packet is counted under its reason");
		check_sample(&ctx, reply);
	}
	free((void *)ctx.data);
}

struct reply node_judge(struct node *node, const struct request *request, __u8 *frame)
{
	struct reply reply = {};
	struct xdp_md ctx;
	__u32 told = run(farm_explain, node, request, frame, &ctx);

	require(!running.countings && !running.tellings, "the twin counts and tells nothing");
	reply.verdict = told & 0xff;
	reply.reason = told >> 8 & 0xff;
	reply.rule = told >> 16;
	reply.group = running.group;
	reply.bucket = running.bucket;
	reply.bytes = frame_bytes(&ctx);
	require(reply.reason < FARM_UNDECIDED && reply.rule <= FARM_RULES, "every packet has a reason");
	check_twin(node, request, frame, &ctx, &reply);
	memcpy(frame, (void *)ctx.data, reply.bytes);
	free((void *)ctx.data);
	return reply;
}

int node_renew(struct node *node, struct farm_lease_call *call)
{
	memset(&running, 0, sizeof(running));
	running.node = node;
	return farm_renew(call);
}
