// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "tree.h"

#define BENEATH (RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV)

static int open_at(int root, const char *path, uint64_t flags)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = BENEATH};
	long fd;

	// EAGAIN: something was renamed on the way; the kernel asks to try again.
	for (int tries = 0; tries < 100; tries++) {
		fd = syscall(SYS_openat2, root, *path ? path : ".", &how, sizeof(how));
		if (fd >= 0 || errno != EAGAIN)
			break;
	}
	return (int)fd;
}

// From the root of several directories the first step leads onto the mount of one of them.
static int open_in_part(int root, const char *path, uint64_t flags)
{
	const char *rest = strchr(path, '/');
	size_t length = rest ? (size_t)(rest - path) : strlen(path);
	char name[PART_NAME_ROOM];
	int part, fd, code;

	if (length >= sizeof(name)) {
		errno = ENOENT;
		return -1;
	}
	memcpy(name, path, length);
	name[length] = 0;
	part = part_open(root, name);
	if (part < 0)
		return -1;
	fd = open_at(part, rest ? rest + 1 : "", flags);
	code = errno;
	close(part);
	errno = code;
	return fd;
}

static int open_beneath(int root, const char *path, uint64_t flags)
{
	int fd = open_at(root, path, flags);

	if (fd >= 0 || errno != EXDEV)
		return fd;
	if (parts_in(root))
		return open_in_part(root, path, flags);
	errno = EXDEV;
	return -1;
}

// Reading should not change access times. Only an owner or root may ask for that.
static int open_quietly(int root, const char *path, uint64_t flags)
{
	int fd = open_beneath(root, path, flags | O_NOATIME);

	return fd < 0 && errno == EPERM ? open_beneath(root, path, flags) : fd;
}

int tree_open_folder(int root, const char *folder)
{
	return open_quietly(root, folder, O_RDONLY | O_DIRECTORY);
}

int tree_open_file(int root, const char *path, int flags)
{
	if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_PATH))
		return open_quietly(root, path, (uint64_t)(unsigned int)flags | O_NOFOLLOW | O_NONBLOCK);
	// O_NONBLOCK: what was a file a moment ago may have become a FIFO. openat2 takes it not with O_PATH.
	return open_beneath(root, path, (uint64_t)(unsigned int)flags | O_NOFOLLOW | (flags & O_PATH ? 0 : O_NONBLOCK));
}

