// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The maps, all of them pinned. No hash map is on the path of a whole packet: one look-up costs as much as everything
// else.
#ifndef FARM_MAPS_H
#define FARM_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "farm_abi.h"

// The first six are variables, each in a section and so in a map of its own: their addresses are known when the filter
// is loaded. That saves the look-up, and user space maps their memory. What the filter reads of them may change at any
// time, so it reads every value once.

// Which generation of the table counts. Written by the daemon.
struct farm_active farm_in_use SEC(".data.farm_active") = {.abi = FARM_ABI_VERSION};

// VIPs, rules, interfaces and the hash key, by generation. Written by the daemon.
struct farm_table farm_generations[FARM_GENERATIONS] SEC(".data.farm_tables");

// The state of every bucket, by group. Written by the engine; a byte a bucket, so any order of copying is right.
struct farm_planes farm_groups[FARM_GROUPS] SEC(".data.farm_planes");

// Delivery `directed`: where frames are sent on to, and by which MAC address. Written by the engine; else unused.
struct farm_routes farm_targets[FARM_GROUPS] SEC(".data.farm_routes");
struct farm_macs farm_neighbours SEC(".data.farm_macs");

// The first jiffy at which this node may serve no more; 0: closed. Written by the lease program for the engine.
__u64 farm_deadline SEC(".data.farm_lease");

// Packets by rule and reason. Per CPU: XDP runs with bottom halves off, so no atomic operation is needed.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FARM_COUNTERS);
	__type(key, __u32);
	__type(value, struct farm_counts);
} farm_counters SEC(".maps");

// What became of a fragmented datagram's first fragment: only that one has ports. Touched by fragments alone.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FARM_FRAGMENTS);
	__type(key, struct farm_fragment);
	__type(value, struct farm_outcome);
} farm_fragments SEC(".maps");

// What a trace wants to see; a variable, too. Written by `farmctl trace`.
struct farm_watch farm_watch SEC(".data.farm_watch");

// Frames that it gets to see.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, FARM_SAMPLE_BYTES);
} farm_samples SEC(".maps");

#endif
