// SPDX-License-Identifier: Apache-2.0
// /dev/fuse: the mount, the handshake, and the workers that read requests. libfuse is not used: Debian 12's is 2.7 to
// 4.3 times slower and cannot answer from another thread than the one that asked.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "../bulk.h"
#include "engine.h"

#define BEFORE_DATA (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
// Of fuse.h 7.42, among flags2: more than Debian 12's header knows.
#define OVER_IO_URING (1u << 9)

// Cached, written through: every write(2) comes here before it returns, and the page cache serves reads and mmap().
// Not FUSE_WRITEBACK_CACHE: it would acknowledge writes that the peer has not seen.
static const uint32_t wanted = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_DO_READDIRPLUS |
			       FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_POSIX_ACL |
			       FUSE_ABORT_ERROR | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS | FUSE_EXPLICIT_INVAL_DATA |
			       FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT;

static int shake_hands(struct mirror *fs, char *buffer)
{
	ssize_t size = read(fs->device, buffer, DEVICE_ROOM);
	struct fuse_in_header *in = (struct fuse_in_header *)buffer;
	struct fuse_init_in *init = (struct fuse_init_in *)(in + 1);
	struct {
		struct fuse_out_header head;
		struct fuse_init_out init;
	} out = {.head = {.len = sizeof(out)}};

	if (size < (ssize_t)(sizeof(*in) + offsetof(struct fuse_init_in, flags2)))
		return size < 0 ? -errno : -EPROTO;
	if (in->opcode != FUSE_INIT || init->major != FUSE_KERNEL_VERSION || init->minor < 33)
		return -EPROTO;
	out.head.unique = in->unique;
	out.init.major = FUSE_KERNEL_VERSION;
	out.init.minor = FUSE_KERNEL_MINOR_VERSION;
	out.init.max_readahead = init->max_readahead;
	out.init.flags = init->flags & wanted;
	if (fs->uring && init->flags & FUSE_INIT_EXT && init->flags2 & OVER_IO_URING) {
		out.init.flags |= FUSE_INIT_EXT;
		out.init.flags2 = OVER_IO_URING;
	} else {
		uring_free(fs->uring);
		fs->uring = NULL;
	}
	out.init.max_background = 64;
	out.init.congestion_threshold = 48;
	out.init.max_write = MAX_WRITE;
	out.init.max_pages = MAX_WRITE / 4096;
	out.init.time_gran = 1;
	return write(fs->device, &out, sizeof(out)) < 0 ? -errno : 0;
}

// The uppermost mount at a path; no request to the file system itself, which may not answer any more.
static uint64_t mount_at(const char *path)
{
	struct statx found;

	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT | AT_SYMLINK_NOFOLLOW, STATX_MNT_ID, &found))
		return 0;
	return found.stx_mask & STATX_MNT_ID ? found.stx_mnt_id : 0;
}

int device_unmount(struct mirror *fs, int flags)
{
	if (fs->mount_id && mount_at(fs->mount_point) != fs->mount_id)
		return -EINVAL;
	if (umount2(fs->mount_point, flags | UMOUNT_NOFOLLOW))
		return -errno;
	fs->mount_id = UINT64_MAX; // gone
	return 0;
}

int device_mount(struct mirror *fs, char *error, int error_size)
{
	char options[128];
	char *buffer = malloc(DEVICE_ROOM);
	int code;

	fs->device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fs->device < 0 || !buffer) {
		free(buffer);
		snprintf(error, (size_t)error_size, "/dev/fuse cannot be opened");
		return -errno;
	}
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
		 fs->device);
	if (mount("farmd-mirror", fs->mount_point, "fuse.farmd-mirror", 0, options)) {
		code = -errno;
		snprintf(error, (size_t)error_size, "the mount was refused: %s", strerror(errno));
		free(buffer);
		return code;
	}
	fs->mount_id = mount_at(fs->mount_point);
	code = shake_hands(fs, buffer);
	free(buffer);
	if (code) {
		snprintf(error, (size_t)error_size, "the kernel's FUSE does not fit: %s", strerror(-code));
		device_unmount(fs, MNT_DETACH);
	}
	return code;
}

// A queue of its own for each worker; answers go back through the one that the request came from.
int device_clone(struct mirror *fs)
{
	uint32_t master = (uint32_t)fs->device;
	int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	if (fd >= 0 && ioctl(fd, FUSE_DEV_IOC_CLONE, &master)) {
		close(fd);
		return -errno;
	}
	return fd < 0 ? -errno : fd;
}

void device_abort(struct mirror *fs)
{
	// MNT_FORCE ends every request that is under way, with ECONNABORTED, also if files stay open.
	if (device_unmount(fs, MNT_FORCE))
		device_unmount(fs, MNT_DETACH);
}

