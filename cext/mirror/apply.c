// SPDX-License-Identifier: Apache-2.0
// One frame, one operation below the directory. Names were checked (wire_check_payload): one component, no dots.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/fs.h>
#include "receiver.h"

struct job {
	struct receiver *receiver;
	const struct frame *frame;
	const char *data;
	char name[4096], second[4096]; // second: a symlink's target may be a path
	struct known *on, *other;
	int fd; // of `on`
};

typedef int step(struct job *job);

static int result(int value)
{
	return value < 0 ? -errno : 0;
}

// Of what is found or made under the job's name.
static int part_of(const struct job *job)
{
	return part_below(&job->receiver->parts, inode_part(&job->on->handle), job->name);
}

static int do_bind(struct job *job)
{
	int fd = inode_enter(&job->receiver->parts, inode_part(&job->on->handle), job->fd, job->name);

	return fd < 0 ? fd : fid_add(job->receiver, job->frame->other, part_of(job), fd, false);
}

// The primary made the same call as the same user in the same directory: modes, groups and ACLs come out alike.
static int make(struct job *job)
{
	const struct frame *frame = job->frame;
	char path[40];
	int fd;

	inode_act_as(frame->uid, frame->gid, frame->umask & 0777);
	switch (frame->op) {
	case WIRE_CREATE:
		return openat(job->fd, job->name, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC,
			      frame->mode & 07777);
	case WIRE_TMPFILE:
		snprintf(path, sizeof(path), "/proc/self/fd/%d", job->fd);
		return open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, frame->mode & 07777);
	case WIRE_MKDIR:
		fd = mkdirat(job->fd, job->name, frame->mode & 07777);
		break;
	case WIRE_MKNOD:
		fd = mknodat(job->fd, job->name, frame->mode, frame->rdev);
		break;
	default:
		fd = symlinkat(job->second, job->fd, job->name);
	}
	if (fd < 0)
		return fd;
	fd = inode_lookup(job->fd, job->name, O_PATH);
	if (fd < 0)
		errno = -fd;
	return fd;
}

static int do_make(struct job *job)
{
	int fd, data = job->frame->op == WIRE_CREATE || job->frame->op == WIRE_TMPFILE;

	if (job->on->type != S_IFDIR)
		return -ENOTDIR;
	fd = make(job);
	return fd < 0 ? -errno : fid_add(job->receiver, job->frame->other, part_of(job), fd, data);
}

static int do_link(struct job *job)
{
	int fd = fid_get(job->receiver, job->other);
	int error = fd < 0 ? fd : inode_link(fd, job->fd, job->name);

	fid_put(job->other, fd);
	return error;
}

static int do_unlink(struct job *job)
{
	return result(unlinkat(job->fd, job->name, job->frame->op == WIRE_RMDIR ? AT_REMOVEDIR : 0));
}

static int do_rename(struct job *job)
{
	int to = fid_get(job->receiver, job->other);
	int error = to < 0 ? to : result(renameat2(job->fd, job->name, to, job->second, job->frame->mode));

	fid_put(job->other, to);
	return error;
}

static int do_write(struct job *job)
{
	size_t done;

	job->receiver->result->bytes += job->frame->size;
	return pwrite_all(job->fd, job->data, job->frame->size, job->frame->offset, &done);
}

static int do_truncate(struct job *job)
{
	return result(ftruncate(job->fd, (off_t)job->frame->length));
}

static int do_allocate(struct job *job)
{
	return result(fallocate(job->fd, (int)job->frame->mode, (off_t)job->frame->offset, (off_t)job->frame->length));
}

static int do_copy(struct job *job)
{
	off_t from = (off_t)job->frame->source, to = (off_t)job->frame->offset;
	uint64_t left = job->frame->length;
	int fd = fid_get_data(job->receiver, job->other), error = fd < 0 ? fd : 0;

	while (!error && left) {
		ssize_t n = copy_file_range(fd, &from, job->fd, &to, left, 0);

		if (n <= 0)
			error = n < 0 ? -errno : -EIO; // shorter than the primary's: the copies differ
		else
			left -= (uint64_t)n;
	}
	fid_put(job->other, fd);
	return error;
}

static int do_mode(struct job *job)
{
	return inode_chmod(job->fd, job->frame->mode & 07777);
}

static int do_owner(struct job *job)
{
	return inode_chown(job->fd, job->frame->uid, job->frame->gid);
}

static struct timespec time_of(int64_t ns, int set)
{
	struct timespec time = {ns / 1000000000, ns % 1000000000};

	if (!set)
		return (struct timespec){0, UTIME_OMIT};
	if (time.tv_nsec < 0) {
		time.tv_sec--;
		time.tv_nsec += 1000000000;
	}
	return time;
}

static int do_times(struct job *job)
{
	const struct frame *frame = job->frame;
	struct timespec times[2] = {time_of(frame->atime_ns, frame->flags & WIRE_SET_ATIME),
				    time_of(frame->mtime_ns, frame->flags & WIRE_SET_MTIME)};

	return inode_times(job->fd, times);
}

