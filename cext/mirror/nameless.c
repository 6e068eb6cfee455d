// SPDX-License-Identifier: Apache-2.0
// Files that have a name, but none that is known here: the one that was known is gone, and the kernel uses another one
// that it asked for long ago. The peer could not be told of them in a new session. Whoever attaches it looks for their
// names first, and looks these up here.
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "engine.h"

static uint64_t count_all(struct mirror *fs)
{
	uint64_t count;

	pthread_mutex_lock(&fs->stream_lock);
	pthread_mutex_lock(&fs->nodes_lock);
	count = fs->node_count - 1 - fs->named;
	pthread_mutex_unlock(&fs->nodes_lock);
	pthread_mutex_unlock(&fs->stream_lock);
	return count;
}

static int gather(struct mirror *fs, struct inode_handle *out, uint64_t room)
{
	uint64_t count = 0;

	pthread_mutex_lock(&fs->stream_lock);
	pthread_mutex_lock(&fs->nodes_lock);
	for (int i = 0; i < NODE_BUCKETS && count < room; i++)
		for (struct node *node = fs->table[i]; node && count < room; node = node->next)
			if (!node->name && !node->excluded && node != fs->root)
				out[count++] = node->handle;
	pthread_mutex_unlock(&fs->nodes_lock);
	pthread_mutex_unlock(&fs->stream_lock);
	return (int)count;
}

int mirror_nameless(struct mirror *fs, struct mirror_handle *out, int room)
{
	uint64_t all = count_all(fs);
	struct inode_handle *handles;
	int count, found = 0;

	if (!all)
		return 0;
	handles = calloc(all, sizeof(*handles));
	if (!handles)
		return -ENOMEM;
	count = gather(fs, handles, all);
	for (int i = 0; i < count && found < room; i++) {
		if (!inode_has_names(&fs->parts, &handles[i]))
			continue;
		out[found].type = handles[i].type;
		out[found].size = handles[i].size;
		memcpy(out[found++].bytes, handles[i].bytes, HANDLE_BYTES);
	}
	free(handles);
	return found;
}

int mirror_look_up(struct mirror *fs, const char *path)
{
	char *rest = strdup(path), *save = NULL;
	struct node *at = fs->root, *next;
	struct stat st;
	int error = rest ? 0 : -ENOMEM;

	for (char *name = rest ? strtok_r(rest, "/", &save) : NULL; name && !error; name = strtok_r(NULL, "/", &save)) {
		error = names_look_up(fs, at, name, &st, &next);
		node_forget(fs, at, 1); // it stays while one below has a name in it
		at = error ? fs->root : next;
	}
	node_forget(fs, at, 1);
	free(rest);
	return error;
}
