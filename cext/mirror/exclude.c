// SPDX-License-Identifier: Apache-2.0
// What is not replicated (exclude.h), for the nodes of the file system. Moves and links between the two worlds answer
// EXDEV, as between file systems: `mv` then copies.
#include "../exclude.h"
#include "engine.h"

static bool path_of(struct mirror *fs, struct node *node, const char *name, char *path, size_t room)
{
	size_t at = room - 1, len = strlen(name);

	path[at] = 0;
	for (;;) {
		if (len + 1 > at)
			return false;
		at -= len;
		memcpy(path + at, name, len);
		if (node == fs->root || !node->name)
			break;
		path[--at] = '/';
		name = node->name;
		len = strlen(name);
		node = node->parent;
	}
	memmove(path, path + at, room - at);
	return true;
}

static bool ask(struct mirror *fs, struct node *parent, const char *name, bool (*about)(const char *, const char *))
{
	char path[EXCLUDE_PATH_ROOM];
	bool has_path;

	if (!*fs->patterns)
		return false;
	pthread_mutex_lock(&fs->stream_lock);
	has_path = path_of(fs, parent, name, path, sizeof(path));
	pthread_mutex_unlock(&fs->stream_lock);
	// Deeper than any path that the kernel takes: only its name can be named.
	return about(fs->patterns, has_path ? path : name);
}

bool excluded_name(struct mirror *fs, struct node *parent, const char *name)
{
	return ask(fs, parent, name, exclude_entry);
}

bool excluded_below(struct mirror *fs, struct node *parent, const char *name)
{
	return ask(fs, parent, name, exclude_moves);
}

int mirror_excludes(const char *patterns, const char *path)
{
	return exclude_path(patterns, path);
}
