// SPDX-License-Identifier: Apache-2.0
// One ring's thread: takes the requests of its CPU, serves them, and sends their answers with the next submission.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "uring.h"

enum { // of fuse.h 7.42, which Debian 12 does not have
	CMD_REGISTER = 1,
	CMD_COMMIT_AND_FETCH = 2
};

static __thread struct ring *own_ring;

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

void *ring_run(void *context)
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
	if (ring->over)
		device_abort(fs); // without this queue the kernel would wait for ever
	wait_to_be_woken(ring);
	for (int i = 0; i < ring->all->depth; i++)
		submit(ring, &ring->slots[i], CMD_REGISTER);
	while (!ring->over)
		turn(ring);
	device_ended(fs);
	return NULL;
}
