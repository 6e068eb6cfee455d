// SPDX-License-Identifier: Apache-2.0
// Operations on ranges of files: fallocate, holes, copy_file_range.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
#include "engine.h"

// One copy holds up the writers of both files.
#define MAX_COPY (16ull << 20)

void do_fallocate(struct worker *worker)
{
	struct mirror *fs = worker->fs;
	const struct fuse_fallocate_in *in = (const void *)worker->body;
	struct open_file *file = (struct open_file *)(uintptr_t)in->fh;
	struct change change = {
	    .frame = {.op = WIRE_ALLOCATE, .mode = in->mode, .offset = in->offset, .length = in->length},
	    .node = file->node,
	    .wait = WAIT_WRITE};
	struct op *op;
	int error;

	if (!change_begin(worker, MIRROR_EVENT_DATA, file->node, in->offset, in->length))
		return;
	op = change.op = op_new(worker);
	if (!op) {
		change_end(fs);
		reply(worker, -ENOMEM, NULL, 0);
		return;
	}
	// For these the kernel does not say whether the caller may keep the bits, as it does for writes.
	if (worker->in->uid)
		drop_privileges(worker, file->node);
	pthread_rwlock_wrlock(node_stripe(fs, file->node));
	error = fallocate(file->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) ? -errno : 0;
	if (!error)
		stream_change(fs, &change);
	pthread_rwlock_unlock(node_stripe(fs, file->node));
	times_mark(fs, file->node);
	change_end(fs);
	op_done(fs, op, error);
}

void do_lseek(struct worker *worker)
{
	const struct fuse_lseek_in *in = (const void *)worker->body;
	struct open_file *file = (struct open_file *)(uintptr_t)in->fh;
	off_t found = lseek(file->fd, (off_t)in->offset, (int)in->whence);
	struct fuse_lseek_out out = {.offset = (uint64_t)found};

	reply(worker, found < 0 ? -errno : 0, &out, sizeof(out));
}

// Both files, always in the same order, and one that is both only once.
static void lock_both(struct mirror *fs, struct node *a, struct node *b, bool lock)
{
	pthread_rwlock_t *first = node_stripe(fs, a), *second = node_stripe(fs, b);

	if (first > second) {
		pthread_rwlock_t *other = first;

		first = second;
		second = other;
	}
	if (lock)
		pthread_rwlock_wrlock(first);
	if (lock && second != first)
		pthread_rwlock_wrlock(second);
	if (!lock)
		pthread_rwlock_unlock(first);
	if (!lock && second != first)
		pthread_rwlock_unlock(second);
}

static void copy_range(struct worker *worker, struct open_file *from, struct open_file *to, struct op *op)
{
	struct mirror *fs = worker->fs;
	const struct fuse_copy_file_range_in *in = (const void *)worker->body;
	off_t source = (off_t)in->off_in, target = (off_t)in->off_out;
	size_t length = in->len < MAX_COPY ? in->len : MAX_COPY;
	struct change change = {.frame = {.op = WIRE_COPY, .source = in->off_in, .offset = in->off_out},
				.node = to->node,
				.other = from->node,
				.op = op,
				.wait = WAIT_WRITE};
	ssize_t done;

	if (worker->in->uid)
		drop_privileges(worker, to->node);
	// No write to either file may come between the copy and its frame: the peer copies from its own file.
	lock_both(fs, from->node, to->node, true);
	done = copy_file_range(from->fd, &source, to->fd, &target, length, 0);
	if (done < 0)
		op->error = -errno;
	change.frame.length = done < 0 ? 0 : (uint64_t)done;
	if (done > 0)
		stream_change(fs, &change);
	lock_both(fs, from->node, to->node, false);
	times_mark(fs, to->node);
	*(struct fuse_write_out *)op->reply = (struct fuse_write_out){.size = (uint32_t)(done < 0 ? 0 : done)};
	op->size = sizeof(struct fuse_write_out);
}

void do_copy(struct worker *worker)
{
	struct mirror *fs = worker->fs;
	const struct fuse_copy_file_range_in *in = (const void *)worker->body;
	struct open_file *from = (struct open_file *)(uintptr_t)in->fh_in,
			 *to = (struct open_file *)(uintptr_t)in->fh_out;
	struct op *op;

	// What the peer does not have it cannot copy from, nor from one file system to another, which these may be
	// there; the kernel then reads and writes instead.
	if ((from->node->excluded && !to->node->excluded) ||
	    inode_part(&from->node->handle) != inode_part(&to->node->handle)) {
		reply(worker, -EXDEV, NULL, 0);
		return;
	}
	if (!change_begin(worker, MIRROR_EVENT_DATA, to->node, in->off_out, in->len < MAX_COPY ? in->len : MAX_COPY))
		return;
	op = op_new(worker);
	if (op)
		copy_range(worker, from, to, op);
	else
		reply(worker, -ENOMEM, NULL, 0);
	change_end(fs);
	if (op)
		op_done(fs, op, 0);
}
