// SPDX-License-Identifier: Apache-2.0
// Which source inode with several names is which target inode. Memory only for such inodes.
#ifndef CHECKSUM_LINKS_H
#define CHECKSUM_LINKS_H

#include <stddef.h>
#include <stdint.h>

struct link_path {
	struct link_path *next;
	char path[];
};

struct link_name {
	uint64_t source, target; // inode numbers; target 0: there is none (a comparison)
	char *path;		 // the name that was seen first
	struct link_path *alike; // names without a difference so far (a comparison)
	int told;		 // one had a difference
};

struct links {
	struct link_name *names;
	size_t count, room;
	size_t *by_source, *by_target; // open addressing, index + 1
	size_t slots, targets;	       // of each table, and how many by_target holds
};

struct link_name *links_find(const struct links *links, uint64_t source);
// The source inode that a target inode was found to be; 0: none so far.
uint64_t links_owner(const struct links *links, uint64_t target);
// Sets or changes what belongs to `source`. -1 without memory.
int links_set(struct links *links, uint64_t source, uint64_t target, const char *path);
// Another name of `name` that is as it should be. -1 without memory.
int links_keep(struct link_name *name, const char *path);
void links_free(struct links *links);

#endif
