// SPDX-License-Identifier: Apache-2.0
// What must hold of every frame, whatever is in it. The same frames come to the nodes of a farm that share the buckets
// out among them; the first bytes of the input choose the farm, the rest is the frames.
#include <linux/if_ether.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "harness.h"

enum fuzz_limit {
	NODES = 3,
	SPLITS = 8, // ways of sharing the buckets out; in the odd ones, buckets are in transition
	VARIANTS = 16,
	HEAD_BYTES = 8,
	MAX_FRAMES = 8,
	SPAN = 2047, // of a frame's length
	IFINDEX = 2,
	LISTEN = 10, // BPF_TCP_LISTEN
	VERDICT_DROP = 1,
	VERDICT_PASS = 2,
	VERDICT_TX = 3,
};

// tests/native/build.py writes the tables: a struct farm_table each.
__asm__(".pushsection .rodata\n.balign 8\nvariants:\n.incbin \"" VARIANTS_FILE "\"\nvariants_end:\n.popsection\n");
extern const struct farm_table variants[], variants_end[];

// One farm for each table.
static struct farm {
	struct node *all_own;	// owns every bucket
	struct node *all_fresh; // has just got every bucket
	struct node *closed;	// owns every bucket, but its lease is over
	struct node *nodes[NODES];
	const struct farm_table *table;
} farms[VARIANTS];

static struct farm_planes splits[SPLITS][NODES][FARM_GROUPS];
static struct farm_planes directed_splits[SPLITS][NODES][FARM_GROUPS]; // the same in delivery `directed`
static struct farm_routes routes[SPLITS][NODES][FARM_GROUPS];
static struct farm_macs macs; // where the nodes are; NODES - 1 has not said it
static unsigned int farm_count;

static uint32_t draw(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 16;
}

// What the node knows of the others: who owns the bucket, and whom the owner asks for connections.
static void direct(int split, int group, int bucket, uint32_t owner, uint32_t holder)
{
	for (uint32_t node = 0; node < NODES; node++) {
		uint8_t state = splits[split][node][group].state[bucket];
		struct farm_routes *known = &routes[split][node][group];

		directed_splits[split][node][group].state[bucket] = state == FARM_OWN ? state : state | FARM_SEND_ON;
		known->owner[bucket] = owner;
		known->next[bucket] = node == owner ? holder : FARM_NOBODY;
	}
}

// Every bucket has one owner. In transition another node holds its connections.
static void share_out(int split)
{
	uint32_t state = split + 1;

	for (int group = 0; group < FARM_GROUPS; group++) {
		for (int bucket = 0; bucket < FARM_BUCKETS; bucket++) {
			uint32_t owner = draw(&state) % NODES, moving = split & 1 && draw(&state) & 1;
			uint32_t before = (owner + 1 + draw(&state) % (NODES - 1)) % NODES;

			splits[split][owner][group].state[bucket] = moving ? FARM_OWN | FARM_FRESH : FARM_OWN;
			if (moving)
				splits[split][before][group].state[bucket] = FARM_HELD;
			direct(split, group, bucket, owner, moving ? before : FARM_NOBODY);
		}
	}
}

static struct node *make_node(const struct farm_table *table, uint8_t state, uint64_t lease)
{
	struct node *node = node_new();

	node_configure(node, table);
	node->jiffies = 1000;
	*node->lease = lease;
	memset(node->planes, state, sizeof(*node->planes) * FARM_GROUPS);
	return node;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	farm_count = variants_end - variants;
	require(farm_count && farm_count <= VARIANTS, "there are tables");
	for (int split = 0; split < SPLITS; split++)
		share_out(split);
	for (int node = 0; node < NODES - 1; node++)
		macs.mac[0][node] = 0x0200000002ULL | (uint64_t)(node + 1) << 40;
	for (unsigned int i = 0; i < farm_count; i++) {
		farms[i].table = &variants[i];
		farms[i].all_own = make_node(&variants[i], FARM_OWN, 2000);
		farms[i].all_fresh = make_node(&variants[i], FARM_OWN | FARM_FRESH, 2000);
		farms[i].closed = make_node(&variants[i], FARM_OWN, 1000);
		for (int k = 0; k < NODES; k++) {
			farms[i].nodes[k] = make_node(&variants[i], 0, 1001);
			free(farms[i].nodes[k]->planes); // it has a share instead
			free(farms[i].nodes[k]->routes);
			farms[i].nodes[k]->planes = splits[0][k];
			farms[i].nodes[k]->routes = routes[0][k];
			farms[i].nodes[k]->tables[farms[i].nodes[k]->active->generation].node = k;
			*farms[i].nodes[k]->macs = macs;
		}
	}
	return 0;
}

