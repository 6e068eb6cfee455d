// SPDX-License-Identifier: Apache-2.0
// FUSE over io_uring (Linux 6.14, Documentation/filesystems/fuse/fuse-io-uring.rst): a request is served on the CPU of
// the caller, and one system call answers it and fetches the next. One ring for each CPU with a thread of its own,
// which alone submits; what others answer is handed to it. What may block goes to a pool, or the whole CPU would wait.
// /dev/fuse stays in use beside it: it is where the kernel forgets inodes.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/io_uring.h>
#include "uring.h"

static size_t slot_size(void)
{
	return 8192 + MAX_WRITE + NAMES_ROOM + 4096;
}

static int map_ring(struct ring *ring, const struct io_uring_params *params)
{
	size_t sq = params->sq_off.array + params->sq_entries * sizeof(unsigned);
	size_t cq = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);

	ring->map_size = sq > cq ? sq : cq;
	ring->sqes_size = (size_t)params->sq_entries * SQE_SIZE;
	ring->map = mmap(NULL, ring->map_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
	ring->sqes = mmap(NULL, ring->sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQES);
	if (ring->map == MAP_FAILED || ring->sqes == MAP_FAILED)
		return -ENOMEM;
	ring->sq_tail = (unsigned *)(ring->map + params->sq_off.tail);
	ring->sq_mask = (unsigned *)(ring->map + params->sq_off.ring_mask);
	ring->sq_array = (unsigned *)(ring->map + params->sq_off.array);
	ring->cq_head = (unsigned *)(ring->map + params->cq_off.head);
	ring->cq_tail = (unsigned *)(ring->map + params->cq_off.tail);
	ring->cq_mask = (unsigned *)(ring->map + params->cq_off.ring_mask);
	ring->cqes = (struct io_uring_cqe *)(ring->map + params->cq_off.cqes);
	return 0;
}

static int make_ring(struct uring *all, int queue)
{
	struct io_uring_params params = {.flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER |
						  IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED};
	struct ring *ring = &all->rings[queue];

	ring->all = all;
	ring->queue = (uint16_t)queue;
	ring->map = ring->sqes = MAP_FAILED;
	ring->wake = eventfd(0, EFD_CLOEXEC);
	ring->fd = (int)syscall(SYS_io_uring_setup, all->depth + 8, &params);
	ring->slots = calloc((size_t)all->depth, sizeof(*ring->slots));
	if (ring->fd < 0 || ring->wake < 0 || !ring->slots)
		return -ENOSYS;
	for (int i = 0; i < all->depth; i++) {
		struct slot *slot = &ring->slots[i];
		char *memory = all->memory + ((size_t)queue * (size_t)all->depth + (size_t)i) * slot_size();

		slot->ring = ring;
		slot->shared = (struct shared_header *)memory;
		slot->payload = memory + 8192;
		slot->parts[0] = (struct iovec){slot->shared, sizeof(*slot->shared)};
		slot->parts[1] = (struct iovec){slot->payload, MAX_WRITE};
		slot->worker.fs = all->fs;
		slot->worker.slot = slot;
	}
	return map_ring(ring, &params);
}

// As many queues as CPUs are possible, present or not: the kernel answers nothing until it has all of them.
static int possible_cpus(void)
{
	FILE *file = fopen("/sys/devices/system/cpu/possible", "re");
	int first, last, count = 0;
	char after = ',';

	while (file && after == ',' && fscanf(file, "%d", &first) == 1) {
		last = first;
		if (fscanf(file, "%c", &after) == 1 && after == '-' && fscanf(file, "%d%c", &last, &after) < 1)
			last = first;
		count += last - first + 1;
	}
	if (file)
		fclose(file);
	return count;
}

struct uring *uring_new(struct mirror *fs)
{
	struct uring *all = calloc(1, sizeof(*all));
	int error = all ? 0 : -ENOMEM;

	if (error)
		return NULL;
	all->fs = fs;
	all->count = possible_cpus();
	if (all->count < 1) {
		free(all);
		return NULL;
	}
	// An operation that waits for the peer keeps its place; more than these wait in the kernel.
	all->depth = 2048 / all->count < 8 ? 8 : 2048 / all->count > 64 ? 64 : 2048 / all->count;
	all->deferred_end = &all->deferred;
	pthread_mutex_init(&all->lock, NULL);
	pthread_cond_init(&all->wake, NULL);
	all->rings = calloc((size_t)all->count, sizeof(*all->rings));
	// Only what requests really fill becomes memory; the kernel uses the place last used first.
	all->memory_size = slot_size() * (size_t)all->count * (size_t)all->depth;
	all->memory =
	    mmap(NULL, all->memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (all->memory == MAP_FAILED || !all->rings)
		error = -ENOMEM;
	for (int i = 0; !error && i < all->count; i++)
		error = make_ring(all, i);
	if (!error)
		return all;
	uring_free(all);
	return NULL;
}

void uring_free(struct uring *all)
{
	if (!all)
		return;
	for (int i = 0; all->rings && i < all->count && all->rings[i].all; i++) {
		struct ring *ring = &all->rings[i];

		if (ring->map != MAP_FAILED)
			munmap(ring->map, ring->map_size);
		if (ring->sqes != MAP_FAILED)
			munmap(ring->sqes, ring->sqes_size);
		if (ring->fd >= 0)
			close(ring->fd);
		if (ring->wake >= 0)
			close(ring->wake);
		free(ring->slots);
	}
	free(all->rings);
	if (all->memory != MAP_FAILED)
		munmap(all->memory, all->memory_size);
	free(all);
}

static void *pool_run(void *context)
{
	struct uring *all = context;

	prctl(PR_SET_NAME, "mirror-pool");
	inode_thread_start();
	pthread_mutex_lock(&all->lock);
	for (;;) {
		struct slot *slot = all->deferred;

		if (!slot && all->ending)
			break;
		if (!slot) {
			pthread_cond_wait(&all->wake, &all->lock);
			continue;
		}
		all->deferred = slot->next;
		if (!all->deferred)
			all->deferred_end = &all->deferred;
		pthread_mutex_unlock(&all->lock);
		device_serve(&slot->worker);
		pthread_mutex_lock(&all->lock);
	}
	pthread_mutex_unlock(&all->lock);
	return NULL;
}

int uring_start(struct uring *all)
{
	int error = 0;

	while (!error && all->pool_started < POOL_THREADS) {
		error = thread_start(&all->pool[all->pool_started], pool_run, all);
		all->pool_started += !error;
	}
	while (!error && all->started < all->count) {
		atomic_fetch_add(&all->fs->alive, 1);
		error = thread_start(&all->rings[all->started].thread, ring_run, &all->rings[all->started]);
		if (error)
			atomic_fetch_sub(&all->fs->alive, 1);
		all->started += !error;
	}
	return error;
}

void uring_join(struct uring *all)
{
	for (int i = 0; i < all->started; i++)
		pthread_join(all->rings[i].thread, NULL);
	pthread_mutex_lock(&all->lock);
	all->ending = true;
	pthread_cond_broadcast(&all->wake);
	pthread_mutex_unlock(&all->lock);
	for (int i = 0; i < all->pool_started; i++)
		pthread_join(all->pool[i], NULL);
}
