// SPDX-License-Identifier: Apache-2.0
// What uring.c makes and rings.c runs: one ring for each CPU, with places for requests.
#ifndef FARM_MIRROR_URING_H
#define FARM_MIRROR_URING_H

#include <linux/io_uring.h>
#include "engine.h"

#define SQE_SIZE     128
#define POOL_THREADS 8
#define NAMES_ROOM   8192 // a request's names stand before what is built for its answer

struct shared_header { // struct fuse_uring_req_header
	char in_out[128];
	char op_in[128];
	uint64_t flags;
	uint64_t commit;
	uint32_t payload_size;
	uint32_t padding;
	uint64_t reserved;
};

struct command { // struct fuse_uring_cmd_req
	uint64_t flags;
	uint64_t commit;
	uint16_t queue;
	uint8_t padding[6];
};

struct slot {		   // room for one request
	struct slot *next; // answered, or deferred
	struct ring *ring;
	struct shared_header *shared;
	char *payload;
	struct iovec parts[2];
	struct fuse_in_header in;
	struct worker worker;
	bool registered;
};

struct ring {
	struct uring *all;
	uint16_t queue;
	int fd, wake;
	uint64_t woken;
	char *map, *sqes;
	size_t map_size, sqes_size;
	unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_cqe *cqes;
	unsigned unsaid; // submissions that the kernel was not told of
	struct slot *slots;
	_Atomic(struct slot *) answered;
	atomic_bool asleep;
	pthread_t thread;
	int busy;	 // slots that are not the kernel's
	uint64_t polled; // acks_from, as long as the kernel watches it for us
	bool over;
};

struct uring {
	struct mirror *fs;
	int count, depth, started, pool_started;
	struct ring *rings;
	char *memory;
	size_t memory_size;
	pthread_t pool[POOL_THREADS];
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct slot *deferred, **deferred_end;
	bool ending;
};

void *ring_run(void *ring);

#endif
