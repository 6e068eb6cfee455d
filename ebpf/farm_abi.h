// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// What the filter shares with user space. One source for three readers: clang (the filter), the C compiler (the Python
// binding) and cffi, which takes everything but the lines that start with '#'. So: no macros here, only enums and
// structs.
#ifndef FARM_ABI_H
#define FARM_ABI_H

#include <linux/types.h>

enum farm_limit {
	FARM_ABI_VERSION = 3, // raised whenever a pinned map changes its meaning: then a new filter takes fresh maps
	FARM_BUCKETS = 4096,
	FARM_GROUPS = 16,
	FARM_VIPS = 256,
	FARM_RULES = 1000,
	FARM_INTERFACES = 8,
	FARM_NODES = 64,       // node numbers are below it
	FARM_NOBODY = 255,     // in place of a node's number
	FARM_HOPS = 8,	       // how often a frame may be sent on from node to node
	FARM_GENERATIONS = 2,  // of the table: one is read while the other is written
	FARM_FRAGMENTS = 8192, // datagrams whose first fragment we remember
	FARM_REASONS = 32,
	FARM_COUNTERS = 1001, // index 0: VIP traffic that belongs to no rule; 1..1000: the rules
	// Open addressing: a key lies in its home slot or one of the next three, else the table does not hold it. User
	// space draws seeds until this is so. The tables are three slots longer than the homes, so probing never wraps.
	FARM_PROBES = 4,
	FARM_VIP_SHIFT = 54, // homes are the top bits of a 64-bit product: 1024, for IPv4 and for IPv6
	FARM_VIP_SLOTS = 1027,
	FARM_RULE_ROOM = 1024, // a power of two above FARM_RULES
	// The ports of a VIP and protocol are a book of 512 pages of 128 ports. Pages that are alike are one; a rule
	// makes three at most: where its ports begin, where they end, and all between.
	FARM_SERVICES = 512, // VIP and protocol
	FARM_PAGES = 512,
	FARM_PAGE_PORTS = 128,
	FARM_PAGE_SHIFT = 7,
	FARM_PAGE_ROOM = 4096, // different pages; 3 * FARM_RULES + 1 would do
	FARM_FACTORS = 5,
	// jiffies are advanced by one CPU. If a hypervisor stops that one, another steps in after five ticks, so what
	// we read may be late by six. The lease ends that much earlier, and so never late.
	FARM_LEASE_MARGIN_TICKS = 6,
	FARM_SAMPLE_HEAD = 160,	     // of a frame: two tags, IPv6 with extension headers, and TCP with options
	FARM_SAMPLE_BYTES = 0x40000, // of the ring that samples wait in
};

// State of a bucket: one byte of the group's planes, so that a move of a bucket is one store and needs no lock.
enum farm_state {
	FARM_OWN = 1,	// ours: accept
	FARM_HELD = 2,	// moved away, its connections may still live here
	FARM_FRESH = 4, // ours, but a live node still has connections of it; only together with FARM_OWN
	// Delivery `directed` only, beside the others or alone, in every bucket that is not just FARM_OWN: what is not
	// accepted here is sent on to the node that struct farm_routes names.
	FARM_SEND_ON = 8,
};

// What of a packet is hashed.
enum farm_affinity {
	FARM_CLIENT_IP,	     // the client's address
	FARM_CLIENT_IP_PORT, // ... and port
	FARM_CLIENT_NETWORK, // the client's /24 (IPv4) or /64 (IPv6)
	FARM_PACKET_ID,	     // the client's address and the packet's identification; IPv4 only
};