static int do_setxattr(struct job *job)
{
	const struct frame *frame = job->frame;

	return inode_setxattr(job->fd, job->name, job->data, frame->size - frame->name_len - frame->second_len,
			      (int)frame->mode);
}

static int do_delxattr(struct job *job)
{
	return inode_delxattr(job->fd, job->name);
}

static int do_sync(struct job *job)
{
	int flags = job->on->type == S_IFDIR ? O_RDONLY | O_DIRECTORY : O_RDWR;

	// Nothing but these has contents of its own on the disk.
	if (job->on->type != S_IFDIR && job->on->type != S_IFREG)
		return -EINVAL;
	if (job->on->writable)
		return sync_later(job->receiver, job->frame, fcntl(job->on->fd, F_DUPFD_CLOEXEC, 3));
	return sync_later(job->receiver, job->frame, inode_open(&job->receiver->parts, &job->on->handle, flags));
}

static int do_syncfs(struct job *job)
{
	return sync_later(job->receiver, job->frame, inode_open(&job->receiver->parts, &job->on->handle, O_RDONLY));
}

enum need {
	DATA = 1,
	OTHER = 2,
	DIRECTORY = 4,
	OTHER_DIRECTORY = 8
};

static const struct {
	step *run;
	int needs;
} steps[WIRE_OPS] = {
    [WIRE_BIND] = {do_bind, DIRECTORY},
    [WIRE_CREATE] = {do_make, DIRECTORY},
    [WIRE_MKDIR] = {do_make, DIRECTORY},
    [WIRE_MKNOD] = {do_make, DIRECTORY},
    [WIRE_SYMLINK] = {do_make, DIRECTORY},
    [WIRE_TMPFILE] = {do_make, DIRECTORY},
    [WIRE_LINK] = {do_link, DIRECTORY | OTHER},
    [WIRE_UNLINK] = {do_unlink, DIRECTORY},
    [WIRE_RMDIR] = {do_unlink, DIRECTORY},
    [WIRE_RENAME] = {do_rename, DIRECTORY | OTHER | OTHER_DIRECTORY},
    [WIRE_WRITE] = {do_write, DATA},
    [WIRE_TRUNCATE] = {do_truncate, DATA},
    [WIRE_ALLOCATE] = {do_allocate, DATA},
    [WIRE_COPY] = {do_copy, DATA | OTHER},
    [WIRE_MODE] = {do_mode, 0},
    [WIRE_OWNER] = {do_owner, 0},
    [WIRE_TIMES] = {do_times, 0},
    [WIRE_SETXATTR] = {do_setxattr, 0},
    [WIRE_DELXATTR] = {do_delxattr, 0},
    [WIRE_SYNC] = {do_sync, 0},
    [WIRE_SYNCFS] = {do_syncfs, 0},
};

static int prepare(struct job *job, const char *payload)
{
	const struct frame *frame = job->frame;
	int needs = steps[frame->op].needs;

	if (frame->name_len >= sizeof(job->name) || frame->second_len >= sizeof(job->second))
		return -ENAMETOOLONG;
	memcpy(job->name, payload, frame->name_len);
	job->name[frame->name_len] = 0;
	memcpy(job->second, payload + frame->name_len, frame->second_len);
	job->second[frame->second_len] = 0;
	job->data = payload + frame->name_len + frame->second_len;
	job->on = fid_find(job->receiver, frame->fid);
	if (needs & OTHER)
		job->other = fid_find(job->receiver, frame->other);
	if (!job->on || (needs & OTHER && !job->other))
		return -EBADR;
	if ((needs & DIRECTORY && job->on->type != S_IFDIR) || (needs & OTHER_DIRECTORY && job->other->type != S_IFDIR))
		return -ENOTDIR;
	job->fd = needs & DATA ? fid_get_data(job->receiver, job->on) : fid_get(job->receiver, job->on);
	return job->fd < 0 ? job->fd : 0;
}

int apply_frame(struct receiver *receiver, const struct frame *frame, const char *payload)
{
	struct job job;
	int error;

	if (frame->op == WIRE_PING)
		return 0;
	if (frame->op == WIRE_UNBIND) {
		fid_drop(receiver, frame->fid);
		return 0;
	}
	job.receiver = receiver;
	job.frame = frame;
	job.on = job.other = NULL;
	error = prepare(&job, payload);
	// Unlinked, and beyond what we keep open: nothing will ever find it again. (A missing fid is -EBADR.)
	if (error == -ESTALE && frame->op == WIRE_SYNC)
		return send_ack(receiver, ACK_DURABLE, frame->seq, frame->op, 0);
	if (error == -ESTALE && frame->op >= WIRE_WRITE)
		return 0;
	if (error)
		return error;
	error = steps[frame->op].run(&job);
	fid_put(job.on, job.fd);
	return error;
}
