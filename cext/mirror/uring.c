// SPDX-License-Identifier: Apache-2.0
// FUSE over io_uring (Linux 6.14, Documentation/filesystems/fuse/fuse-io-uring.rst): a request is served on the CPU of
// the caller, and one system call answers it and fetches the next. One ring for each CPU with a thread of its own,
// which alone submits; what others answer is handed to it. What may block goes to a pool, or the whole CPU would wait.
// /dev/fuse stays in use beside it: it is where the kernel forgets inodes.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/io_uring.h>
#include "engine.h"

#define SQE_SIZE     128
#define POOL_THREADS 8
#define NAMES_ROOM   8192 // a request's names stand before what is built for its answer

enum { // of fuse.h 7.42, which Debian 12 does not have
	CMD_REGISTER = 1,
	CMD_COMMIT_AND_FETCH = 2
};

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

struct slot { // room for one request
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

static __thread struct ring *own_ring;

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

// As many queues as the kernel has possible CPUs: it wants all of them, or uses none.
static int possible_cpus(void)
{
	long count = sysconf(_SC_NPROCESSORS_CONF);

	return count < 1 ? 1 : (int)count;
}

struct uring *uring_new(struct mirror *fs)
{
	struct uring *all = calloc(1, sizeof(*all));
	int error = all ? 0 : -ENOMEM;

	if (error)
		return NULL;
	all->fs = fs;
	all->count = possible_cpus();
	// An operation that waits for the peer keeps its place; more than these wait in the kernel.
	all->depth = 2048 / all->count < 8 ? 8 : 2048 / all->count > 64 ? 64 : 2048 / all->count;
	all->deferred_end = &all->deferred;
	pthread_mutex_init(&all->lock, NULL);
	pthread_cond_init(&all->wake, NULL);
	all->rings = calloc((size_t)all->count, sizeof(*all->rings));
	// Only what requests really fill becomes memory; the kernel uses the place last used first.
	all->memory_size = slot_size() * (size_t)all->count * (size_t)all->depth;
	all->memory = mmap(NULL, all->memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			   -1, 0);
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

// Never full: each slot, and the wait to be woken, has one submission under way at most.
static struct io_uring_sqe *next_sqe(struct ring *ring)
{
	unsigned tail = *ring->sq_tail, index = tail & *ring->sq_mask;
	struct io_uring_sqe *sqe = (struct io_uring_sqe *)(ring->sqes + (size_t)index * SQE_SIZE);

