// SPDX-License-Identifier: Apache-2.0
// Inodes below one directory, named by file handle: what both ends of the stream do with them. Every function returns
// 0 or more on success and -errno on failure, and takes O_PATH descriptors as well as open files.
#ifndef FARM_MIRROR_INODE_H
#define FARM_MIRROR_INODE_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include "../parts.h"

#define HANDLE_BYTES 64
#define PART_SHIFT   16

struct inode_handle {
	uint32_t type; // what the file system gave, and from PART_SHIFT on the part that it is in
	uint32_t size;
	uint8_t bytes[HANDLE_BYTES];
};

// One name of one directory, never through a symlink, never out of the directory or onto another mount.
int inode_lookup(int dir, const char *name, int flags);
int inode_handle_of(int fd, int part, struct inode_handle *handle);
int inode_open(const struct parts *parts, const struct inode_handle *handle, int flags);
// 0: the root of several directories, or anything in the only one.
static inline int inode_part(const struct inode_handle *handle)
{
	return (int)(handle->type >> PART_SHIFT);
}
// As inode_lookup with O_PATH, and from the root of several directories into each of them.
int inode_enter(const struct parts *parts, int part, int dir, const char *name);

int inode_stat(int fd, struct stat *st);
int inode_chmod(int fd, mode_t mode);
int inode_chown(int fd, uid_t uid, gid_t gid);
int inode_times(int fd, const struct timespec times[2]);
int inode_truncate(int fd, uint64_t size);
int inode_setxattr(int fd, const char *name, const void *value, size_t size, int flags);
ssize_t inode_getxattr(int fd, const char *name, void *value, size_t size);
ssize_t inode_listxattr(int fd, char *list, size_t size);
int inode_delxattr(int fd, const char *name);
// An unlinked O_PATH descriptor or any other inode gets a name.
int inode_link(int fd, int dir, const char *name);

// This thread makes new inodes as this user from now on. It keeps its capabilities (see inode_thread_start).
void inode_act_as(uid_t uid, gid_t gid, mode_t umask);
int inode_thread_start(void);

int pwrite_all(int fd, const void *data, size_t size, uint64_t offset, size_t *done);

// Whether it is there and has not lost its last name.
bool inode_has_names(const struct parts *parts, const struct inode_handle *handle);
// How many descriptors may be kept open: `wanted`, but no more than half of what the process may have.
int inode_open_limit(int wanted);

#endif
