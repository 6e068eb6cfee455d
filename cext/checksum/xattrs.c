// SPDX-License-Identifier: Apache-2.0
// Extended attributes. POSIX ACLs and file capabilities are stored as such, and travel as such.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>
#include "tree.h"

#define LIST_MAX  65536
#define PROC_ROOM (32 + NAME_ROOM)

// Linux 6.13, the same number on every architecture; older headers do not know it, older kernels answer ENOSYS.
#ifndef SYS_listxattrat
#define SYS_listxattrat 465
#endif

// /proc/self/fd/N reaches the inode itself, also of an O_PATH descriptor and of a symbolic link.
static void proc_path(char path[PROC_ROOM], int fd, const char *name)
{
	snprintf(path, PROC_ROOM, "/proc/self/fd/%d%s%s", fd, name ? "/" : "", name ? name : "");
}

static ssize_t list(const char *path, int follow, char *names)
{
	ssize_t length = follow ? listxattr(path, names, LIST_MAX) : llistxattr(path, names, LIST_MAX);

	return length < 0 && (errno == EOPNOTSUPP || errno == ENOSYS) ? 0 : length;
}

// Of a name in an open directory. Most have none, and then one system call tells: /proc is a long way to them.
static ssize_t list_named(int folder, const char *name, const char *path, char *names)
{
	long length = syscall(SYS_listxattrat, folder, name, AT_SYMLINK_NOFOLLOW, names, (size_t)LIST_MAX);

	if (length < 0 && (errno == ENOSYS || errno == EOPNOTSUPP || errno == EPERM))
		return list(path, 0, names);
	return length;
}

static ssize_t get(const char *path, int follow, const char *name, void *value, size_t room)
{
	return follow ? getxattr(path, name, value, room) : lgetxattr(path, name, value, room);
}

static int read_one(const char *path, int follow, const char *name, struct buffer *to)
{
	size_t start = to->used;
	ssize_t length = get(path, follow, name, NULL, 0);

	if (length < 0)
		return errno == ENODATA ? 0 : -1;
	if (to->used + (size_t)length > XATTRS_MAX) {
		errno = E2BIG;
		return -1;
	}
	put_string(to, name, strlen(name));
	put_u32(to, (uint32_t)length);
	unsigned char *value = put_space(to, (size_t)length);

	if (to->failed) {
		errno = ENOMEM;
		return -1;
	}
	if (length && get(path, follow, name, value, (size_t)length) != length) {
		to->used = start; // it changed at this moment: ctime will say so
		errno = EAGAIN;
		return -1;
	}
	return 0;
}

int xattrs_read(int fd, const char *name, struct buffer *to)
{
	char names[LIST_MAX], path[PROC_ROOM];
	// Without a name most inodes are regular files that are open and have no attributes: one call tells.
	ssize_t length = name ? -1 : flistxattr(fd, names, LIST_MAX);

	to->used = 0;
	if (length == 0)
		return 0;
	proc_path(path, fd, name);
	if (name)
		length = list_named(fd, name, path, names);
	else if (length < 0 && (errno == EBADF || errno == EOPNOTSUPP))
		length = list(path, 1, names);
	if (length <= 0)
		return (int)length;
	for (char *at = names; at < names + length; at += strlen(at) + 1)
		if (read_one(path, !name, at, to))
			return -1;
	return 0;
}

int xattrs_are_good(const unsigned char *data, size_t length)
{
	struct reader r = {data, data + length, 0};
	char name[NAME_ROOM];

	if (length > XATTRS_MAX)
		return 0;
	while (!r.bad && r.at < r.end) {
		size_t named = take_string(&r, name, sizeof(name));

		if (named == 0 || strlen(name) != named)
			return 0;
		take(&r, take_u32(&r));
	}
	return !r.bad;
}

struct digest xattrs_digest(const struct secret *secret, const struct buffer *xattrs)
{
	struct digest sum = {0, 0};
	struct reader r = read_buffer(xattrs);

	while (xattrs->used && r.at < r.end && !r.bad) {
		const unsigned char *from = r.at;

		take(&r, take_u16(&r));
		take(&r, take_u32(&r));
		if (!r.bad)
			digest_add(&sum, digest_of(secret, from, (size_t)(r.at - from)));
	}
	return sum;
}

static int has_name(const struct buffer *xattrs, const char *wanted)
{
	struct reader r = read_buffer(xattrs);
	char name[NAME_ROOM];

	while (xattrs->used && r.at < r.end && !r.bad) {
		take_string(&r, name, sizeof(name));
		take(&r, take_u32(&r));
		if (strcmp(name, wanted) == 0)
			return 1;
	}
	return 0;
}

int xattrs_write(int fd, const struct buffer *wanted)
{
	struct reader r = read_buffer(wanted);
	char names[LIST_MAX], path[PROC_ROOM], name[NAME_ROOM];

	proc_path(path, fd, NULL);
	ssize_t length = list(path, 1, names);

	if (length < 0)
		return -1;
	for (char *at = names; at < names + length; at += strlen(at) + 1)
		if (!has_name(wanted, at) && removexattr(path, at) && errno != ENODATA)
			return -1;
	while (wanted->used && r.at < r.end && !r.bad) {
		take_string(&r, name, sizeof(name));
		uint32_t size = take_u32(&r);
		const void *value = take(&r, size);

		if (!value || setxattr(path, name, value, size, 0))
			return -1;
	}
	return 0;
}
