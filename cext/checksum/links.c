// SPDX-License-Identifier: Apache-2.0
#include <stdlib.h>
#include <string.h>
#include "links.h"

static size_t slot_of(uint64_t inode, size_t slots)
{
	return (size_t)((inode * 0x9e3779b97f4a7c15ull) >> 20) & (slots - 1);
}

struct link_name *links_find(const struct links *links, uint64_t source)
{
	if (!links->slots)
		return NULL;
	for (size_t at = slot_of(source, links->slots); links->by_source[at]; at = (at + 1) & (links->slots - 1))
		if (links->names[links->by_source[at] - 1].source == source)
			return &links->names[links->by_source[at] - 1];
	return NULL;
}

uint64_t links_owner(const struct links *links, uint64_t target)
{
	if (!links->slots || !target)
		return 0;
	// A target inode that was replaced leaves its old place here; the name itself says what is true.
	for (size_t at = slot_of(target, links->slots); links->by_target[at]; at = (at + 1) & (links->slots - 1))
		if (links->names[links->by_target[at] - 1].target == target)
			return links->names[links->by_target[at] - 1].source;
	return 0;
}

static void insert(size_t *table, size_t slots, uint64_t inode, size_t value)
{
	size_t at = slot_of(inode, slots);

	while (table[at])
		at = (at + 1) & (slots - 1);
	table[at] = value;
}

static int grow(struct links *links)
{
	size_t room = links->room ? links->room * 2 : 64, slots = room * 4;
	struct link_name *names = realloc(links->names, room * sizeof(*names));
	size_t *by_source = calloc(slots, sizeof(*by_source));
	size_t *by_target = calloc(slots, sizeof(*by_target));

	if (names)
		links->names = names;
	if (!names || !by_source || !by_target) {
		free(by_source);
		free(by_target);
		return -1;
	}
	for (size_t i = 0; i < links->count; i++) {
		insert(by_source, slots, names[i].source, i + 1);
		if (names[i].target)
			insert(by_target, slots, names[i].target, i + 1);
	}
	free(links->by_source);
	free(links->by_target);
	links->by_source = by_source;
	links->by_target = by_target;
	links->room = room;
	links->slots = slots;
	links->targets = links->count;
	return 0;
}

int links_set(struct links *links, uint64_t source, uint64_t target, const char *path)
{
	struct link_name *found = links_find(links, source);
	char *copy;

	if (found && found->target == target && strcmp(found->path, path) == 0)
		return 0;
	copy = strdup(path);
	// A changed target takes one more slot of by_target, so that table may fill up before the other.
	if (!copy || ((links->count + 1 >= links->room || links->targets * 2 >= links->slots) && grow(links))) {
		free(copy);
		return -1;
	}
	found = links_find(links, source);
	if (!found) {
		found = &links->names[links->count++];
		*found = (struct link_name){.source = source};
		insert(links->by_source, links->slots, source, links->count);
	}
	if (target && found->target != target) {
		insert(links->by_target, links->slots, target, (size_t)(found - links->names) + 1);
		links->targets++;
	}
	found->target = target;
	free(found->path);
	found->path = copy;
	return 0;
}

int links_keep(struct link_name *name, const char *path)
{
	size_t length = strlen(path) + 1;
	struct link_path *kept = malloc(sizeof(*kept) + length);

	if (!kept)
		return -1;
	memcpy(kept->path, path, length);
	kept->next = name->alike;
	name->alike = kept;
	return 0;
}

void links_free(struct links *links)
{
	for (size_t i = 0; i < links->count; i++) {
		for (struct link_path *kept = links->names[i].alike, *next; kept; kept = next) {
			next = kept->next;
			free(kept);
		}
		free(links->names[i].path);
	}
	free(links->names);
	free(links->by_source);
	free(links->by_target);
	memset(links, 0, sizeof(*links));
}
