// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include "receiver.h"

static struct known **slot(struct receiver *receiver, uint64_t fid)
{
	return &receiver->table[fid % FID_BUCKETS];
}

struct known *fid_find(struct receiver *receiver, uint64_t fid)
{
	struct known *known = *slot(receiver, fid);

	while (known && known->fid != fid)
		known = known->next;
	return known;
}

static void close_known(struct receiver *receiver, struct known *known)
{
	if (known->fd >= 0) {
		close(known->fd);
		receiver->open_files--;
	}
	known->fd = -1;
}

void fid_drop(struct receiver *receiver, uint64_t fid)
{
	struct known **at = slot(receiver, fid), *known;

	while (*at && (*at)->fid != fid)
		at = &(*at)->next;
	known = *at;
	if (!known || fid == ROOT_FID)
		return;
	*at = known->next;
	close_known(receiver, known);
	free(known);
}

int fid_add(struct receiver *receiver, uint64_t fid, int part, int fd, bool data)
{
	struct known *known = calloc(1, sizeof(*known));
	struct stat st;
	int error = known ? inode_stat(fd, &st) : -ENOMEM;

	if (!error && st.st_dev != receiver->parts.of[part].dev)
		error = -EXDEV;
	if (!error)
		error = inode_handle_of(fd, part, &known->handle);
	if (!error && fid_find(receiver, fid))
		error = -EEXIST;
	if (error) {
		free(known);
		close(fd);
		return error;
	}
	known->fid = fid;
	known->type = st.st_mode & S_IFMT;
	known->fd = -1;
	// Kept open, which keeps it alive: an unlinked file may still be open at the primary.
	if (receiver->open_files < receiver->open_limit) {
		known->fd = fd;
		known->writable = data;
		receiver->open_files++;
	} else {
		close(fd);
	}
	known->next = *slot(receiver, fid);
	*slot(receiver, fid) = known;
	return 0;
}

int fid_get(struct receiver *receiver, struct known *known)
{
	return known->fd >= 0 ? known->fd : inode_open(&receiver->parts, &known->handle, O_PATH);
}

int fid_get_data(struct receiver *receiver, struct known *known)
{
	int fd;

	// Opening a device would reach beyond the directory, and a FIFO would block.
	if (known->type != S_IFREG)
		return -EINVAL;
	if (known->writable)
		return known->fd;
	fd = inode_open(&receiver->parts, &known->handle, O_RDWR);
	if (fd >= 0 && known->fd >= 0) {
		close(known->fd);
		known->fd = fd;
		known->writable = true;
	}
	return fd;
}

void fid_put(struct known *known, int fd)
{
	if (fd >= 0 && fd != known->fd)
		close(fd);
}

int fids_start(struct receiver *receiver)
{
	int fd = fcntl(receiver->config->backing, F_DUPFD_CLOEXEC, 3), error;

	receiver->table = calloc(FID_BUCKETS, sizeof(*receiver->table));
	if (fd < 0 || !receiver->table) {
		if (fd >= 0)
			close(fd);
		return fd < 0 ? -EBADF : -ENOMEM;
	}
	receiver->open_limit = inode_open_limit(OPEN_FILES);
	receiver->root = fd;
	error = parts_open(&receiver->parts, fd);
	return error ? error : fid_add(receiver, ROOT_FID, 0, fcntl(fd, F_DUPFD_CLOEXEC, 3), false);
}

void fids_free(struct receiver *receiver)
{
	for (int i = 0; receiver->table && i < FID_BUCKETS; i++) {
		for (struct known *known = receiver->table[i], *next; known; known = next) {
			next = known->next;
			close_known(receiver, known);
			free(known);
		}
	}
	free(receiver->table);
	parts_close(&receiver->parts);
	if (receiver->root >= 0)
		close(receiver->root);
}
