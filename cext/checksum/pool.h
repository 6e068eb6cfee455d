// SPDX-License-Identifier: Apache-2.0
// Threads that take items from one queue.
#ifndef CHECKSUM_POOL_H
#define CHECKSUM_POOL_H

#include <pthread.h>
#include <stddef.h>
#include "engine.h"

#define THREADS_MAX 64

// Each thread's own room, so that nothing large is on a stack or allocated for every file.
struct scratch {
	unsigned char *data;  // IO_SIZE bytes
	unsigned char *names; // NAMES_SIZE bytes, of getdents64
	struct buffer *out;   // a frame that is being made
	struct buffer *more;  // attributes
};
#define IO_SIZE	   (256u << 10)
#define NAMES_SIZE (64u << 10)

typedef void (*pool_work)(void *context, void *item, struct scratch *scratch);

struct pool;
struct seat {
	struct pool *pool;
	pthread_t thread;
	struct scratch scratch;
};

struct pool {
	pthread_mutex_t lock;
	pthread_cond_t filled, drained;
	struct seat seats[THREADS_MAX];
	unsigned int started, idle, closed;
	void **items; // a ring
	size_t first, count, room;
	size_t limit;	// push waits above it; 0: it never waits
	int last_first; // newest item first: keeps a walk's queue short
	pool_work work;
	void *context;
	size_t under_way; // queued or running
};

int pool_start(struct pool *pool, unsigned int threads, size_t limit, int last_first, pool_work work, void *context);
// Takes the item over. -1 without memory.
int pool_push(struct pool *pool, void *item);
// Until nothing is queued or running.
void pool_wait(struct pool *pool);
// Runs what is queued, then ends the threads. The work must look at engine_stopping by itself.
void pool_stop(struct pool *pool);
int scratch_make(struct scratch *scratch);
void scratch_free(struct scratch *scratch);

#endif
