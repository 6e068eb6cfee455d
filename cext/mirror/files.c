// SPDX-License-Identifier: Apache-2.0
// Open files: open, read, write, sync. A write goes to the socket first and then to the local file, so that both ends
// work at the same time; large ones travel in pieces that the peer checks and applies while the next is on its way.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include "engine.h"

static struct open_file *file_of(uint64_t fh)
{
	return (struct open_file *)(uintptr_t)fh;
}

void do_open(struct worker *worker)
{
	struct mirror *fs = worker->fs;
	const struct fuse_open_in *in = (const void *)worker->body;
	struct node *node = node_of(fs, worker->in->nodeid);
	// O_DIRECT and O_SYNC are the kernel's affair: it sends each write, and an fsync after it. Appending is too.
	int flags = (in->flags & O_ACCMODE) == O_RDONLY ? O_RDONLY : O_RDWR;
	struct open_file *file = malloc(sizeof(*file));
	struct fuse_open_out out = {.fh = (uintptr_t)file, .open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH};
	int fd = inode_open(&fs->parts, &node->handle, flags | O_NONBLOCK);

	if (fd < 0 || !file) {
		free(file);
		reply(worker, fd < 0 ? fd : -ENOMEM, NULL, 0);
		return;
	}
	*file = (struct open_file){fd, node};
	reply(worker, 0, &out, sizeof(out));
}

void do_release(struct worker *worker)
{
	const struct fuse_release_in *in = (const void *)worker->body;
	struct open_file *file = file_of(in->fh);

	if ((in->flags & O_ACCMODE) != O_RDONLY)
		times_send(worker->fs, file->node);
	close(file->fd);
	free(file);
	reply(worker, 0, NULL, 0);
}

void do_flush(struct worker *worker)
{
	reply(worker, -ENOSYS, NULL, 0); // nothing is kept back, and locks are the kernel's own: it need not ask again
}

// What the page cache has, on a thread that must not wait for the disk; -EAGAIN if that is not all.
static ssize_t read_cached(struct worker *worker, int fd, char *data, size_t size, uint64_t offset)
{
	struct iovec part = {data, size};
	struct stat st;
	ssize_t got;

	if (!worker->slot)
		return -EAGAIN;
	got = preadv2(fd, &part, 1, (off_t)offset, RWF_NOWAIT);
	if (got == (ssize_t)size)
		return got;
	// Shorter than wanted is right only at the end of the file.
	if (got < 0 || fstat(fd, &st) || offset + (uint64_t)got < (uint64_t)st.st_size)
		return -EAGAIN;
	return got;
}

void do_read(struct worker *worker)
{
	const struct fuse_read_in *in = (const void *)worker->body;
	uint32_t size = in->size < MAX_WRITE ? in->size : MAX_WRITE;
	int fd = file_of(in->fh)->fd;
	uint64_t offset = in->offset;
	char *data = worker->room;
	ssize_t got = read_cached(worker, fd, data, size, offset);

	if (got == -EAGAIN && uring_defer(worker))
		return;
	if (got == -EAGAIN) {
		do
			got = pread(fd, data, size, (off_t)offset);
		while (got < 0 && errno == EINTR);
	}
	reply(worker, got < 0 ? -errno : 0, data, got < 0 ? 0 : (size_t)got);
}

// Without execution by the group the bit is no privilege to everybody: members of the group may keep it.
static bool in_group(struct worker *worker, int fd)
{
	struct stat st;

	return !inode_stat(fd, &st) && st.st_gid == worker->in->gid;
}

void drop_privileges(struct worker *worker, struct node *node)
{
	uint32_t mode = atomic_load(&node->mode), kept = mode & ~(uint32_t)S_ISUID;
	struct change change = {.node = node};
	int fd;

	if (S_ISDIR(mode) || !(mode & (S_ISUID | S_ISGID)))
		return;
	fd = node_get(worker->fs, node);
	if (fd >= 0 && (mode & S_IXGRP || !in_group(worker, fd)))
		kept &= ~(uint32_t)S_ISGID;
	if (fd >= 0 && kept != mode && !inode_chmod(fd, kept & 07777)) {
		atomic_store(&node->mode, kept);
		change.frame = (struct frame){.op = WIRE_MODE, .mode = kept & 07777};
		stream_change(worker->fs, &change);
	}
	node_put(node, fd);
}

static void send_data(struct mirror *fs, struct node *node, uint64_t offset, const char *data, size_t size,
		      struct op *op)
{
	for (size_t done = 0; done < size;) {
		size_t part = size - done < WIRE_CHUNK ? size - done : WIRE_CHUNK;
		struct change change = {.frame = {.op = WIRE_WRITE, .offset = offset + done, .length = part},
					.node = node,
					.data = data + done,
					.data_len = part};

		done += part;
		if (done == size) {
			change.op = op;
			change.wait = WAIT_WRITE;
		}
		stream_change(fs, &change);
	}
}

