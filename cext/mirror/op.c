// SPDX-License-Identifier: Apache-2.0
// Replies to the kernel: at once, or when the last thing that an operation waits for has happened.
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include "engine.h"

uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

// The kernel answers ENOENT when the caller is gone; then it did not take the look-up count either.
static int answer(struct slot *slot, int device, uint64_t unique, int error, const void *data, size_t size)
{
	struct fuse_out_header head = {.unique = unique, .error = error};
	struct iovec parts[2] = {{&head, sizeof(head)}, {(void *)data, size}};

	if (slot)
		return uring_answer(slot, unique, error, data, size);
	head.len = (uint32_t)(sizeof(head) + (error ? 0 : size));
	return writev(device, parts, error || !size ? 1 : 2) < 0 ? -errno : 0;
}

void reply(struct worker *worker, int error, const void *data, size_t size)
{
	answer(worker->slot, worker->device, worker->in->unique, error, data, size);
}

struct op *op_new(struct worker *worker)
{
	struct op *op = calloc(1, sizeof(*op));

	if (!op)
		return NULL;
	op->unique = worker->in->unique;
	op->device = worker->device;
	op->slot = worker->slot;
	op->waits = 1;
	op->started_ns = clock_ns();
	return op;
}

// A sixteenth of each new one. Two at the same time may lose one of them: it is an average.
static void average(_Atomic uint64_t *of, uint64_t ns)
{
	uint64_t old = atomic_load_explicit(of, memory_order_relaxed);

	atomic_store_explicit(of, old ? old - old / 16 + ns / 16 : ns, memory_order_relaxed);
}

void op_done(struct mirror *fs, struct op *op, int error)
{
	int none = 0;

	if (error)
		atomic_compare_exchange_strong(&op->error, &none, error);
	if (atomic_fetch_sub(&op->waits, 1) != 1)
		return;
	average(op->sync ? &fs->sync_ns : &fs->write_ns, clock_ns() - op->started_ns);
	if (answer(op->slot, op->device, op->unique, op->error, op->reply, op->size) && op->entry && !op->error)
		node_forget(fs, op->entry, 1);
	else if (op->error && op->entry)
		node_forget(fs, op->entry, 1);
	free(op);
}