	memset(sqe, 0, SQE_SIZE);
	ring->sq_array[index] = index;
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
	ring->unsaid++;
	return sqe;
}

static void submit(struct ring *ring, struct slot *slot, uint32_t what)
{
	struct io_uring_sqe *sqe = next_sqe(ring);
	struct command *command = (struct command *)((char *)sqe + 48);

	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = ring->all->fs->device;
	sqe->cmd_op = what;
	sqe->user_data = (uintptr_t)slot;
	command->queue = ring->queue;
	if (what == CMD_REGISTER) {
		sqe->addr = (uintptr_t)slot->parts;
		sqe->len = 2;
	} else {
		command->commit = slot->shared->commit;
		ring->busy--;
	}
}

static void wait_to_be_woken(struct ring *ring)
{
	struct io_uring_sqe *sqe = next_sqe(ring);

	sqe->opcode = IORING_OP_READ;
	sqe->fd = ring->wake;
	sqe->addr = (uintptr_t)&ring->woken;
	sqe->len = sizeof(ring->woken);
}

// An operation that waits for the peer is woken by its acknowledgement itself, not by another thread.
static void watch_for_acks(struct ring *ring)
{
	uint64_t from = atomic_load(&ring->all->fs->acks_from);
	struct io_uring_sqe *sqe;

	if (!ring->busy || !from || ring->polled == from)
		return;
	ring->polled = from;
	sqe = next_sqe(ring);
	sqe->opcode = IORING_OP_POLL_ADD;
	sqe->fd = (int)(from & ((1 << 20) - 1));
	sqe->poll32_events = POLLIN;
	sqe->user_data = from << 1 | 1; // slots are at even addresses
}

int uring_answer(struct slot *slot, uint64_t unique, int error, const void *data, size_t size)
{
	struct ring *ring = slot->ring;
	struct fuse_out_header head = {.unique = unique, .error = error};

	if (error)
		size = 0;
	head.len = (uint32_t)(sizeof(head) + size);
	memcpy(slot->shared->in_out, &head, sizeof(head));
	if (size && data != slot->payload)
		memmove(slot->payload, data, size);
	slot->shared->payload_size = (uint32_t)size;
	if (own_ring == ring) {
		submit(ring, slot, CMD_COMMIT_AND_FETCH);
		return 0;
	}
	slot->next = atomic_load(&ring->answered);
	while (!atomic_compare_exchange_weak(&ring->answered, &slot->next, slot))
		;
	if (atomic_exchange(&ring->asleep, false) && write(ring->wake, &(uint64_t){1}, sizeof(uint64_t)) < 0)
		return -errno;
	return 0;
}

bool uring_defer(struct worker *worker)
{
	struct slot *slot = worker->slot;
	struct uring *all;

	if (!slot || !own_ring)
		return false;
	all = slot->ring->all;
	slot->next = NULL;
	pthread_mutex_lock(&all->lock);
	*all->deferred_end = slot;
	all->deferred_end = &slot->next;
	pthread_cond_signal(&all->wake);
	pthread_mutex_unlock(&all->lock);
	return true;
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

// Whatever takes its time as a matter of course. What does so now and then asks for the pool itself.
static bool may_block(uint32_t opcode)
{
	return opcode == FUSE_SYNCFS || opcode == FUSE_FALLOCATE || opcode == FUSE_COPY_FILE_RANGE ||
	       opcode == FUSE_LSEEK;
}

// Puts the parts together as /dev/fuse has them: what follows the header in one piece.
static void serve(struct slot *slot)
{
	struct worker *worker = &slot->worker;
	size_t payload = slot->shared->payload_size, fixed;

	slot->ring->busy++;
	memcpy(&slot->in, slot->shared->in_out, sizeof(slot->in));
	fixed = slot->in.len - sizeof(slot->in) - payload;
	worker->in = &slot->in;
	worker->op = NULL;
	if (slot->in.len < sizeof(slot->in) + payload || fixed > sizeof(slot->shared->op_in) || payload > MAX_WRITE) {
		reply(worker, -EIO, NULL, 0);
		return;
	}
	worker->body = slot->payload - fixed;
	memcpy(slot->payload - fixed, slot->shared->op_in, fixed);
	slot->payload[payload] = 0;
	worker->size = fixed + payload;
	worker->room = slot->payload + (payload ? NAMES_ROOM : 0);
	if (!may_block(slot->in.opcode) || !uring_defer(worker))
		device_serve(worker);
}

static void complete(struct ring *ring, const struct io_uring_cqe *cqe)
{
	struct slot *slot = (struct slot *)(uintptr_t)cqe->user_data;

	if (cqe->user_data & 1) {
		if (cqe->user_data >> 1 == (ring->polled & ~0ull >> 1))
			ring->polled = 0;
		peer_look_for_acks(ring->all->fs);
		return;
	}
	if (!slot)
		wait_to_be_woken(ring);
	else if (cqe->res < 0)
		ring->over = true; // unmounted or aborted
	else
		serve(slot);
}

static void commit_answered(struct ring *ring)
{
	struct slot *slot = atomic_exchange(&ring->answered, NULL);

	for (struct slot *next; slot; slot = next) {
		next = slot->next;
		submit(ring, slot, CMD_COMMIT_AND_FETCH);
	}
}

static void turn(struct ring *ring)
{
	unsigned head, tail;
	long done;

	atomic_store(&ring->asleep, true);
	commit_answered(ring);
	watch_for_acks(ring);
	done = syscall(SYS_io_uring_enter, ring->fd, ring->unsaid, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	atomic_store(&ring->asleep, false);
	if (done < 0 && errno != EINTR && errno != EAGAIN && errno != EBUSY)
		ring->over = true;
	if (done > 0)
		ring->unsaid -= (unsigned)done;
	head = *ring->cq_head;
	tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
	while (head != tail) {
		struct io_uring_cqe cqe = ring->cqes[head & *ring->cq_mask];

		__atomic_store_n(ring->cq_head, ++head, __ATOMIC_RELEASE);
		complete(ring, &cqe);
	}
}

static void *ring_run(void *context)
{
	struct ring *ring = context;
	struct mirror *fs = ring->all->fs;
	cpu_set_t cpu;

	prctl(PR_SET_NAME, "mirror-ring");
	inode_thread_start();
	CPU_ZERO(&cpu);
	CPU_SET(ring->queue, &cpu);
	sched_setaffinity(0, sizeof(cpu), &cpu); // where it may not, it only has longer ways
	own_ring = ring;
	ring->over = syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0;
	wait_to_be_woken(ring);
	for (int i = 0; i < ring->all->depth; i++)
		submit(ring, &ring->slots[i], CMD_REGISTER);
	while (!ring->over)
		turn(ring);
	device_ended(fs);
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
