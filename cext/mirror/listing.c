// SPDX-License-Identifier: Apache-2.0
// Directories: opendir, readdir, readdirplus.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "engine.h"

struct open_dir {
	pthread_mutex_t lock; // of the descriptor's position
	int fd;
	off_t at;
};

struct entry { // as getdents64 gives it
	uint64_t ino;
	int64_t next;
	uint16_t size;
	uint8_t type;
	char name[];
};

void do_opendir(struct worker *worker)
{
	struct mirror *fs = worker->fs;
	struct node *node = node_of(fs, worker->in->nodeid);
	struct open_dir *dir = calloc(1, sizeof(*dir));
	struct fuse_open_out out = {.fh = (uintptr_t)dir};
	int fd = inode_open(&fs->parts, &node->handle, O_RDONLY | O_DIRECTORY);

	if (fd < 0 || !dir) {
		free(dir);
		reply(worker, fd < 0 ? fd : -ENOMEM, NULL, 0);
		return;
	}
	pthread_mutex_init(&dir->lock, NULL);
	dir->fd = fd;
	reply(worker, 0, &out, sizeof(out));
}

void do_releasedir(struct worker *worker)
{
	const struct fuse_release_in *in = (const void *)worker->body;
	struct open_dir *dir = (struct open_dir *)(uintptr_t)in->fh;

	close(dir->fd);
	pthread_mutex_destroy(&dir->lock);
	free(dir);
	reply(worker, 0, NULL, 0);
}

static void fill_dirent(struct fuse_dirent *out, int part, const struct entry *entry, size_t len)
{
	out->ino = node_ino(part, entry->ino);
	out->off = (uint64_t)entry->next;
	out->namelen = (uint32_t)len;
	out->type = entry->type;
	memcpy(out->name, entry->name, len);
}

// With its attributes, which saves the kernel a look-up of each; without them if that fails, and it asks by itself.
static void fill_plus(struct worker *worker, struct fuse_direntplus *out, int fd, const struct entry *entry, size_t len)
{
	struct node *parent = node_of(worker->fs, worker->in->nodeid), *node = NULL;
	bool dots = entry->name[0] == '.' && (len == 1 || (len == 2 && entry->name[1] == '.'));
	int part = inode_part(&parent->handle);
	int path = dots ? -1 : inode_enter(&worker->fs->parts, part, fd, entry->name);
	struct stat st;

	memset(out, 0, sizeof(*out));
	if (path >= 0 && !node_from_path(worker->fs, parent, entry->name, path, &st, &node))
		fill_entry(worker->fs, &out->entry_out, node, &st);
	fill_dirent(&out->dirent, part, entry, len);
}

static size_t fill(struct worker *worker, struct open_dir *dir, bool plus, char *out, size_t room)
{
	int part = inode_part(&node_of(worker->fs, worker->in->nodeid)->handle);
	char entries[8192];
	size_t used = 0;

	for (;;) {
		long got = syscall(SYS_getdents64, dir->fd, entries, sizeof(entries));

		if (got <= 0)
			return used;
		for (long at = 0; at < got;) {
			struct entry *entry = (struct entry *)(entries + at);
			size_t len = strlen(entry->name);
			size_t size = FUSE_DIRENT_ALIGN(len + (plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET));

			if (used + size > room) {
				lseek(dir->fd, dir->at, SEEK_SET);
				return used;
			}
			memset(out + used, 0, size);
			if (plus)
				fill_plus(worker, (void *)(out + used), dir->fd, entry, len);
			else
				fill_dirent((void *)(out + used), part, entry, len);
			used += size;
			at += entry->size;
			dir->at = entry->next;
		}
	}
}

static void list(struct worker *worker, bool plus)
{
	const struct fuse_read_in *in = (const void *)worker->body;
	struct open_dir *dir = (struct open_dir *)(uintptr_t)in->fh;
	size_t room = in->size < 65536 ? in->size : 65536, used;
	char *out = worker->room;
	int error = 0;

	pthread_mutex_lock(&dir->lock);
	if (dir->at != (off_t)in->offset || !in->offset) {
		error = lseek(dir->fd, (off_t)in->offset, SEEK_SET) < 0 ? -errno : 0;
		dir->at = (off_t)in->offset;
	}
	used = error ? 0 : fill(worker, dir, plus, out, room);
	pthread_mutex_unlock(&dir->lock);
	reply(worker, error, out, used);
}

void do_readdir(struct worker *worker)
{
	list(worker, false);
}

void do_readdirplus(struct worker *worker)
{
	list(worker, true);
}