// The local disk took less than the peer was told: the peer gets what is really there.
static void mend_peer(struct mirror *fs, struct open_file *file, uint64_t offset, size_t size)
{
	char *data = malloc(size ? size : 1);
	ssize_t got = data ? pread(file->fd, data, size, (off_t)offset) : -1;
	struct stat st;
	struct change change = {.frame = {.op = WIRE_TRUNCATE}, .node = file->node};

	if (got > 0)
		send_data(fs, file->node, offset, data, (size_t)got, NULL);
	if (got >= 0 && !fstat(file->fd, &st)) {
		change.frame.length = (uint64_t)st.st_size;
		stream_change(fs, &change);
	} else {
		pthread_mutex_lock(&fs->stream_lock);
		peer_lost(fs, EIO, "a failed write could not be taken back at the peer");
		pthread_mutex_unlock(&fs->stream_lock);
	}
	free(data);
}

void do_write(struct worker *worker)
{
	struct mirror *fs = worker->fs;
	const struct fuse_write_in *in = (const void *)worker->body;
	struct open_file *file = file_of(in->fh);
	struct node *node = file->node;
	const char *data = (const char *)(in + 1);
	struct op *op;
	size_t done = 0;
	int error;

	if (!change_begin(worker, MIRROR_EVENT_DATA, node, in->offset, in->size))
		return;
	op = op_new(worker);
	if (!op) {
		change_end(fs);
		reply(worker, -ENOMEM, NULL, 0);
		return;
	}
	if (in->write_flags & FUSE_WRITE_KILL_SUIDGID)
		drop_privileges(worker, node);
	pthread_rwlock_rdlock(node_stripe(fs, node));
	send_data(fs, node, in->offset, data, in->size, op);
	error = pwrite_all(file->fd, data, in->size, in->offset, &done);
	if (error)
		mend_peer(fs, file, in->offset, in->size);
	pthread_rwlock_unlock(node_stripe(fs, node));
	times_mark(fs, node);
	*(struct fuse_write_out *)op->reply = (struct fuse_write_out){.size = (uint32_t)done};
	op->size = sizeof(struct fuse_write_out);
	__atomic_fetch_add(&fs->stats.bytes_written, done, __ATOMIC_RELAXED);
	change_end(fs);
	op_done(fs, op, done ? 0 : error);
}

// The peer starts first; both disks work at the same time.
static void sync_inode(struct worker *worker, int fd, struct node *node, bool data_only)
{
	struct mirror *fs = worker->fs;
	struct op *op = worker->op ? worker->op : op_new(worker);
	struct change change = {.frame = {.op = WIRE_SYNC, .flags = data_only ? WIRE_DATA_ONLY : 0},
				.node = node,
				.op = op,
				.wait = WAIT_SYNC};

	if (!op) {
		reply(worker, -ENOMEM, NULL, 0);
		return;
	}
	if (!worker->op) {
		op->sync = true;
		if (!data_only)
			times_send(fs, node);
		stream_change(fs, &change);
		worker->op = op;
		if (uring_defer(worker))
			return; // it comes here again
	}
	worker->op = NULL;
	op_done(fs, op, (data_only ? fdatasync(fd) : fsync(fd)) ? -errno : 0);
}

void do_fsync(struct worker *worker)
{
	const struct fuse_fsync_in *in = (const void *)worker->body;
	struct open_file *file = file_of(in->fh);

	sync_inode(worker, file->fd, file->node, in->fsync_flags & FUSE_FSYNC_FDATASYNC);
}

void do_fsyncdir(struct worker *worker)
{
	const struct fuse_fsync_in *in = (const void *)worker->body;
	struct node *node = node_of(worker->fs, worker->in->nodeid);
	int fd = inode_open(&worker->fs->parts, &node->handle, O_RDONLY | O_DIRECTORY);

	if (fd < 0) {
		reply(worker, fd, NULL, 0);
		return;
	}
	sync_inode(worker, fd, node, in->fsync_flags & FUSE_FSYNC_FDATASYNC);
	close(fd);
}

void do_syncfs(struct worker *worker)
{
	struct mirror *fs = worker->fs;
	struct op *op = op_new(worker);
	struct change change = {.frame = {.op = WIRE_SYNCFS}, .node = fs->root, .op = op, .wait = WAIT_SYNC};

	if (!op) {
		reply(worker, -ENOMEM, NULL, 0);
		return;
	}
	times_send_all(fs);
	stream_change(fs, &change);
	op_done(fs, op, parts_sync(&fs->parts));
}
