// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "apply.h"

static void close_quietly(int fd)
{
	int code = errno;

	if (fd >= 0)
		close(fd);
	errno = code;
}

int apply_make(int folder, const struct entry_message *wanted)
{
	uint32_t type = wanted->meta.mode & S_IFMT;
	int fd;

	switch (type) {
	case S_IFREG:
		fd = openat(folder, wanted->name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (fd < 0)
			return -1;
		return close(fd);
	case S_IFDIR:
		return mkdirat(folder, wanted->name, 0700);
	case S_IFLNK:
		return symlinkat(wanted->target, folder, wanted->name);
	default:
		return mknodat(folder, wanted->name, type | 0600, makedev(wanted->meta.major, wanted->meta.minor));
	}
}

struct first_folder {
	char name[NAME_ROOM];
	uint64_t *deleted;
};

// Deletes all but directories; stops at the first of those.
static int delete_flat(void *context, int folder, const struct entry *entry, struct scratch *scratch)
{
	struct first_folder *first = context;

	(void)scratch;
	if (entry->local.mount_root) {
		errno = EBUSY;
		return -1;
	}
	if (S_ISDIR(entry->meta.mode)) {
		memcpy(first->name, entry->name, entry->name_length + 1);
		return 1;
	}
	if (unlinkat(folder, entry->name, 0) && errno != ENOENT)
		return -1;
	(*first->deleted)++;
	return 0;
}

// From the top down to a directory without directories, delete that, and again: no stack, no open files.
static int delete_tree(int root, const char *path, struct scratch *scratch, uint64_t *deleted)
{
	char at[PATH_ROOM];
	size_t top = strlen(path), length = top;

	memcpy(at, path, top + 1);
	for (;;) {
		struct first_folder first = {.deleted = deleted};
		int fd = tree_open_folder(root, at);

		if (fd < 0)
			return -1;
		int result = tree_each(fd, scratch, delete_flat, &first);

		close_quietly(fd);
		if (result < 0)
			return -1;
		if (result == 1) {
			if (length + 1 + strlen(first.name) >= PATH_ROOM) {
				errno = ENAMETOOLONG;
				return -1;
			}
			length += (size_t)sprintf(at + length, "/%s", first.name);
			continue;
		}
		if (length == top)
			return 0;
		char *slash = strrchr(at, '/');

		*slash = 0;
		fd = tree_open_folder(root, at);
		if (fd < 0 || (unlinkat(fd, slash + 1, AT_REMOVEDIR) && errno != ENOENT)) {
			close_quietly(fd);
			return -1;
		}
		close(fd);
		(*deleted)++;
		length = (size_t)(slash - at);
	}
}

int apply_delete(int root, int folder, const char *path, const char *name, int is_folder, struct scratch *scratch,
		 uint64_t *deleted)
{
	char whole[PATH_ROOM];

	if (is_folder) {
		if (path_join(whole, path, name)) {
			errno = ENAMETOOLONG;
			return -1;
		}
		if (delete_tree(root, whole, scratch, deleted))
			return -1;
	}
	if (unlinkat(folder, name, is_folder ? AT_REMOVEDIR : 0) && errno != ENOENT)
		return -1;
	(*deleted)++;
	return 0;
}

int apply_folder(int root, const char *folder, struct scratch *scratch, folder_made made, void *context)
{
	char path[PATH_ROOM], *slash = path;
	uint64_t deleted = 0;
	int fd = tree_open_folder(root, folder);

	if (fd >= 0 || (errno != ENOENT && errno != ENOTDIR && errno != ELOOP))
		return fd;
	fd = tree_open_folder(root, "");
	memcpy(path, folder, strlen(folder) + 1);
	while (fd >= 0 && slash) {
		char *name = slash;
		struct entry entry;

		slash = strchr(name, '/');
		if (slash)
			*slash = 0;
		// One step: what is there and is no directory makes room for one.
		int there = tree_stat(fd, name, &entry) == 0;
		int failed = 0;

		if (there && !S_ISDIR(entry.meta.mode))
			failed = apply_delete(root, fd, "", name, 0, scratch, &deleted);
		if (!failed && (!there || !S_ISDIR(entry.meta.mode))) {
			failed = mkdirat(fd, name, 0700) && errno != EEXIST;
			if (!failed)
				made(context, path, there);
		}
		close_quietly(fd);
		fd = failed ? -1 : tree_open_folder(root, path);
		if (slash)
			*slash++ = '/';
	}
	return fd;
}

int apply_meta(int fd, const struct meta *meta, const struct buffer *xattrs)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = meta->mtime_s, .tv_nsec = meta->mtime_ns}};
	char proc[48];

	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	if (fchownat(fd, "", meta->uid, meta->gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW))
		return -1;
	if (xattrs && xattrs_write(fd, xattrs))
		return -1;
	// A symbolic link has no mode of its own.
	if (!S_ISLNK(meta->mode) && chmod(proc, meta->mode & 07777))
		return -1;
	return utimensat(fd, "", times, AT_EMPTY_PATH);
}

int apply_link(int root, const char *path, uint64_t inode, int folder, const char *name)
{
	struct entry entry;
	char proc[48];
	int fd = tree_open_file(root, path, O_PATH);
	int result = -1;

	if (fd < 0)
		return -1;
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	if (tree_stat(fd, "", &entry) == 0) {
		if (entry.local.inode != inode)
			errno = ESTALE;
		else
			result = linkat(AT_FDCWD, proc, folder, name, AT_SYMLINK_FOLLOW);
	}
	close_quietly(fd);
	return result;
}

int apply_data(int fd, uint64_t offset, const void *data, size_t length)
{
	while (length) {
		ssize_t wrote = pwrite(fd, data, length, (off_t)offset);

		if (wrote < 0)
			return -1;
		if (wrote == 0) {
			errno = ENOSPC;
			return -1;
		}
		data = (const char *)data + wrote;
		offset += (uint64_t)wrote;
		length -= (size_t)wrote;
	}
	return 0;
}

int apply_zeros(int fd, uint64_t offset, uint64_t length, int hole)
{
	static const unsigned char zeros[BLOCK_SIZE];

	if (hole && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) == 0)
		return 0;
	while (length) {
		size_t step = length < BLOCK_SIZE ? (size_t)length : BLOCK_SIZE;

		if (apply_data(fd, offset, zeros, step))
			return -1;
		offset += step;
		length -= step;
	}
	return 0;
}
