// SPDX-License-Identifier: Apache-2.0
// A run over named paths instead of the whole tree: to look again at what an earlier run found.
#ifndef CHECKSUM_ONLY_H
#define CHECKSUM_ONLY_H

#include "hashset.h"

struct checksum_options;

struct only {
	struct hashset paths;
	int active;	// there is a list
	int everything; // "/" is in it: all names of the directories that are listed
};

// Takes the list of the options. -1 without memory.
int only_load(struct only *only, const struct checksum_options *options);
void only_free(struct only *only);
// Whether this name takes part: it is in the list, or a directory above it is there with a slash at its end.
int only_has(const struct only *only, const char *folder, const char *name);
// Calls `each` for the directories to list: those that hold a name of the list.
int only_folders(const struct checksum_options *options, int (*each)(void *context, const char *folder), void *context);

#endif
