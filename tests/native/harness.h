// SPDX-License-Identifier: Apache-2.0
// The filter as a function of a process. A node is the state of one kernel; a frame lies in a block of exactly its
// size, so that the sanitizers see every read beside it.
#ifndef NATIVE_HARNESS_H
#define NATIVE_HARNESS_H

#include <linux/types.h>
#include "farm_abi.h"

enum native_limit {
	LONGEST_FRAME = 4096,
	TAILROOM = 256, // bytes by which a frame can grow
	TUPLE_BYTES = 36,
	ANY_TUPLE = 255,
	NO_BUCKET = 0xffff,
};

// The one TCP socket that a node has. Wire format between driver.c and Python.
struct socket_script {
	__u8 state;	  // BPF_TCP_*; 0: there is no socket
	__u8 tuple_bytes; // 12 (IPv4), 36 (IPv6) or ANY_TUPLE
	__u8 tuple[TUPLE_BYTES];
	__u8 unused[2];
	__u32 snt_isn; // what its SYN-ACK was numbered
	__u32 cookie;  // a listener takes an ACK of this number plus one for the return of its cookie
} __attribute__((packed));

// One frame comes in.
struct request {
	__u32 ifindex;
	__u16 bytes;
	__u8 no_room; // the frame cannot grow
	__u8 unused;
	struct socket_script socket;
} __attribute__((packed));

// What became of it.
struct reply {
	__u8 verdict; // enum xdp_action
	__u8 reason;  // enum farm_reason
	__u16 rule;
	__u16 group;  // whose planes were asked last; NO_BUCKET: none were
	__u16 bucket; // for which bucket
	__u16 bytes;  // of the frame that left
	__u16 unused;
} __attribute__((packed));

struct fragment_slot {
	struct farm_fragment key;
	struct farm_outcome value;
	__u32 age; // of the node when it was written; another age: the slot is free
};

enum fragment_slots {
	FRAGMENT_SLOTS = 16384,
	FRAGMENT_PROBES = 16,
};

struct node {
	struct farm_active *active;
	struct farm_table *tables;  // FARM_GENERATIONS
	struct farm_planes *planes; // FARM_GROUPS
	struct farm_routes *routes; // FARM_GROUPS
	struct farm_macs *macs;
	__u64 *lease;
	struct fragment_slot *fragments;
	__u32 age;
	__u64 jiffies;
	__u64 boot_ns;
};

struct node *node_new(void);

// Makes this table the node's, in the generation that was not in use. Fragments are forgotten.
void node_configure(struct node *node, const struct farm_table *table);
void node_forget_fragments(struct node *node);

// Judges a frame by the attached program and by its twin, which must agree. `frame` has LONGEST_FRAME + TAILROOM
// bytes and is replaced by what left. Ends the process if the filter breaks a rule of the kernel's.
struct reply node_judge(struct node *node, const struct request *request, __u8 *frame);

// Runs the lease program; its return value.
int node_renew(struct node *node, struct farm_lease_call *call);

// Ends the process with this sentence, in the way that sanitizers and fuzzers understand.
void require(int condition, const char *rule);

#endif
