// SPDX-License-Identifier: Apache-2.0
// A mirror of several directories: one tree whose root holds nothing but a mount point for each of them, its parts.
// mirror/compose.c makes such a root, a read-only tmpfs that is mounted nowhere. That is also how one is recognised: a
// directory that is replicated by itself can be written. Everything below a part stays on that part's mount.
#ifndef FARM_PARTS_H
#define FARM_PARTS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/magic.h>
#include <linux/openat2.h>

#define PARTS_MAX      32
#define PART_NAME_ROOM 65

struct parts {
	int root, count; // count 0: one directory, and `of[0]` is all
	struct part {
		int fd;
		dev_t dev;
		char name[PART_NAME_ROOM];
	} of[1 + PARTS_MAX]; // of[0]: the root; then by name
};

static inline bool parts_in(int root)
{
	struct statfs fs;

	return !fstatfs(root, &fs) && (uint64_t)fs.f_type == TMPFS_MAGIC && (uint64_t)fs.f_flags & ST_RDONLY;
}

// The part `name` of such a root, for reading: the one step that may cross onto another mount. -1 and errno.
static inline int part_open(int root, const char *name)
{
	struct open_how how = {
	    .flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
	    .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};

	return (int)syscall(SYS_openat2, root, name, &how, sizeof(how));
}

static inline void parts_close(struct parts *parts)
{
	for (int i = 1; i <= parts->count; i++)
		close(parts->of[i].fd);
	parts->count = 0;
}

static inline int parts_by_name(const void *a, const void *b)
{
	return strcmp(((const struct part *)a)->name, ((const struct part *)b)->name);
}

static inline int part_add(struct parts *parts, const char *name)
{
	struct part *part = &parts->of[parts->count + 1];
	struct stat st;

	if (parts->count == PARTS_MAX || strlen(name) >= PART_NAME_ROOM)
		return -E2BIG;
	part->fd = part_open(parts->root, name);
	if (part->fd < 0)
		return -errno;
	parts->count++;
	if (fstat(part->fd, &st))
		return -errno;
	part->dev = st.st_dev;
	memcpy(part->name, name, strlen(name) + 1);
	return 0;
}

// `root` stays the caller's. 0 or -errno.
static inline int parts_open(struct parts *parts, int root)
{
	struct stat st = {0};
	int error = fstat(root, &st) ? -errno : 0, fd;
	DIR *list;

	memset(parts, 0, sizeof(*parts));
	parts->root = parts->of[0].fd = root;
	parts->of[0].dev = st.st_dev;
	if (error || !parts_in(root))
		return error;
	fd = openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	list = fd < 0 ? NULL : fdopendir(fd);
	if (!list) {
		error = -errno;
		if (fd >= 0)
			close(fd);
		return error;
	}
	for (struct dirent *entry; !error && (entry = readdir(list));)
		if (entry->d_name[0] != '.')
			error = part_add(parts, entry->d_name);
	closedir(list);
	qsort(parts->of + 1, (size_t)parts->count, sizeof(*parts->of), parts_by_name);
	if (error)
		parts_close(parts);
	return error;
}

// In which part the entry `name` of a directory is; `part` is that of the directory, 0: the root.
static inline int part_below(const struct parts *parts, int part, const char *name)
{
	for (int i = 1; !part && name && i <= parts->count; i++)
		if (!strcmp(parts->of[i].name, name))
			return i;
	return part;
}

// syncfs(2) of every file system. 0 or -errno.
static inline int parts_sync(const struct parts *parts)
{
	int error = 0;

	for (int i = parts->count ? 1 : 0; i <= parts->count; i++)
		if (syscall(SYS_syncfs, parts->of[i].fd) && !error)
			error = -errno;
	return error;
}

#endif