// Why a frame met its fate. The order tells the verdict: not ours, accepted (pass), answered or sent on (out by the
// interface that it came in by), dropped.
enum farm_reason {
	FARM_NOT_VIP,		  // not for a VIP: passed untouched, not counted
	FARM_ACCEPT_OWN,	  // a bucket of ours
	FARM_ACCEPT_FRESH_NEW,	  // a fresh bucket: a new connection, or traffic without connections
	FARM_ACCEPT_FRESH_SOCKET, // a fresh bucket: the connection's socket is here
	FARM_ACCEPT_HELD_SOCKET,  // a bucket that moved away: the connection's socket is still here
	FARM_ACCEPT_COOKIE,	  // a bucket in transition: the ACK returns a SYN cookie of ours
	FARM_ARP_ANSWERED,	  // an ARP request for a VIP, from a bucket of ours
	FARM_ND_ANSWERED,	  // a Neighbour Solicitation for a VIP, from a bucket of ours
	FARM_SENT_TO_OWNER,	  // directed: a bucket of another node, to which the frame was sent on
	FARM_SENT_TO_PREVIOUS,	  // directed: to the next node that had the bucket before and may have the connection
	FARM_ARP_NOT_OWNER,	  // ... from a bucket of another node
	FARM_ND_NOT_OWNER,
	FARM_ARP_ANNOUNCED,	    // directed: another node of the farm announces a VIP, after a takeover
	FARM_ARP_CLAIM,		    // somebody else announces a VIP as its own
	FARM_DROP_LEASE_OVER,	    // this node may not serve: its lease is over
	FARM_DROP_NO_RULE,	    // no rule names this protocol and port
	FARM_DROP_NOT_OWNER,	    // a bucket of another node
	FARM_DROP_HELD_NEW,	    // a bucket that moved away: new connection or no connection, the owner takes it
	FARM_DROP_HELD_UNKNOWN,	    // a bucket that moved away: no socket of that connection here
	FARM_DROP_FRESH_UNKNOWN,    // a fresh bucket: the connection lives on the node that had it before
	FARM_DROP_FRAGMENT_UNKNOWN, // a later fragment whose first fragment we have not seen
	FARM_DROP_ICMP_UNKNOWN,	    // an ICMP error about a packet that we did not send, or cannot tell
	FARM_DROP_HEADER_CHAIN,	    // more IPv6 extension headers than we follow
	FARM_DROP_MALFORMED,	    // shorter than its headers say, or contradicting itself
	FARM_DROP_NO_INTERFACE,	    // came in on an interface that the tables do not know
	FARM_DROP_NO_ROOM,	    // the frame cannot be made long enough for the answer
	FARM_DROP_HOP_LIMIT,	    // directed: sent on too often already, so the nodes disagree
	FARM_DROP_MAC_UNKNOWN,	    // directed: the node that it belongs to has not told its MAC address yet
	FARM_UNDECIDED,		    // inside the filter only: go on. Also the number of reasons
	FARM_FIRST_ACCEPT = FARM_ACCEPT_OWN,
	FARM_FIRST_ANSWER = FARM_ARP_ANSWERED,
	FARM_FIRST_SENT = FARM_SENT_TO_OWNER,
	FARM_FIRST_DROP = FARM_ARP_NOT_OWNER,
};

// An address in two words, as it lies in memory. IPv4 addresses are in the form ::ffff:a.b.c.d.
struct farm_address {
	__u64 words[2];
};

// A free slot is all zeros, which no key is: so one comparison tells a hit.
struct farm_ipv4_slot {
	__u32 address; // network order
	__u32 vip;     // 1..FARM_VIPS; 0: the slot is free
};

struct farm_ipv6_slot {
	struct farm_address address;
	__u32 vip;
	__u32 unused[3]; // 32 bytes: to find a slot is a shift then
};

struct farm_rule {
	__u16 number; // 1..FARM_RULES; 0: there is no such rule
	__u8 group;
	__u8 affinity; // enum farm_affinity
};

// The number of each port's rule; 0: none.
struct farm_page {
	__u16 rules[FARM_PAGE_PORTS];
};

// A VIP and protocol: the page of every 128 ports.
struct farm_service {
	__u16 pages[FARM_PAGES];
};

struct farm_interface {
	__u32 ifindex; // 0: free
	__u8 mac[6];
	__u8 announced[6]; // where ARP and ND answers say that VIPs are: the virtual MAC, or (directed) its own
};

