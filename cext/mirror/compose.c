// SPDX-License-Identifier: Apache-2.0
// The root of a mirror of several directories (parts.h). It is built in a mount namespace that lives as long as one
// thread, so nobody sees it on the way and no crash leaves anything behind; what remains is a descriptor. Linux 5.12.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../parts.h"
#include "api.h"

#define PLACE "/proc" // any directory that is certainly there

struct composing {
	const char *const *names;
	int count;
	int mounts[PARTS_MAX];
	const char *doing;
	int result; // descriptor or -errno
};

static int set_attributes(int fd, uint64_t attributes)
{
	struct mount_attr attr = {.attr_set = attributes, .propagation = MS_PRIVATE};

	return syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)) ? -errno : 0;
}

static int own_namespace(struct composing *all)
{
	all->doing = "making a mount namespace";
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return -errno;
	all->doing = "mounting a root for the directories";
	return mount("farmd", PLACE, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700,size=64k") ? -errno : 0;
}

static int put(struct composing *all, int number)
{
	char at[sizeof(PLACE) + PART_NAME_ROOM + 1];

	all->doing = "putting a directory into the root";
	snprintf(at, sizeof(at), PLACE "/%s", all->names[number]);
	if (mkdir(at, 0700) || syscall(SYS_move_mount, all->mounts[number], "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH))
		return -errno;
	return 0;
}

static int take_root(struct composing *all)
{
	// Both nodes compare it like any directory: it is the same everywhere and for ever.
	struct timespec times[2] = {{0, 0}, {0, 0}};
	int fd, error;

	all->doing = "taking the root";
	if (utimensat(AT_FDCWD, PLACE, times, 0))
		return -errno;
	fd = (int)syscall(SYS_open_tree, AT_FDCWD, PLACE, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	error = fd < 0 ? -errno : set_attributes(fd, MOUNT_ATTR_RDONLY);
	if (fd >= 0 && error)
		close(fd);
	return error ? error : fd;
}

static void *compose(void *context)
{
	struct composing *all = context;
	int error = own_namespace(all);

	for (int i = 0; !error && i < all->count; i++)
		error = put(all, i);
	all->result = error ? error : take_root(all);
	return NULL;
}

// A mount of its own, from which there is no way up: what the cage's would be (confine.c).
static int take_mount(int fd)
{
	int copy = (int)syscall(SYS_open_tree, fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
	int error = copy < 0 ? -errno : set_attributes(copy, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);

	if (copy >= 0 && error)
		close(copy);
	return error ? error : copy;
}

int mirror_compose(const char *const *names, const int *directories, int count, char *error, int error_size)
{
	struct composing all = {.names = names, .doing = "copying the mount of a directory"};
	pthread_t thread;

	for (; all.count < count && all.count < PARTS_MAX && all.result >= 0; all.count += all.result >= 0)
		all.result = all.mounts[all.count] = take_mount(directories[all.count]);
	if (all.result >= 0 && all.count < count)
		all.result = -E2BIG;
	if (all.result >= 0) {
		int code = pthread_create(&thread, NULL, compose, &all);

		if (code)
			all.result = -code;
		else
			pthread_join(thread, NULL);
	}
	for (int i = 0; i < all.count; i++)
		close(all.mounts[i]);
	if (all.result < 0)
		snprintf(error, (size_t)error_size, "%s failed: %s", all.doing, strerror(-all.result));
	return all.result;
}