static void do_forget(struct worker *worker)
{
	const struct fuse_forget_in *forget = (const void *)worker->body;

	node_forget(worker->fs, node_of(worker->fs, worker->in->nodeid), forget->nlookup);
}

static void do_batch_forget(struct worker *worker)
{
	const struct fuse_batch_forget_in *batch = (const void *)worker->body;
	const struct fuse_forget_one *one = (const void *)(batch + 1);

	for (uint32_t i = 0; i < batch->count; i++)
		node_forget(worker->fs, node_of(worker->fs, one[i].nodeid), one[i].nlookup);
}

static void do_nothing(struct worker *worker)
{
	(void)worker;
}

static void do_destroy(struct worker *worker)
{
	reply(worker, 0, NULL, 0);
}

static handler *const handlers[] = {
    [FUSE_LOOKUP] = do_lookup,
    [FUSE_FORGET] = do_forget,
    [FUSE_BATCH_FORGET] = do_batch_forget,
    [FUSE_INTERRUPT] = do_nothing, // nothing here waits for long, and locks are the kernel's own
    [FUSE_DESTROY] = do_destroy,
    [FUSE_GETATTR] = do_getattr,
    [FUSE_SETATTR] = do_setattr,
    [FUSE_READLINK] = do_readlink,
    [FUSE_SYMLINK] = do_symlink,
    [FUSE_MKNOD] = do_mknod,
    [FUSE_MKDIR] = do_mkdir,
    [FUSE_UNLINK] = do_unlink,
    [FUSE_RMDIR] = do_rmdir,
    [FUSE_RENAME] = do_rename,
    [FUSE_RENAME2] = do_rename2,
    [FUSE_LINK] = do_link,
    [FUSE_CREATE] = do_create,
    [FUSE_TMPFILE] = do_tmpfile,
    [FUSE_OPEN] = do_open,
    [FUSE_RELEASE] = do_release,
    [FUSE_READ] = do_read,
    [FUSE_WRITE] = do_write,
    [FUSE_FSYNC] = do_fsync,
    [FUSE_FLUSH] = do_flush,
    [FUSE_SYNCFS] = do_syncfs,
    [FUSE_FALLOCATE] = do_fallocate,
    [FUSE_LSEEK] = do_lseek,
    [FUSE_COPY_FILE_RANGE] = do_copy,
    [FUSE_STATFS] = do_statfs,
    [FUSE_GETXATTR] = do_getxattr,
    [FUSE_SETXATTR] = do_setxattr,
    [FUSE_LISTXATTR] = do_listxattr,
    [FUSE_REMOVEXATTR] = do_removexattr,
    [FUSE_OPENDIR] = do_opendir,
    [FUSE_READDIR] = do_readdir,
    [FUSE_READDIRPLUS] = do_readdirplus,
    [FUSE_RELEASEDIR] = do_releasedir,
    [FUSE_FSYNCDIR] = do_fsyncdir,
};

void device_serve(struct worker *worker)
{
	uint32_t opcode = worker->in->opcode;

	__atomic_fetch_add(&worker->fs->stats.requests, 1, __ATOMIC_RELAXED);
	if (opcode < sizeof(handlers) / sizeof(*handlers) && handlers[opcode])
		handlers[opcode](worker);
	else
		reply(worker, -ENOSYS, NULL, 0);
}

static void dispatch(struct worker *worker, char *request, size_t size)
{
	worker->in = (struct fuse_in_header *)request;
	worker->body = request + sizeof(*worker->in);
	worker->size = size - sizeof(*worker->in);
	// The request is read already, so the answer may take its place.
	worker->room = worker->memory + 3 * PAGE;
	request[size] = 0;
	device_serve(worker);
}

void device_ended(struct mirror *fs)
{
	if (atomic_fetch_sub(&fs->alive, 1) == 1)
		event_say(fs, MIRROR_EVENT_UNMOUNTED, 0, "the file system is no longer mounted");
}

void *device_worker(void *context)
{
	struct worker *worker = context;
	struct mirror *fs = worker->fs;
	char *request = worker->memory + PAGE - BEFORE_DATA;

	prctl(PR_SET_NAME, "mirror-fuse");
	inode_thread_start();
	for (;;) {
		ssize_t size = read(worker->device, request, DEVICE_ROOM - PAGE);

		if (size >= (ssize_t)sizeof(struct fuse_in_header))
			dispatch(worker, request, (size_t)size);
		else if (size >= 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT))
			break; // unmounted or aborted
	}
	device_ended(fs);
	free(worker->memory);
	return NULL;
}
