// SPDX-License-Identifier: Apache-2.0
// What a mirror does not replicate, decided alike by the file system, the stream's receiver and the checksum engine.
//
// Patterns come one a line. One without a slash names an entry at any depth; one with a slash is a path below the
// directory (a slash at its beginning only anchors it). `*` and `?` match within one name, `[abc]`, `[a-z]` and `[!a]`
// one byte, a backslash takes the next byte as it is. Bytes, not characters: no locale decides what is replicated.
// What is below an excluded directory is excluded; callers do not descend, or ask exclude_path(). In a mirror of
// several directories (parts.h) a line is `//NAME/PATTERN`: the pattern counts in the directory NAME only.
#ifndef FARM_EXCLUDE_H
#define FARM_EXCLUDE_H

#include <stdbool.h>
#include <string.h>

#define EXCLUDE_PATH_ROOM 8192

// One `[...]` against one byte; `*end` is behind the bracket. An unclosed one is an ordinary character.
static inline bool exclude_bracket(const char *at, const char *stop, unsigned char byte, const char **end)
{
	const char *p = at + 1;
	bool negated = p < stop && (*p == '!' || *p == '^'), found = false;

	p += negated;
	for (const char *first = p; p < stop && (*p != ']' || p == first);) {
		unsigned char low = (unsigned char)*p++, high = low;

		if (stop - p >= 2 && *p == '-' && p[1] != ']') {
			high = (unsigned char)p[1];
			p += 2;
		}
		found |= low <= byte && byte <= high;
	}
	if (p >= stop) {
		*end = at + 1;
		return byte == '[';
	}
	*end = p + 1;
	return found != negated && byte != '/';
}

static inline bool exclude_one(const char **at, const char *stop, unsigned char byte)
{
	const char *p = *at;

	if (p >= stop || !byte)
		return false;
	if (*p == '[')
		return exclude_bracket(p, stop, byte, at);
	if (*p == '\\' && stop - p >= 2)
		p++;
	else if (*p == '?') {
		*at = p + 1;
		return byte != '/';
	}
	*at = p + 1;
	return (unsigned char)*p == byte;
}

// The whole of `text` against the pattern [p, stop). To go back to the last star is enough: none crosses a slash, so
// where an earlier component ends is not a matter of choice.
static inline bool exclude_glob(const char *p, const char *stop, const char *text)
{
	const char *star = NULL, *held = NULL;

	for (;;) {
		if (p < stop && *p == '*') {
			star = ++p;
			held = text;
		} else if (p >= stop && !*text) {
			return true;
		} else if (exclude_one(&p, stop, (unsigned char)*text)) {
			text++;
		} else if (star && *held && *held != '/') {
			text = ++held;
			p = star;
		} else {
			return false;
		}
	}
}

static inline const char *exclude_last(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

// What of `path` the pattern is about, or NULL; `*line` goes on to the pattern itself.
static inline const char *exclude_scope(const char **line, const char *stop, const char *path)
{
	const char *name = *line + 2, *end;

	if (stop - *line < 2 || (*line)[0] != '/' || (*line)[1] != '/')
		return path;
	end = memchr(name, '/', (size_t)(stop - name));
	if (!end || strncmp(name, path, (size_t)(end - name)) || path[end - name] != '/')
		return NULL;
	*line = end + 1;
	return path + (end - name) + 1;
}

// Whether a pattern names the entry at `path`, given without a slash at its beginning.
static inline bool exclude_entry(const char *patterns, const char *path)
{
	const char *name = exclude_last(path);

	for (const char *line = patterns, *stop; *line; line = stop + (*stop == '\n')) {
		stop = line + strcspn(line, "\n");
		const char *below = exclude_scope(&line, stop, path);

		if (stop == line || !below)
			continue;
		if (!memchr(line, '/', (size_t)(stop - line)) ? exclude_glob(line, stop, name)
							      : exclude_glob(line + (*line == '/'), stop, below))
			return true;
	}
	return false;
}

// Whether a pattern names something below the directory at `path` by its path: if the directory moved, other things
// would be excluded.
static inline bool exclude_moves(const char *patterns, const char *path)
{
	for (const char *line = patterns, *stop; *line; line = stop + (*stop == '\n')) {
		const char *at, *next, *slash, *below;

		stop = line + strcspn(line, "\n");
		slash = exclude_scope(&line, stop, path);
		if (!slash || !memchr(line, '/', (size_t)(stop - line)))
			continue;
		below = slash;
		at = line + (*line == '/');
		// As many components of the pattern as the path has, and there must be more.
		next = memchr(at, '/', (size_t)(stop - at));
		while (next && (slash = strchr(slash, '/'))) {
			slash++;
			next = memchr(next + 1, '/', (size_t)(stop - next - 1));
		}
		if (next && exclude_glob(at, next, below))
			return true;
	}
	return false;
}

// Whether the entry at `path`, or a directory that it is in, is excluded.
static inline bool exclude_path(const char *patterns, const char *path)
{
	char above[EXCLUDE_PATH_ROOM];
	size_t length = strlen(path);

	if (!*patterns || length >= sizeof(above))
		return false;
	memcpy(above, path, length + 1);
	for (char *slash = strchr(above, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		if (exclude_entry(patterns, above))
			return true;
		*slash = '/';
	}
	return exclude_entry(patterns, above);
}

// The same for `name` in `folder`, which itself is not excluded; "" is the directory itself.
static inline bool exclude_child(const char *patterns, const char *folder, const char *name)
{
	char path[EXCLUDE_PATH_ROOM];
	size_t length = strlen(folder), more = strlen(name);

	if (!patterns || !*patterns || !*name || length + more + 2 > sizeof(path))
		return false;
	memcpy(path, folder, length);
	if (length)
		path[length++] = '/';
	memcpy(path + length, name, more + 1);
	return exclude_entry(patterns, path);
}

#endif