int tree_stat(int folder, const char *name, struct entry *entry)
{
	struct statx s;
	unsigned int wanted = STATX_BASIC_STATS | STATX_BTIME;

	if (statx(folder, name,
		  AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC | (*name ? 0 : AT_EMPTY_PATH), wanted, &s))
		return -1;
	int is_device = S_ISCHR(s.stx_mode) || S_ISBLK(s.stx_mode);

	entry->name = name;
	entry->token = (struct digest){0, 0};
	entry->name_length = strlen(name);
	entry->meta = (struct meta){
	    .mode = s.stx_mode,
	    .uid = s.stx_uid,
	    .gid = s.stx_gid,
	    .major = is_device ? s.stx_rdev_major : 0,
	    .minor = is_device ? s.stx_rdev_minor : 0,
	    .size = S_ISREG(s.stx_mode) ? s.stx_size : 0,
	    .mtime_s = s.stx_mtime.tv_sec,
	    .mtime_ns = s.stx_mtime.tv_nsec,
	};
	entry->local = (struct local){
	    .inode = s.stx_ino,
	    .ctime_s = s.stx_ctime.tv_sec,
	    .ctime_ns = s.stx_ctime.tv_nsec,
	    .btime_s = s.stx_btime.tv_sec,
	    .btime_ns = s.stx_btime.tv_nsec,
	    .links = s.stx_nlink,
	    .bytes_allocated = s.stx_blocks * 512,
	    .mount_root = *name && (s.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0 && !parts_in(folder),
	    .has_btime = (s.stx_mask & STATX_BTIME) != 0,
	};
	return 0;
}

int name_is_good(const char *name, size_t length)
{
	if (length == 0 || length >= NAME_ROOM || memchr(name, '/', length) || memchr(name, 0, length))
		return 0;
	return !(name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.')));
}

int folder_is_good(const char *folder, size_t length)
{
	const char *at = folder, *end = folder + length;

	if (length >= PATH_ROOM)
		return 0;
	while (length) {
		const char *slash = memchr(at, '/', (size_t)(end - at));

		if (!name_is_good(at, (size_t)((slash ? slash : end) - at)))
			return 0;
		if (!slash)
			break;
		at = slash + 1;
	}
	return 1;
}

#define AHEAD	  16
#define NAMES_MAX (NAMES_SIZE / 24) // no entry is shorter

struct name {
	uint64_t inode;
	const char *text;
};

static int by_inode(const void *a, const void *b)
{
	const struct name *x = a, *y = b;

	return (x->inode > y->inode) - (x->inode < y->inode);
}

// Some more names of a directory; how many, 0 at its end, or -1 and errno.
static long read_names(int folder, const struct scratch *scratch, struct name names[NAMES_MAX])
{
	for (;;) {
		long got = syscall(SYS_getdents64, folder, scratch->names, NAMES_SIZE), count = 0;

		if (got <= 0)
			return got;
		for (long at = 0; at < got;) {
			const struct dirent64 *found = (const struct dirent64 *)(const void *)(scratch->names + at);

			at += found->d_reclen;
			if (name_is_good(found->d_name, strlen(found->d_name)))
				names[count++] = (struct name){found->d_ino, found->d_name};
		}
		if (count)
			return count;
	}
}

// A few at a time, so that `expect` may fetch from memory what `visit` will need.
static int visit_some(int folder, struct scratch *scratch, const struct name *names, size_t count,
		      const struct tree_visitor *visitor, void *context)
{
	struct entry entries[AHEAD];
	size_t there = 0;

	for (size_t i = 0; i < count; i++) {
		if (tree_stat(folder, names[i].text, &entries[there])) {
			if (errno == ENOENT)
				continue;
			return -1;
		}
		if (visitor->expect)
			visitor->expect(context, &entries[there]);
		there++;
	}
	for (size_t i = 0; i < there; i++) {
		int result = visitor->visit(context, folder, &entries[i], scratch);

		if (result)
			return result;
	}
	return 0;
}

int tree_each_expected(int folder, struct scratch *scratch, const struct tree_visitor *visitor, void *context)
{
	struct name names[NAMES_MAX];
	long count;

	while ((count = read_names(folder, scratch, names)) > 0) {
		// In the order of their inodes: neighbours lie together, on the disk and in the kernel's memory.
		qsort(names, (size_t)count, sizeof(*names), by_inode);
		for (size_t at = 0; at < (size_t)count; at += AHEAD) {
			size_t some = (size_t)count - at < AHEAD ? (size_t)count - at : AHEAD;
			int result = visit_some(folder, scratch, names + at, some, visitor, context);

			if (result)
				return result;
		}
	}
	return (int)count;
}

int tree_each(int folder, struct scratch *scratch, tree_visit visit, void *context)
{
	struct tree_visitor visitor = {.visit = visit};

	return tree_each_expected(folder, scratch, &visitor, context);
}

int tree_names(int folder, struct scratch *scratch, int (*visit)(void *context, int folder, const char *name),
	       void *context)
{
	struct name names[NAMES_MAX];
	long count;

	while ((count = read_names(folder, scratch, names)) > 0) {
		for (long i = 0; i < count; i++) {
			int result = visit(context, folder, names[i].text);

			if (result)
				return result;
		}
	}
	return (int)count;
}

ssize_t read_fully(int fd, void *data, size_t want, uint64_t offset)
{
	size_t have = 0;

	while (have < want) {
		ssize_t got = pread(fd, (unsigned char *)data + have, want - have, (off_t)(offset + have));

		if (got < 0)
			return -1;
		if (got == 0)
			break;
		have += (size_t)got;
	}
	return (ssize_t)have;
}

int file_digest(const struct secret *secret, int fd, uint64_t size, unsigned char *io, struct digest *digest)
{
	struct digest_stream stream;
	uint64_t at = 0;
	int moved = 0;

	// One byte more than there should be: a file that has grown is another file.
	if (size < IO_SIZE) {
		ssize_t got = pread(fd, io, (size_t)size + 1, 0);

		if (got < 0)
			return -1;
		*digest = digest_of(secret, io, (size_t)got);
		return (uint64_t)got != size;
	}
	if (digest_begin(&stream, secret)) {
		errno = ENOMEM;
		return -1;
	}
	for (;;) {
		ssize_t got = pread(fd, io, IO_SIZE, (off_t)at);

		if (got < 0) {
			digest_end(&stream);
			return -1;
		}
		if (got == 0 || at > size)
			break;
		digest_more(&stream, io, (size_t)got);
		at += (uint64_t)got;
	}
	moved = at != size;
	*digest = digest_end(&stream);
	return moved;
}
