// SPDX-License-Identifier: Apache-2.0
// What one directory holds, as one digest that both sides can compare, and as a list of entries.
#ifndef CHECKSUM_SCAN_H
#define CHECKSUM_SCAN_H

#include "message.h"
#include "record.h"

struct scan {
	struct engine *engine;
	struct record *record;
	const char *folder;
	struct digest folder_key;
	// results
	struct digest sum; // of names, metadata, attributes, contents
	uint64_t names;
	int force;	       // the digest does not tell all: large files that must be read, hard links, trouble
	struct buffer *tokens; // to record once the directory is known to be equal
	// what the source does besides; may be NULL
	void (*on_child)(void *context, const char *folder, const char *name);
	void *context;
};

// What is known of one name.
struct examined {
	uint8_t kind;
	unsigned int run;
	struct digest digest, token; // of CONTENT_SKIP the errno
	char target[PATH_ROOM];
	struct buffer *xattrs;
};

// Reads what the record does not vouch for; with `all` the attributes in any case. 0, or -1 and errno for a name that
// vanished or changed its type meanwhile.
int examine(struct scan *scan, int folder, const struct entry *entry, int all, struct scratch *scratch,
	    struct examined *found);
// Opens a file of the directory for reading, without moving its access time where that is allowed.
int scan_open(int folder, const char *name);
// The whole directory. 0, or -1 and errno.
int scan_folder(struct scan *scan, int root, struct scratch *scratch);
// Only the tokens, of a directory that has just been made equal.
int scan_tokens(struct scan *scan, int root, struct scratch *scratch);

#endif
