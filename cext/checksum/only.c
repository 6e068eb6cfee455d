// SPDX-License-Identifier: Apache-2.0
#include <string.h>
#include "engine.h"
#include "only.h"

// The list is the caller's own: nobody aims at its hashes.
static struct digest key_of(const char *path, size_t length)
{
	XXH128_hash_t hash = XXH3_128bits(path, length);

	return (struct digest){hash.low64, hash.high64};
}

int only_load(struct only *only, const struct checksum_options *options)
{
	const char *path = options->only, *end;

	memset(only, 0, sizeof(*only));
	only->active = path != NULL;
	if (!path)
		return 0;
	for (end = path + options->only_bytes; path < end; path += strlen(path) + 1) {
		only->everything |= strcmp(path, "/") == 0;
		if (hashset_add(&only->paths, key_of(path, strlen(path))) < 0)
			return -1;
	}
	return 0;
}

void only_free(struct only *only)
{
	hashset_free(&only->paths);
}

int only_has(const struct only *only, const char *folder, const char *name)
{
	char path[PATH_ROOM];
	size_t length;

	if (!only->active || only->everything || !*name)
		return 1;
	if (path_join(path, folder, name))
		return 0;
	length = strlen(path);
	if (hashset_has(&only->paths, key_of(path, length)))
		return 1;
	for (size_t at = 0; at < length; at++)
		if (path[at] == '/' && hashset_has(&only->paths, key_of(path, at + 1)))
			return 1;
	return 0;
}

int only_folders(const struct checksum_options *options, int (*each)(void *context, const char *folder), void *context)
{
	const char *path = options->only, *end = path + options->only_bytes;
	char folder[PATH_ROOM];

	for (; path < end; path += strlen(path) + 1) {
		size_t length = strlen(path);
		const char *slash;

		if (length >= PATH_ROOM)
			continue;
		memcpy(folder, path, length + 1);
		// With a slash at its end: the directory itself, if it is there.
		slash = strrchr(folder, '/');
		folder[slash ? slash - folder : 0] = 0;
		if (each(context, folder))
			return -1;
	}
	return 0;
}
