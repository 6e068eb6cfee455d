// SPDX-License-Identifier: Apache-2.0
// The inodes that the kernel knows. A node is found by its file handle, so it stays the same through renames.
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "engine.h"

// Directories and files beyond this many are opened by handle for each operation (about 1.5 us).
#define OPEN_PATHS 32768

static uint64_t slot_of(uint64_t ino)
{
	return (ino * 0x9e3779b97f4a7c15u) >> 46;
}

struct node *node_of(struct mirror *fs, uint64_t id)
{
	return id == FUSE_ROOT_ID ? fs->root : (struct node *)(uintptr_t)id;
}

uint64_t node_id(const struct mirror *fs, const struct node *node)
{
	return node == fs->root ? FUSE_ROOT_ID : (uintptr_t)node;
}

pthread_rwlock_t *node_stripe(struct mirror *fs, const struct node *node)
{
	return &fs->stripes[node->fid % STRIPES];
}

// One number for one inode, though several file systems are behind ours. None of them uses the uppermost bits.
uint64_t node_ino(int part, uint64_t ino)
{
	return part > 1 ? ino ^ (uint64_t)(part - 1) << 56 : ino;
}

static struct node *find(struct mirror *fs, uint64_t ino, const struct inode_handle *handle)
{
	struct node *node = fs->table[slot_of(ino)];

	while (node && (node->ino != ino || memcmp(&node->handle, handle, sizeof(*handle))))
		node = node->next;
	return node;
}

static struct node *make(struct mirror *fs, const struct inode_handle *handle, const struct stat *st)
{
	struct node *node = calloc(1, sizeof(*node));
	struct node **slot = &fs->table[slot_of(st->st_ino)];

	if (!node)
		return NULL;
	node->handle = *handle;
	node->ino = st->st_ino;
	node->fid = fs->next_fid++;
	node->path_fd = -1;
	node->mode = st->st_mode;
	node->next = *slot;
	*slot = node;
	fs->node_count++;
	return node;
}

static int look_up(struct mirror *fs, struct node *parent, const char *name, int fd, struct stat *st, bool *fresh,
		   struct node **out)
{
	struct inode_handle handle;
	struct node *node;
	bool excluded;
	int error = inode_stat(fd, st), part = part_below(&fs->parts, inode_part(&parent->handle), name);

	if (!error && st->st_dev != fs->parts.of[part].dev)
		error = -EXDEV;
	if (!error)
		error = inode_handle_of(fd, part, &handle);
	if (error)
		return error;
	st->st_ino = node_ino(part, st->st_ino);
	excluded = parent->excluded || (name && excluded_name(fs, parent, name));
	pthread_mutex_lock(&fs->stream_lock);
	pthread_mutex_lock(&fs->nodes_lock);
	node = find(fs, st->st_ino, &handle);
	*fresh = node == NULL;
	if (*fresh)
		node = make(fs, &handle, st);
	if (node && *fresh)
		node->excluded = excluded;
	if (node)
		node->lookups++;
	pthread_mutex_unlock(&fs->nodes_lock);
	if (node && name && !node->name && node != fs->root)
		tree_name(fs, node, parent, name);
	pthread_mutex_unlock(&fs->stream_lock);
	*out = node;
	return node ? 0 : -ENOMEM;
}

int node_from_fd(struct mirror *fs, struct node *parent, const char *name, int fd, struct stat *st, struct node **out)
{
	bool fresh;

	return look_up(fs, parent, name, fd, st, &fresh, out);
}

int node_from_path(struct mirror *fs, struct node *parent, const char *name, int fd, struct stat *st, struct node **out)
{
	bool fresh = false;
	int error = look_up(fs, parent, name, fd, st, &fresh, out);

	if (!fresh) {
		close(fd);
	} else if (atomic_fetch_add(&fs->open_paths, 1) < fs->open_limit) {
		(*out)->path_fd = fd;
	} else {
		atomic_fetch_sub(&fs->open_paths, 1);
		close(fd);
	}
	return error;
}

static void destroy(struct mirror *fs, struct node *node)
{
	struct node **at = &fs->table[slot_of(node->ino)];

	while (*at != node)
		at = &(*at)->next;
	*at = node->next;
	fs->node_count--;
	if (node->path_fd >= 0) {
		close(node->path_fd);
		atomic_fetch_sub(&fs->open_paths, 1);
	}
	free(node->zones.bits);
	free(node->fine.bits);
	free(node);
}

void node_retire(struct mirror *fs, struct node *node)
{
	while (node != fs->root && !node->refs) {
		struct node *parent = node->parent;
		bool used;

		pthread_mutex_lock(&fs->nodes_lock);
		used = node->lookups;
		pthread_mutex_unlock(&fs->nodes_lock);
		// Nobody finds it between the locks: look_up() takes both.
		if (used)
			return;
		stream_unbind(fs, node);
		tree_unname(fs, node);
		pthread_mutex_lock(&fs->nodes_lock);
		destroy(fs, node);
		pthread_mutex_unlock(&fs->nodes_lock);
		if (!parent)
			return;
		node = parent; // which may have waited only for this child
	}
}

void node_forget(struct mirror *fs, struct node *node, uint64_t count)
{
	bool last;

	if (node == fs->root)
		return;
	pthread_mutex_lock(&fs->nodes_lock);
	last = node->lookups == count;
	pthread_mutex_unlock(&fs->nodes_lock);
	if (last)
		times_send(fs, node); // while it is certainly there
	pthread_mutex_lock(&fs->stream_lock);
	pthread_mutex_lock(&fs->nodes_lock);
	node->lookups -= count < node->lookups ? count : node->lookups;
	pthread_mutex_unlock(&fs->nodes_lock);
	node_retire(fs, node);
	pthread_mutex_unlock(&fs->stream_lock);
}

int node_get(struct mirror *fs, struct node *node)
{
	return node->path_fd >= 0 ? node->path_fd : inode_open(&fs->parts, &node->handle, O_PATH);
}

void node_put(struct node *node, int fd)
{
	if (fd >= 0 && fd != node->path_fd)
		close(fd);
}

int nodes_start(struct mirror *fs)
{
	struct inode_handle handle;
	struct stat st;
	int error;

	fs->open_limit = inode_open_limit(OPEN_PATHS);
	fs->table = calloc(NODE_BUCKETS, sizeof(*fs->table));
	if (!fs->table)
		return -ENOMEM;
	pthread_mutex_init(&fs->nodes_lock, NULL);
	for (int i = 0; i < STRIPES; i++)
		pthread_rwlock_init(&fs->stripes[i], NULL);
	error = parts_open(&fs->parts, fs->root_fd);
	for (int i = fs->parts.count; !error && i >= 0; i--)
		error = inode_handle_of(fs->parts.of[i].fd, i, &handle);
	if (!error)
		error = inode_stat(fs->root_fd, &st);
	if (error)
		return error;
	fs->next_fid = ROOT_FID;
	fs->root = make(fs, &handle, &st);
	if (!fs->root)
		return -ENOMEM;
	fs->root->lookups = 1;
	fs->root->path_fd = fs->root_fd;
	return 0;
}

void nodes_free(struct mirror *fs)
{
	for (int i = 0; fs->table && i < NODE_BUCKETS; i++) {
		for (struct node *node = fs->table[i], *next; node; node = next) {
			next = node->next;
			if (node->path_fd >= 0 && node != fs->root)
				close(node->path_fd);
			free(node->name);
			free(node->zones.bits);
			free(node->fine.bits);
			free(node);
		}
	}
	free(fs->table);
	parts_close(&fs->parts);
}
