// SPDX-License-Identifier: Apache-2.0
// Operations on names. The change is made here first and sent then; the kernel holds the directories' locks until the
// reply, so nothing comes between. A node that loses its name is made known to the peer before, so that open files of
// it go on being replicated.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "engine.h"

#define FOREVER_S (365ull * 24 * 3600)

void fill_attr(struct fuse_attr *attr, const struct stat *st)
{
	*attr = (struct fuse_attr){
	    .ino = st->st_ino,
	    .size = (uint64_t)st->st_size,
	    .blocks = (uint64_t)st->st_blocks,
	    .atime = (uint64_t)st->st_atim.tv_sec,
	    .mtime = (uint64_t)st->st_mtim.tv_sec,
	    .ctime = (uint64_t)st->st_ctim.tv_sec,
	    .atimensec = (uint32_t)st->st_atim.tv_nsec,
	    .mtimensec = (uint32_t)st->st_mtim.tv_nsec,
	    .ctimensec = (uint32_t)st->st_ctim.tv_nsec,
	    .mode = st->st_mode,
	    .nlink = (uint32_t)st->st_nlink,
	    .uid = st->st_uid,
	    .gid = st->st_gid,
	    .rdev = (uint32_t)st->st_rdev,
	    .blksize = (uint32_t)st->st_blksize,
	};
}

// Nobody else changes the directory, so what the kernel knows stays true until it changes it itself.
void fill_entry(struct mirror *fs, struct fuse_entry_out *out, struct node *node, const struct stat *st)
{
	*out = (struct fuse_entry_out){.entry_valid = FOREVER_S, .attr_valid = FOREVER_S};
	out->nodeid = node ? node_id(fs, node) : 0;
	if (node)
		fill_attr(&out->attr, st);
}

static int look(struct mirror *fs, struct node *parent, int dir, const char *name, struct stat *st, struct node **node)
{
	int fd = inode_enter(&fs->parts, inode_part(&parent->handle), dir, name);

	return fd < 0 ? fd : node_from_path(fs, parent, name, fd, st, node);
}

int names_look_up(struct mirror *fs, struct node *parent, const char *name, struct stat *st, struct node **node)
{
	int dir = node_get(fs, parent), error = dir < 0 ? dir : look(fs, parent, dir, name, st, node);

	node_put(parent, dir);
	return error;
}

void do_lookup(struct worker *worker)
{
	struct mirror *fs = worker->fs;
	struct node *parent = node_of(fs, worker->in->nodeid), *node = NULL;
	struct fuse_entry_out out;
	struct stat st;
	int error = names_look_up(fs, parent, worker->body, &st, &node);

	if (error && error != -ENOENT) {
		reply(worker, error, NULL, 0);
		return;
	}
	fill_entry(fs, &out, node, &st); // without a node: there is no such name, and the kernel may remember that
	reply(worker, 0, &out, sizeof(out));
}

struct making { // of a new inode
	struct node *parent, *node;
	const char *name, *target;
	int dir, fd;
	uint32_t mode, umask, rdev;
	uint16_t wire;
	struct stat st;
};

static int make_locally(struct worker *worker, struct making *making)
{
	inode_act_as(worker->in->uid, worker->in->gid, making->umask);
	switch (making->wire) {
	case WIRE_MKDIR:
		return mkdirat(making->dir, making->name, making->mode & 07777) ? -errno : 0;
	case WIRE_MKNOD:
		return mknodat(making->dir, making->name, making->mode, making->rdev) ? -errno : 0;
	case WIRE_SYMLINK:
		return symlinkat(making->target, making->dir, making->name) ? -errno : 0;
	case WIRE_TMPFILE: {
		char path[40]; // O_TMPFILE wants a path, and O_PATH descriptors have one only here

		snprintf(path, sizeof(path), "/proc/self/fd/%d", making->dir);
		making->fd = open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, making->mode & 07777);
		return making->fd < 0 ? -errno : 0;
	}
	default:
		making->fd = openat(making->dir, making->name, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC,
				    making->mode & 07777);
		return making->fd < 0 ? -errno : 0;
	}
}