static int served(struct reply reply)
{
	if (reply.verdict == VERDICT_PASS)
		return reply.reason != FARM_NOT_VIP;
	return reply.reason == FARM_ARP_ANSWERED || reply.reason == FARM_ND_ANSWERED;
}

// What a frame may become: untouched; or readdressed to the interface; or an answer that comes from the interface.
static void check_frame(const struct reply *reply, const struct request *request, const uint8_t *in, const uint8_t *out,
			const struct farm_table *table)
{
	const uint8_t *mac = table->interfaces[0].mac;
	const uint8_t all_nodes[] = {0x33, 0x33, 0, 0, 0, 1};

	if (reply->reason == FARM_SENT_TO_OWNER || reply->reason == FARM_SENT_TO_PREVIOUS) {
		require(reply->verdict == VERDICT_TX && table->directed, "only directed farms send on");
		require(reply->bytes == request->bytes, "the length stays");
		require(!memcmp(out + ETH_ALEN, &table->marker, sizeof(table->marker)), "what was sent on is marked");
		require((out[11] & 0x7f) && (out[11] & 0x7f) <= FARM_HOPS, "hops are counted up to the bound");
		require(memcmp(in + ETH_ALEN, &table->marker, sizeof(table->marker)) ||
			    (in[11] & 0x7f) + 1 == (out[11] & 0x7f),
			"each hop counts one");
		require(!memcmp(in + ETH_HLEN - 2, out + ETH_HLEN - 2, reply->bytes - ETH_HLEN + 2),
			"all else is untouched");
		require(request->ifindex == IFINDEX, "nothing is sent on by a foreign interface");
		return;
	}
	if (reply->verdict == VERDICT_TX) {
		require(reply->reason == FARM_ARP_ANSWERED || reply->reason == FARM_ND_ANSWERED, "only answers leave");
		require(!memcmp(out + ETH_ALEN, mac, ETH_ALEN), "an answer comes from the interface");
		require(!memcmp(out, in + ETH_ALEN, ETH_ALEN) || !memcmp(out, all_nodes, ETH_ALEN) ||
			    (table->directed && !memcmp(in + ETH_ALEN, &table->marker, sizeof(table->marker)) &&
			     !(out[0] & 1)),
			"an answer goes to who asked");
		require(request->ifindex == IFINDEX, "no answer on a foreign interface");
		return;
	}
	if (reply->verdict == VERDICT_PASS)
		require(reply->bytes == request->bytes, "the length stays");
	if (reply->reason == FARM_NOT_VIP) {
		require(reply->verdict == VERDICT_PASS, "other traffic passes");
		require(!memcmp(in, out, reply->bytes), "other traffic is untouched");
	} else if (reply->verdict == VERDICT_PASS) {
		require(reply->reason < FARM_FIRST_ANSWER, "only an accepted frame passes");
		require(!memcmp(out, mac, ETH_ALEN), "an accepted frame is for the interface");
		require(!memcmp(in + ETH_ALEN, out + ETH_ALEN, reply->bytes - ETH_ALEN), "all else is untouched");
	} else {
		require(reply->verdict == VERDICT_DROP && reply->reason >= FARM_FIRST_DROP, "the rest is dropped");
	}
}

static struct reply judge(struct node *node, const struct request *request, const uint8_t *frame)
{
	static uint8_t out[LONGEST_FRAME + TAILROOM];
	struct reply reply;

	memcpy(out, frame, request->bytes);
	reply = node_judge(node, request, out);
	check_frame(&reply, request, frame, out, &node->tables[node->active->generation]);
	return reply;
}

