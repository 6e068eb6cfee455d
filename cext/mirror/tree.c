// SPDX-License-Identifier: Apache-2.0
// The name under which the peer can find a node, as of the last frame in the stream. All under stream_lock.
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include "engine.h"

#define NAME_BUCKETS (1 << 17)

static struct node **chain(struct mirror *fs, const struct node *parent, const char *name)
{
	uint64_t hash = (uintptr_t)parent * 0x9e3779b97f4a7c15u;

	if (!fs->names)
		fs->names = calloc(NAME_BUCKETS, sizeof(*fs->names));
	if (!fs->names)
		abort();
	for (; *name; name++)
		hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
	return &fs->names[(hash ^ hash >> 32) % NAME_BUCKETS];
}

struct node *tree_find(struct mirror *fs, struct node *parent, const char *name)
{
	struct node *node = *chain(fs, parent, name);

	while (node && (node->parent != parent || strcmp(node->name, name)))
		node = node->name_next;
	return node;
}

void tree_unname(struct mirror *fs, struct node *node)
{
	struct node **at;

	if (!node->name)
		return;
	for (at = chain(fs, node->parent, node->name); *at != node; at = &(*at)->name_next)
		;
	*at = node->name_next;
	free(node->name);
	node->name = NULL;
	fs->named--;
	node->parent->refs--;
	node->parent = NULL;
}

void tree_name(struct mirror *fs, struct node *node, struct node *parent, const char *name)
{
	struct node *before = tree_find(fs, parent, name);
	struct node **at;
	char *copy = strdup(name);

	// Without memory for a name the node is merely one that the stream cannot find.
	if (!copy)
		return;
	if (before)
		tree_unname(fs, before);
	parent->refs++; // first: it may be the old parent as well
	tree_unname(fs, node);
	at = chain(fs, parent, copy);
	node->name = copy;
	fs->named++;
	node->parent = parent;
	node->name_next = *at;
	*at = node;
}