static int make_inode(struct worker *worker, struct making *making, struct op *op)
{
	struct mirror *fs = worker->fs;
	struct change change = {.node = making->parent, .makes = true, .op = op, .wait = WAIT_NAMES};
	int error = make_locally(worker, making);

	if (error)
		return error;
	if (making->fd >= 0)
		error = node_from_fd(fs, making->parent, making->wire == WIRE_TMPFILE ? NULL : making->name, making->fd,
				     &making->st, &making->node);
	else
		error = look(fs, making->parent, making->dir, making->name, &making->st, &making->node);
	if (error)
		return error;
	op->entry = making->node;
	if (making->node->excluded) {
		times_mark(fs, making->parent); // which has changed, even if the peer does not get the name
		return 0;
	}
	change.other = making->node;
	change.name = making->wire == WIRE_TMPFILE ? NULL : making->name;
	change.second = making->target;
	change.frame = (struct frame){.op = making->wire, .mode = making->mode, .umask = making->umask};
	change.frame.uid = worker->in->uid;
	change.frame.gid = worker->in->gid;
	change.frame.rdev = making->rdev;
	stream_change(fs, &change);
	times_mark(fs, making->node);
	times_mark(fs, making->parent);
	return 0;
}

static void answer_open(struct op *op, struct making *making)
{
	struct open_file *file = malloc(sizeof(*file));
	struct fuse_open_out *out = (void *)(op->reply + sizeof(struct fuse_entry_out));

	*out = (struct fuse_open_out){.fh = (uintptr_t)file, .open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH};
	op->size = sizeof(struct fuse_entry_out) + sizeof(*out);
	if (!file) {
		close(making->fd);
		op->error = -ENOMEM;
		return;
	}
	*file = (struct open_file){making->fd, making->node};
}

static void make(struct worker *worker, struct making *making)
{
	struct mirror *fs = worker->fs;
	struct op *op = op_new(worker);
	int error;

	making->parent = node_of(fs, worker->in->nodeid);
	making->fd = -1;
	if (!op) {
		reply(worker, -ENOMEM, NULL, 0);
		return;
	}
	if (!change_begin(worker, MIRROR_EVENT_NAMES, making->parent, 0, 0)) {
		free(op);
		return;
	}
	if (making->name)
		dirty_place(fs, making->parent, making->name, making->wire == WIRE_MKDIR);
	making->dir = node_get(fs, making->parent);
	error = making->dir < 0 ? making->dir : make_inode(worker, making, op);
	node_put(making->parent, making->dir);
	if (!error) {
		fill_entry(fs, (void *)op->reply, making->node, &making->st);
		op->size = sizeof(struct fuse_entry_out);
		if (making->fd >= 0)
			answer_open(op, making);
	} else if (making->fd >= 0) {
		close(making->fd);
	}
	change_end(fs);
	op_done(fs, op, error);
}

void do_create(struct worker *worker)
{
	const struct fuse_create_in *in = (const void *)worker->body;

	make(worker, &(struct making){
			 .name = (const char *)(in + 1), .mode = in->mode, .umask = in->umask, .wire = WIRE_CREATE});
}

void do_tmpfile(struct worker *worker)
{
	const struct fuse_create_in *in = (const void *)worker->body;

	make(worker, &(struct making){.mode = in->mode, .umask = in->umask, .wire = WIRE_TMPFILE});
}

void do_mknod(struct worker *worker)
{
	const struct fuse_mknod_in *in = (const void *)worker->body;

	make(worker, &(struct making){.name = (const char *)(in + 1),
				      .mode = in->mode,
				      .umask = in->umask,
				      .rdev = in->rdev,
				      .wire = WIRE_MKNOD});
}

void do_mkdir(struct worker *worker)
{
	const struct fuse_mkdir_in *in = (const void *)worker->body;

	make(worker, &(struct making){
			 .name = (const char *)(in + 1), .mode = in->mode, .umask = in->umask, .wire = WIRE_MKDIR});
}

void do_symlink(struct worker *worker)
{
	const char *name = worker->body;

	make(worker, &(struct making){.name = name, .target = name + strlen(name) + 1, .wire = WIRE_SYMLINK});
}

void do_readlink(struct worker *worker)
{
	struct node *node = node_of(worker->fs, worker->in->nodeid);
	char target[4096];
	int fd = node_get(worker->fs, node);
	ssize_t size = fd < 0 ? fd : readlinkat(fd, "", target, sizeof(target));

	if (fd >= 0 && size < 0)
		size = -errno;
	node_put(node, fd);
	reply(worker, size < 0 ? (int)size : 0, target, size < 0 ? 0 : (size_t)size);
}
