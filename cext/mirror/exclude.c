// SPDX-License-Identifier: Apache-2.0
// What is not replicated. A pattern with a slash is matched component by component against the path below the
// directory; one without is matched against the last name alone, at any depth. What is below an excluded directory is
// excluded. Moves and links between the two worlds answer EXDEV, as between file systems: `mv` then copies.
#define _GNU_SOURCE
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
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

// Of pattern and path, the first `depth` components each; 0: all.
static bool first_components(char *text, int depth)
{
	for (char *c = text; depth && *c; c++) {
		if (*c == '/' && --depth == 0) {
			*c = 0;
			return true;
		}
	}
	return false;
}

static int components(const char *path)
{
	int count = 1;

	for (; *path; path++)
		count += *path == '/';
	return count;
}

static bool any_pattern(struct mirror *fs, struct node *parent, const char *name, bool below)
{
	char path[4096], pattern[4096];
	const char *line = fs->patterns;
	bool has_path;

	if (!*line)
		return false;
	pthread_mutex_lock(&fs->stream_lock);
	has_path = path_of(fs, parent, name, path, sizeof(path));
	pthread_mutex_unlock(&fs->stream_lock);
	for (; *line; line += strcspn(line, "\n") + (line[strcspn(line, "\n")] == '\n')) {
		snprintf(pattern, sizeof(pattern), "%.*s", (int)strcspn(line, "\n"), line);
		if (!*pattern)
			continue;
		if (!strchr(pattern, '/')) {
			if (!below && !fnmatch(pattern, name, 0))
				return true;
			continue;
		}
		if (below && !first_components(pattern, components(path)))
			continue;
		if (has_path && !fnmatch(pattern, path, FNM_PATHNAME))
			return true;
	}
	return false;
}

bool excluded_name(struct mirror *fs, struct node *parent, const char *name)
{
	return any_pattern(fs, parent, name, false);
}

bool excluded_below(struct mirror *fs, struct node *parent, const char *name)
{
	return any_pattern(fs, parent, name, true);
}
