// SPDX-License-Identifier: Apache-2.0
// Attributes: stat, chmod, chown, truncate, times, extended attributes (and with them ACLs), statfs.
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <unistd.h>
#include "engine.h"

#define FOREVER_S (365ull * 24 * 3600)

static void fill_attr_out(struct fuse_attr_out *out, const struct stat *st)
{
	*out = (struct fuse_attr_out){.attr_valid = FOREVER_S};
	fill_attr(&out->attr, st);
}

void do_getattr(struct worker *worker)
{
	struct mirror *fs = worker->fs;
	const struct fuse_getattr_in *in = (const void *)worker->body;
	struct node *node = node_of(fs, worker->in->nodeid);
	bool open = in->getattr_flags & FUSE_GETATTR_FH;
	int fd = open ? ((struct open_file *)(uintptr_t)in->fh)->fd : node_get(fs, node);
	struct fuse_attr_out out;
	struct stat st;
	int error = fd < 0 ? fd : inode_stat(fd, &st);

	if (!open)
		node_put(node, fd);
	st.st_ino = node->ino;
	if (!error)
		fill_attr_out(&out, &st);
	reply(worker, error, &out, sizeof(out));
}

struct setting {
	struct worker *worker;
	struct node *node;
	const struct fuse_setattr_in *in;
	int fd;
	struct stat st;
	struct frame frames[4];
	int count;
};

static struct frame *add(struct setting *setting, int op)
{
	struct frame *frame = &setting->frames[setting->count++];

	frame->op = (uint16_t)op;
	return frame;
}

static int set_owner(struct setting *setting)
{
	const struct fuse_setattr_in *in = setting->in;
	uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
	gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;
	int error = inode_chown(setting->fd, uid, gid);

	if (!error) {
		struct frame *frame = add(setting, WIRE_OWNER);

		frame->uid = uid;
		frame->gid = gid;
	}
	return error;
}

static int set_mode(struct setting *setting)
{
	int error = inode_chmod(setting->fd, setting->in->mode & 07777);

	if (!error)
		add(setting, WIRE_MODE)->mode = setting->in->mode & 07777;
	return error;
}

static int set_size(struct setting *setting)
{
	const struct fuse_setattr_in *in = setting->in;
	int error;

	if (in->valid & FATTR_FH)
		error = ftruncate(((struct open_file *)(uintptr_t)in->fh)->fd, (off_t)in->size) ? -errno : 0;
	else
		error = inode_truncate(setting->fd, in->size);
	if (!error)
		add(setting, WIRE_TRUNCATE)->length = in->size;
	return error;
}

static struct timespec wanted_time(const struct fuse_setattr_in *in, uint32_t set, uint32_t now, uint64_t s,
				   uint32_t ns)
{
	if (in->valid & now)
		return (struct timespec){0, UTIME_NOW};
	return in->valid & set ? (struct timespec){(time_t)s, ns} : (struct timespec){0, UTIME_OMIT};
}

