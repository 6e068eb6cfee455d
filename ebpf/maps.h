// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The maps, all of them pinned. No hash map is on the path of a whole packet: one look-up costs as much as everything
// else.
#ifndef FARM_MAPS_H
#define FARM_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "farm_abi.h"

// Which generation of the table counts. Written by the daemon.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct farm_active);
} farm_active SEC(".maps");

// VIPs, rules, interfaces and the hash key, by generation. Written by the daemon.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FARM_GENERATIONS);
	__type(key, __u32);
	__type(value, struct farm_table);
} farm_tables SEC(".maps");

// The state of every bucket, by group. Written by the engine; a byte a bucket, so any order of copying is right.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FARM_GROUPS);
	__type(key, __u32);
	__type(value, struct farm_planes);
} farm_planes SEC(".maps");

// The first jiffy at which this node may serve no more; 0: closed. Written by the lease program for the engine.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} farm_lease SEC(".maps");

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

#endif
