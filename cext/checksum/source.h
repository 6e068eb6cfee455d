// SPDX-License-Identifier: Apache-2.0
#ifndef CHECKSUM_SOURCE_H
#define CHECKSUM_SOURCE_H

#include "link.h"
#include "scan.h"

struct request {
	uint8_t type;
	uint32_t number;
	uint32_t probe_bytes;
	unsigned char *digests;
	char folder[PATH_ROOM];
	struct segment_request segment;
};

struct source {
	struct engine engine;
	struct record record;
	struct link link;
	struct pool walkers, servers;
	uint64_t walk_left;
	uint32_t requests;
	int started;
};

uint64_t source_version(const struct secret *secret, const struct entry *entry);
// Compares one part of a file with the target's digests and sends what differs.
void serve_segment(struct source *source, struct request *request, struct scratch *scratch);

#endif
