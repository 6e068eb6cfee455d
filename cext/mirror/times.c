// SPDX-License-Identifier: Apache-2.0
// Modification times. The peer's clock sets its own with every write; the right ones follow when a file is closed or
// synced, and once a second, which spares a system call for each write on either side.
#define _GNU_SOURCE
#include <stdlib.h>
#include "engine.h"

void times_mark(struct mirror *fs, struct node *node)
{
	if (node->excluded || atomic_load(&node->times_dirty))
		return;
	pthread_mutex_lock(&fs->stream_lock);
	if (fs->state == MIRROR_PAIRED && !atomic_exchange(&node->times_dirty, true)) {
		node->refs++;
		node->times_next = fs->times;
		node->times_at = &fs->times;
		if (fs->times)
			fs->times->times_at = &node->times_next;
		fs->times = node;
	}
	pthread_mutex_unlock(&fs->stream_lock);
}

// Lock held. Marked again from now on: a later change sends again, so that the last word is right.
static void unlist(struct node *node)
{
	*node->times_at = node->times_next;
	if (node->times_next)
		node->times_next->times_at = node->times_at;
	atomic_store(&node->times_dirty, false);
}

// Holds the reference that the list had.
static void send_unlisted(struct mirror *fs, struct node *node)
{
	int fd = node_get(fs, node);
	struct stat st;
	bool there = fd >= 0 && !inode_stat(fd, &st);
	struct change change = {.frame = {.op = WIRE_TIMES, .flags = WIRE_SET_MTIME}, .node = node};

	node_put(node, fd);
	pthread_mutex_lock(&fs->stream_lock);
	if (there) {
		change.frame.mtime_ns = st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec;
		stream_change_locked(fs, &change);
	}
	node->refs--;
	node_retire(fs, node);
	pthread_mutex_unlock(&fs->stream_lock);
}

void times_send(struct mirror *fs, struct node *node)
{
	bool listed;

	pthread_mutex_lock(&fs->stream_lock);
	listed = atomic_load(&node->times_dirty);
	if (listed)
		unlist(node);
	pthread_mutex_unlock(&fs->stream_lock);
	if (listed)
		send_unlisted(fs, node);
}

void times_send_all(struct mirror *fs)
{
	for (int i = 0; i < 65536; i++) {
		struct node *node;

		pthread_mutex_lock(&fs->stream_lock);
		node = fs->times;
		if (node)
			unlist(node);
		pthread_mutex_unlock(&fs->stream_lock);
		if (!node)
			return;
		send_unlisted(fs, node);
	}
}