static int set_times(struct setting *setting)
{
	const struct fuse_setattr_in *in = setting->in;
	struct timespec times[2] = {
	    wanted_time(in, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
	    wanted_time(in, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
	};
	int error = inode_times(setting->fd, times);
	struct frame *frame;
	struct stat st;

	if (!error)
		error = inode_stat(setting->fd, &st);
	if (error)
		return error;
	frame = add(setting, WIRE_TIMES);
	frame->flags = (uint16_t)((times[0].tv_nsec == UTIME_OMIT ? 0 : WIRE_SET_ATIME) |
				  (times[1].tv_nsec == UTIME_OMIT ? 0 : WIRE_SET_MTIME));
	frame->atime_ns = st.st_atim.tv_sec * 1000000000ll + st.st_atim.tv_nsec;
	frame->mtime_ns = st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec;
	return 0;
}

static int set_all(struct setting *setting)
{
	uint32_t valid = setting->in->valid;
	int error = 0;

	// A change of owner takes the bits by itself, save one that root, as whom we act, may keep.
	if (valid & FATTR_KILL_SUIDGID || (valid & (FATTR_UID | FATTR_GID) && setting->worker->in->uid))
		drop_privileges(setting->worker, setting->node);
	if (valid & (FATTR_UID | FATTR_GID))
		error = set_owner(setting);
	if (!error && valid & FATTR_MODE)
		error = set_mode(setting);
	if (!error && valid & FATTR_SIZE)
		error = set_size(setting);
	if (!error && valid & (FATTR_ATIME | FATTR_MTIME))
		error = set_times(setting);
	return error;
}

static int set_attributes(struct worker *worker, struct node *node, struct op *op)
{
	struct setting setting = {.worker = worker, .node = node, .in = (const void *)worker->body};
	int error;

	setting.fd = node_get(worker->fs, node);
	if (setting.fd < 0)
		return setting.fd;
	pthread_rwlock_wrlock(node_stripe(worker->fs, node));
	error = set_all(&setting);
	for (int i = 0; i < setting.count; i++) {
		struct change change = {.frame = setting.frames[i], .node = node, .wait = WAIT_NAMES};

		// What was done before something failed was done.
		change.op = i == setting.count - 1 ? op : NULL;
		stream_change(worker->fs, &change);
	}
	pthread_rwlock_unlock(node_stripe(worker->fs, node));
	if (!error)
		error = inode_stat(setting.fd, &setting.st);
	if (!error) {
		atomic_store(&node->mode, setting.st.st_mode);
		setting.st.st_ino = node->ino;
		fill_attr_out((void *)op->reply, &setting.st);
		op->size = sizeof(struct fuse_attr_out);
	}
	node_put(node, setting.fd);
	times_mark(worker->fs, node);
	return error;
}

void do_setattr(struct worker *worker)
{
	struct mirror *fs = worker->fs;
	const struct fuse_setattr_in *in = (const void *)worker->body;
	struct node *node = node_of(fs, worker->in->nodeid);
	bool cut = fs->config.confirm && in->valid & FATTR_SIZE;
	struct op *op;
	int error;

	if (!change_begin(worker, cut ? MIRROR_EVENT_WHOLE : MIRROR_EVENT_INODE, node, 0, 0))
		return;
	op = op_new(worker);
	error = op ? set_attributes(worker, node, op) : -ENOMEM;
	change_end(fs);
	if (op)
		op_done(fs, op, error);
	else
		reply(worker, error, NULL, 0);
}

void do_statfs(struct worker *worker)
{
	struct fuse_statfs_out out = {0};
	struct node *node = node_of(worker->fs, worker->in->nodeid);
	struct statfs found;

	if (fstatfs(worker->fs->parts.of[inode_part(&node->handle)].fd, &found)) {
		reply(worker, -errno, NULL, 0);
		return;
	}
	out.st = (struct fuse_kstatfs){
	    .blocks = (uint64_t)found.f_blocks,
	    .bfree = (uint64_t)found.f_bfree,
	    .bavail = (uint64_t)found.f_bavail,
	    .files = (uint64_t)found.f_files,
	    .ffree = (uint64_t)found.f_ffree,
	    .bsize = (uint32_t)found.f_bsize,
	    .namelen = (uint32_t)found.f_namelen,
	    .frsize = (uint32_t)found.f_frsize,
	};
	reply(worker, 0, &out, sizeof(out));
}

static void answer_xattr(struct worker *worker, ssize_t size, const char *data, uint32_t room)
{
	struct fuse_getxattr_out out = {.size = (uint32_t)size};

	if (size < 0)
		reply(worker, (int)size, NULL, 0);
	else if (!room)
		reply(worker, 0, &out, sizeof(out));
	else
		reply(worker, 0, data, (size_t)size);
}

void do_getxattr(struct worker *worker)
{
	const struct fuse_getxattr_in *in = (const void *)worker->body;
	struct node *node = node_of(worker->fs, worker->in->nodeid);
	uint32_t room = in->size < 65536 ? in->size : 65536;
	char *value = worker->room;
	int fd = node_get(worker->fs, node);
	ssize_t size = fd < 0 ? fd : inode_getxattr(fd, (const char *)(in + 1), room ? value : NULL, room);

	node_put(node, fd);
	answer_xattr(worker, size, value, room);
}

// As the kernel's own file systems do: trusted attributes are none of a user's business.
static ssize_t hide_trusted(char *list, ssize_t size)
{
	ssize_t kept = 0;

	for (ssize_t at = 0; at < size;) {
		ssize_t len = (ssize_t)strlen(list + at) + 1;

		if (strncmp(list + at, "trusted.", 8)) {
			memmove(list + kept, list + at, (size_t)len);
			kept += len;
		}
		at += len;
	}
	return kept;
}

void do_listxattr(struct worker *worker)
{
	const struct fuse_getxattr_in *in = (const void *)worker->body;
	struct node *node = node_of(worker->fs, worker->in->nodeid);
	uint32_t room = in->size;
	char *list = worker->room;
	int fd = node_get(worker->fs, node);
	ssize_t size = fd < 0 ? fd : inode_listxattr(fd, list, 65536);

	node_put(node, fd);
	if (size > 0 && worker->in->uid)
		size = hide_trusted(list, size);
	if (room && size > (ssize_t)room)
		size = -ERANGE;
	answer_xattr(worker, size, list, room);
}

// An ACL changes the mode, and the group's bit goes if the caller may not have it.
static void after_xattr(struct mirror *fs, struct node *node, int fd, bool drop_sgid)
{
	struct change change = {.frame = {.op = WIRE_MODE}, .node = node};
	struct stat st;

	if (inode_stat(fd, &st))
		return;
	if (drop_sgid && st.st_mode & S_ISGID && !inode_chmod(fd, st.st_mode & 07777 & ~(mode_t)S_ISGID)) {
		st.st_mode &= ~(mode_t)S_ISGID;
		change.frame.mode = st.st_mode & 07777;
		stream_change(fs, &change);
	}
	atomic_store(&node->mode, st.st_mode);
}

static void change_xattr(struct worker *worker, struct change *change, bool drop_sgid)
{
	struct mirror *fs = worker->fs;
	struct node *node = node_of(fs, worker->in->nodeid);
	int fd, error;

	if (!change_begin(worker, MIRROR_EVENT_INODE, node, 0, 0))
		return;
	fd = node_get(fs, node);
	change->node = node;
	change->wait = WAIT_NAMES;
	change->op = op_new(worker);
	if (!change->op)
		error = -ENOMEM;
	else if (fd < 0)
		error = fd;
	else if (change->frame.op == WIRE_SETXATTR)
		error = inode_setxattr(fd, change->name, change->data, change->data_len, (int)change->frame.mode);
	else
		error = inode_delxattr(fd, change->name);
	if (!error) {
		stream_change(fs, change);
		after_xattr(fs, node, fd, drop_sgid);
	}
	node_put(node, fd);
	change_end(fs);
	if (change->op)
		op_done(fs, change->op, error);
	else
		reply(worker, error, NULL, 0);
}

void do_setxattr(struct worker *worker)
{
	const struct fuse_setxattr_in *in = (const void *)worker->body;
	struct change change = {.frame = {.op = WIRE_SETXATTR, .mode = in->flags}, .name = (const char *)(in + 1)};

	change.data = change.name + strlen(change.name) + 1;
	change.data_len = in->size;
	change_xattr(worker, &change, in->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID);
}

void do_removexattr(struct worker *worker)
{
	change_xattr(worker, &(struct change){.frame = {.op = WIRE_DELXATTR}, .name = worker->body}, false);
}
