// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <linux/openat2.h>
#include <linux/securebits.h>
#include "inode.h"

// Newer than Debian 12's headers; the number is the same on every architecture.
#define NR_FCHMODAT2	 452
#define NR_SETXATTRAT	 463
#define NR_GETXATTRAT	 464
#define NR_LISTXATTRAT	 465
#define NR_REMOVEXATTRAT 466

static int result(long value)
{
	return value < 0 ? -errno : (int)value;
}

int inode_lookup(int dir, const char *name, int flags)
{
	struct open_how how = {
	    .flags = flags | O_NOFOLLOW | O_CLOEXEC,
	    .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
	};
	int fd;

	do
		fd = result(syscall(SYS_openat2, dir, name, &how, sizeof(how)));
	while (fd == -EAGAIN || fd == -EINTR);
	return fd;
}

int inode_enter(const struct parts *parts, int part, int dir, const char *name)
{
	int entered = part ? 0 : part_below(parts, 0, name);

	return entered ? result(openat(parts->of[entered].fd, ".", O_PATH | O_CLOEXEC))
		       : inode_lookup(dir, name, O_PATH);
}

int inode_handle_of(int fd, int part, struct inode_handle *handle)
{
	union {
		struct file_handle head;
		char room[sizeof(struct file_handle) + HANDLE_BYTES];
	} found;
	int mount;

	found.head.handle_bytes = HANDLE_BYTES;
	if (name_to_handle_at(fd, "", &found.head, &mount, AT_EMPTY_PATH))
		return -errno;
	handle->type = (uint32_t)found.head.handle_type | (uint32_t)part << PART_SHIFT;
	handle->size = found.head.handle_bytes;
	memset(handle->bytes, 0, sizeof(handle->bytes));
	memcpy(handle->bytes, found.head.f_handle, handle->size);
	return 0;
}

int inode_open(const struct parts *parts, const struct inode_handle *handle, int flags)
{
	union {
		struct file_handle head;
		char room[sizeof(struct file_handle) + HANDLE_BYTES];
	} wanted;

	int part = inode_part(handle);

	if (part > parts->count)
		return -ESTALE;
	wanted.head.handle_type = (int)(handle->type & ((1u << PART_SHIFT) - 1));
	wanted.head.handle_bytes = handle->size;
	memcpy(wanted.head.f_handle, handle->bytes, handle->size);
	return result(open_by_handle_at(parts->of[part].fd, &wanted.head, flags | O_CLOEXEC | O_NOFOLLOW));
}

static void proc_path(int fd, char path[40])
{
	snprintf(path, 40, "/proc/self/fd/%d", fd);
}

int inode_stat(int fd, struct stat *st)
{
	return result(fstatat(fd, "", st, AT_EMPTY_PATH));
}

int inode_chmod(int fd, mode_t mode)
{
	char path[40];
	int done = result(syscall(NR_FCHMODAT2, fd, "", mode, AT_EMPTY_PATH));

	if (done != -ENOSYS)
		return done;
	proc_path(fd, path);
	return result(chmod(path, mode));
}

int inode_chown(int fd, uid_t uid, gid_t gid)
{
	return result(fchownat(fd, "", uid, gid, AT_EMPTY_PATH));
}

int inode_times(int fd, const struct timespec times[2])
{
	return result(utimensat(fd, "", times, AT_EMPTY_PATH));
}

int inode_truncate(int fd, uint64_t size)
{
	char path[40];

	proc_path(fd, path);
	return result(truncate(path, (off_t)size));
}

// setxattrat() and its kin take no O_PATH descriptor; the link in /proc leads to the inode itself, also to a symlink.
int inode_setxattr(int fd, const char *name, const void *value, size_t size, int flags)
{
	char path[40];

	proc_path(fd, path);
	return result(setxattr(path, name, value, size, flags));
}

ssize_t inode_getxattr(int fd, const char *name, void *value, size_t size)
{
	char path[40];

	proc_path(fd, path);
	return result(getxattr(path, name, value, size));
}

ssize_t inode_listxattr(int fd, char *list, size_t size)
{
	char path[40];

	proc_path(fd, path);
	return result(listxattr(path, list, size));
}

int inode_delxattr(int fd, const char *name)
{
	char path[40];

	proc_path(fd, path);
	return result(removexattr(path, name));
}

int inode_link(int fd, int dir, const char *name)
{
	char path[40];
	int done = result(linkat(fd, "", dir, name, AT_EMPTY_PATH));

	// A file of O_TMPFILE has no link yet; the kernel gives it one only through /proc.
	if (done != -ENOENT)
		return done;
	proc_path(fd, path);
	return result(linkat(AT_FDCWD, path, dir, name, AT_SYMLINK_FOLLOW));
}

static __thread uid_t acting_uid;
static __thread gid_t acting_gid;
static __thread mode_t acting_umask = 0xffff;

void inode_act_as(uid_t uid, gid_t gid, mode_t mask)
{
	if (uid != acting_uid)
		setfsuid(uid);
	if (gid != acting_gid)
		setfsgid(gid);
	if (mask != acting_umask)
		umask(mask);
	acting_uid = uid;
	acting_gid = gid;
	acting_umask = mask;
}

int inode_thread_start(void)
{
	// The umask of its own: it decides, together with default ACLs, what a new inode's mode is.
	if (unshare(CLONE_FS))
		return -errno;
	// Otherwise setfsuid() would take the capabilities away; the kernel checked the caller's rights already.
	if (!(prctl(PR_GET_SECUREBITS) & SECBIT_NO_SETUID_FIXUP) && prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP))
		return -errno;
	return 0;
}

bool inode_has_names(const struct parts *parts, const struct inode_handle *handle)
{
	int fd = inode_open(parts, handle, O_PATH);
	struct stat st;
	bool has = fd >= 0 && !inode_stat(fd, &st) && st.st_nlink;

	if (fd >= 0)
		close(fd);
	return has;
}

int inode_open_limit(int wanted)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur / 2 > (rlim_t)wanted)
		return wanted;
	return (int)(limit.rlim_cur / 2);
}

int pwrite_all(int fd, const void *data, size_t size, uint64_t offset, size_t *done)
{
	*done = 0;
	while (*done < size) {
		ssize_t n = pwrite(fd, (const char *)data + *done, size - *done, (off_t)(offset + *done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		*done += (size_t)n;
	}
	return 0;
}
