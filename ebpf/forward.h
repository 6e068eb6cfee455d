// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Delivery `directed`: a frame that this node does not take is sent on to the one that does, out by the interface that
// it came in by. Only its Ethernet addresses change. Its new source address marks it: it begins as the farm's marker,
// then come the sender's number, so that a switch finds each of these addresses at one port, and how often the frame
// was sent on. So no disagreement of the nodes can make a frame go round for ever.
//
// A bucket in transition has one owner and, in a row that all nodes know alike, those that had it before. What belongs
// to a connection goes to the owner first; if no socket claims it there, along the row until one does.
#ifndef FARM_FORWARD_H
#define FARM_FORWARD_H

#include "table.h"

enum trail {
	TRAIL_HOPS = 0x7f,   // how often it was sent on
	TRAIL_SEARCH = 0x80, // past the owner: on its way along the row
};

static __always_inline struct farm_outcome outcome(enum farm_reason reason, __u32 rule)
{
	struct farm_outcome result = {.reason = reason, .node = FARM_NOBODY, .rule = rule};

	return result;
}

// The last byte of a marked source address; 0 if the frame comes from a client.
static __always_inline __u8 trail_of(const struct farm_table *t, const struct ethernet *eth)
{
	return load_32(eth->from) == t->marker ? eth->from[5] : 0;
}

static __always_inline int belongs_to_connection(__u8 segment)
{
	return segment == FOLLOWING || segment == REPORT;
}

// Who takes a packet of this bucket, which we do not. `otherwise`: nobody that we know.
static __always_inline struct farm_outcome find_taker(struct xdp_md *ctx, const struct farm_table *t, __u32 group,
						      __u32 bucket, __u8 state, __u8 segment,
						      struct farm_outcome otherwise)
{
	const struct farm_routes *routes = &farm_targets[group & (FARM_GROUPS - 1)];
	const struct ethernet *eth = (void *)(long)ctx->data;
	__u8 node;

	bucket &= FARM_BUCKETS - 1;
	node = *(volatile const __u8 *)&routes->owner[bucket];
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return otherwise;
	// We may not have opened yet what is ours: then too the connection lives where the bucket was before.
	if (unlikely(state & FARM_OWN || node == t->node || trail_of(t, eth) & TRAIL_SEARCH)) {
		node = *(volatile const __u8 *)&routes->next[bucket];
		if (!belongs_to_connection(segment) || node >= FARM_NODES || node == t->node)
			return otherwise;
		otherwise.reason = FARM_SENT_TO_PREVIOUS;
	} else {
		if (unlikely(node >= FARM_NODES))
			return otherwise;
		otherwise.reason = FARM_SENT_TO_OWNER;
	}
	otherwise.node = node;
	return otherwise;
}

// Addresses the frame to the node that takes it. The reason, which is another one if that cannot be done.
static __always_inline enum farm_reason readdress(struct xdp_md *ctx, const struct farm_table *t,
						  enum farm_reason reason, __u32 node)
{
	struct ethernet *eth = (void *)(long)ctx->data;
	__u32 place = interface_place(t, ctx);
	__u16 *from = (__u16 *)eth->from;
	__u32 trail, marker = t->marker;
	__u64 mac;

	if (place == FARM_INTERFACES || (void *)(eth + 1) > (void *)(long)ctx->data_end)
		return FARM_DROP_NO_INTERFACE;
	trail = trail_of(t, eth);
	if (unlikely((trail & TRAIL_HOPS) >= FARM_HOPS))
		return FARM_DROP_HOP_LIMIT;
	mac = *(volatile __u64 *)&farm_neighbours.mac[place & (FARM_INTERFACES - 1)][node & (FARM_NODES - 1)];
	if (unlikely(!mac))
		return FARM_DROP_MAC_UNKNOWN;
	trail = (trail & TRAIL_HOPS) + 1;
	if (reason == FARM_SENT_TO_PREVIOUS)
		trail |= TRAIL_SEARCH;
	copy_mac(eth->to, &mac);
	from[0] = marker;
	from[1] = marker >> 16;
	from[2] = t->node | trail << 8;
	return reason;
}

// Sends a frame on if that is its outcome; the outcome after that.
static __always_inline struct farm_outcome forward(struct xdp_md *ctx, const struct farm_table *t,
						   struct farm_outcome result)
{
	if (result.reason < FARM_FIRST_SENT || result.reason >= FARM_FIRST_DROP)
		return result;
	result.reason = readdress(ctx, t, result.reason, result.node);
	if (result.reason == FARM_DROP_NO_INTERFACE)
		result.rule = 0;
	return result;
}

// Is this the MAC address of a node of the farm, on the interface that the frame came in on?
static __always_inline int is_node_mac(const struct farm_table *t, const struct xdp_md *ctx, const void *mac)
{
	__u32 place = interface_place(t, ctx);
	__u64 wanted = 0;

	copy_mac(&wanted, mac);
	if (!wanted)
		return 0;
	for (int node = 0; node < FARM_NODES && place < FARM_INTERFACES; node++) {
		if (*(volatile __u64 *)&farm_neighbours.mac[place][node] == wanted)
			return 1;
	}
	return 0;
}

#endif