// What siphash.h makes of the farm's key: SipHash's state, as far into the first round as it gets without a message,
// and the factors that shorten IPv6 addresses.
struct farm_hash {
	__u64 v0, v1, v2, v3;
	__u64 v1_turned;
	__u64 factors[FARM_FACTORS];
};

// Everything that farm.toml decides. Written whole into the generation that is not in use, then switched to.
struct farm_table {
	struct farm_hash hash;
	__u64 ipv4_seed;
	__u64 ipv6_seed;
	__u32 marker; // the first 4 bytes of the source address of frames that were sent on, as they lie in memory
	__u8 node;    // our number
	__u8 directed;
	__u8 accept_without_rule;
	__u8 unused;
	struct farm_interface interfaces[FARM_INTERFACES];
	struct farm_ipv4_slot ipv4_vips[FARM_VIP_SLOTS];
	struct farm_ipv6_slot ipv6_vips[FARM_VIP_SLOTS];
	struct farm_rule rules[FARM_RULE_ROOM]; // by number; 0 is all zeros
	struct farm_service services[FARM_SERVICES];
	__u16 orphans[FARM_SERVICES]; // the rule of later fragments, which have no ports; 0: their ports decide
	struct farm_page pages[FARM_PAGE_ROOM];
};

struct farm_active {
	__u32 generation;
	__u32 abi; // FARM_ABI_VERSION of who made the maps
};

struct farm_planes {
	__u8 state[FARM_BUCKETS]; // bits of enum farm_state
};

// Delivery `directed`: which node takes what this one does not.
struct farm_routes {
	__u8 owner[FARM_BUCKETS]; // FARM_NOBODY: there is none
	__u8 next[FARM_BUCKETS];  // whom to ask after us for a connection that lives where the bucket was before
};

// MAC addresses of the nodes, by our interface: in the first 6 bytes of a word, so that each is read whole. 0: unknown.
struct farm_macs {
	__u64 mac[FARM_INTERFACES][FARM_NODES];
};

struct farm_counts {
	__u64 packets[FARM_REASONS]; // by enum farm_reason
};

// A reason, the node that the frame is sent on to, and the rule that it is counted under (0: none).
struct farm_outcome {
	__u8 reason; // enum farm_reason
	__u8 node;
	__u16 rule;
};

struct farm_fragment {
	struct farm_address client;
	__u32 id;
	__u16 vip;
	__u16 protocol;
};

enum farm_lease_verb {
	FARM_LEASE_READ,
	FARM_LEASE_WRITE,
};

// The argument of the lease program, handed over by BPF_PROG_TEST_RUN and given back with left_ns filled in.
struct farm_lease_call {
	__u64 deadline_ns; // CLOCK_BOOTTIME; 0 closes at once
	__u64 tick_ns;	   // length of a jiffy
	__s64 left_ns;	   // what is left of the lease; 0 or less: over
	__u64 verb;	   // enum farm_lease_verb
};

// What `farmctl trace` wants to see. Written by it, `open` last; the filter closes it by itself after until_ns.
struct farm_watch {
	__u32 open;	// 0: nobody looks
	__u32 verdicts; // those that are wanted: bit N for number N of the kernel's enum xdp_action
	__u64 until_ns; // CLOCK_MONOTONIC
	struct farm_address client_mask;
	struct farm_address client; // under the mask
	struct farm_address vip;    // zero: any
	__u64 frames_a_window;	    // at most so many in a tenth of a second
	__u64 window;		    // from here on the filter's own
	__u64 used;
	__u64 suppressed; // frames that came when no more were allowed
};

// One frame as it left the filter.
struct farm_sample {
	__u64 at_ns;	// CLOCK_MONOTONIC
	__u32 reason;	// enum farm_reason
	__u32 rule;	// 0: none
	__u32 verdict;	// enum xdp_action
	__u32 length;	// without what lies in further buffers of a jumbo frame
	__u32 captured; // bytes of it in `head`
	__u32 ifindex;
	__u8 head[FARM_SAMPLE_HEAD];
};

#endif