// A frame comes to all nodes. `socket_at`: the one node that has a socket for it; NODES: none has.
static void check_farm(struct farm *farm, int settled, struct request request, const uint8_t *frame, int socket_at)
{
	const struct socket_script script = request.socket, none = {};
	struct reply own, fresh, closed;
	int answers = 0;

	request.socket = none;
	own = judge(farm->all_own, &request, frame);
	fresh = judge(farm->all_fresh, &request, frame);
	closed = judge(farm->closed, &request, frame);
	require((own.reason == FARM_NOT_VIP) == (closed.reason == FARM_NOT_VIP),
		"the lease does not say what a VIP is");
	require(!served(closed), "nothing is served after the lease");
	for (int k = 0; k < NODES; k++) {
		request.socket = k == socket_at ? script : none;
		answers += served(judge(farm->nodes[k], &request, frame));
	}
	if (settled) {
		require(answers == served(own), "exactly one node serves what the farm serves");
		return;
	}
	if (socket_at < NODES && fresh.reason == FARM_ACCEPT_FRESH_NEW)
		return; // a SYN on the ports of a stale connection goes to both
	require(answers <= 1, "never do two nodes serve a frame");
	if (served(fresh))
		require(answers == 1, "what opens is served, also while its bucket moves");
}

// A lease that was written is never late, and what is told of it is true.
static void check_lease(struct node *node, const uint8_t *head)
{
	static const uint64_t ticks[] = {1000000, 4000000, 10000000, 3333333};
	struct farm_lease_call call = {.verb = FARM_LEASE_WRITE, .tick_ns = ticks[head[0] & 3]};
	uint64_t given, left;

	memcpy(&node->boot_ns, head, 6);
	memcpy(&call.deadline_ns, head + 1, 6);
	given = call.deadline_ns > node->boot_ns ? call.deadline_ns - node->boot_ns : 0;
	require(!node_renew(node, &call), "the lease can be written");
	left = *node->lease > node->jiffies ? *node->lease - node->jiffies : 0;
	require(!left || (left + FARM_LEASE_MARGIN_TICKS) * call.tick_ns <= given, "the lease ends early, never late");
	require(left + FARM_LEASE_MARGIN_TICKS + 1 > given / call.tick_ns, "the lease is given but for its margin");
	require(call.left_ns == (int64_t)(left * call.tick_ns), "what is left is told");
}

static void run_frames(struct farm *farm, const uint8_t *head, const uint8_t *data, size_t size, int socket_at)
{
	const int split = head[1] % SPLITS;

	node_forget_fragments(farm->all_own);
	node_forget_fragments(farm->all_fresh);
	node_forget_fragments(farm->closed);
	for (int k = 0; k < NODES; k++) {
		node_forget_fragments(farm->nodes[k]);
		farm->nodes[k]->planes = farm->table->directed ? directed_splits[split][k] : splits[split][k];
		farm->nodes[k]->routes = routes[split][k];
	}
	for (int i = 0; i < MAX_FRAMES && size > 2; i++) {
		struct request request = {.ifindex = head[2] & 1 ? 99 : IFINDEX, .no_room = head[2] >> 1 & 1};
		size_t length = (data[0] | data[1] << 8) & SPAN;

		data += 2;
		size -= 2;
		request.bytes = length < size ? length : size;
		if (request.bytes >= ETH_HLEN) { // the kernel hands over no less
			request.socket.state = head[3] % 14;
			request.socket.tuple_bytes = ANY_TUPLE;
			memcpy(&request.socket.snt_isn, head + 4, 3); // the last byte says where the socket is
			request.socket.cookie = request.socket.snt_isn;
			check_farm(farm, !(split & 1), request, data, socket_at);
		}
		data += request.bytes;
		size -= request.bytes;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct farm *farm;

	if (size < HEAD_BYTES)
		return 0;
	farm = &farms[data[0] % farm_count];
	run_frames(farm, data, data + HEAD_BYTES, size - HEAD_BYTES, NODES);
	run_frames(farm, data, data + HEAD_BYTES, size - HEAD_BYTES, data[7] % NODES);
	check_lease(farm->closed, data);
	*farm->closed->lease = farm->closed->jiffies;
	return 0;
}
